"""Triton's side of `text_to_image_stream`: one decoupled stream of answers a request."""

from dataclasses import fields

from nereid.diffusion.settings import Pipeline
from nereid.diffusion.streaming import ImageStream, Siblings, StreamPlaces
from nereid.flow.request_ids import NamedThreads
from nereid.triton import bridge, calls


class TritonPythonModel:
    """Adapts nereid.diffusion.streaming."""

    def initialize(self, args):
        called = [f"{sibling.name}_model" for sibling in fields(Siblings)]
        model = bridge.ModelArguments.parse(args, known=("max_streams", *called))
        siblings, streams = Siblings.from_parameters(model.parameters), int(model.parameters["max_streams"])
        # Each stream has a run and a watch out at once.
        self._stream = ImageStream(
            Pipeline.read(model.version_folder), siblings, calls.Callers.of(3 * streams, model.tensor_names)
        )
        self._workers, self._places = NamedThreads(streams, "stream"), StreamPlaces(streams)
        bridge.tell_loaded(model.name)

    def execute(self, requests):
        for request in requests:
            with bridge.handling(request):
                stream = bridge.Stream.of(request)
                try:
                    self._places.take()
                except Exception as error:
                    stream.close(error)
                else:
                    self._workers.submit(self._serve, bridge.read_inputs_and_parameters(request), stream)

    def _serve(self, inputs, stream):
        try:
            self._stream.run(inputs, stream.send, stream.is_cancelled)
        except Exception as error:
            stream.close(error)
        else:
            stream.close()
        finally:
            self._places.give_back()

    def finalize(self):
        self._workers.shutdown(wait=True, cancel_futures=True)
