"""Triton's side of `text_to_image_stream`: one decoupled stream of answers a request."""

from concurrent.futures import ThreadPoolExecutor

from nereid.backends import bridge
from nereid.runtime.settings import Pipeline
from nereid.runtime.streaming import ImageStream, Siblings


class TritonPythonModel:
    """Adapts nereid.runtime.streaming."""

    def initialize(self, args):
        model = bridge.ModelArguments.parse(args)
        siblings = Siblings.from_parameters(model.parameters)
        self._stream = ImageStream(Pipeline.read(model.version_folder), siblings, bridge.call_model)
        self._workers = ThreadPoolExecutor(int(model.parameters["max_streams"]), "stream")

    def execute(self, requests):
        for request in requests:
            self._workers.submit(self._serve, bridge.read_inputs(request), bridge.Stream.of(request))

    def _serve(self, inputs, stream):
        try:
            self._stream.run(inputs, stream.send, stream.is_cancelled)
        except Exception as error:
            stream.close(error)
        else:
            stream.close()

    def finalize(self):
        self._workers.shutdown(wait=True, cancel_futures=True)
