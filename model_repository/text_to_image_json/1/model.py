"""Triton's side of `text_to_image_json`: the ensemble behind a face without batches."""

from nereid.diffusion.json_face import generate_json
from nereid.flow.request_ids import NamedThreads
from nereid.triton import bridge, calls


class TritonPythonModel:
    """Adapts nereid.diffusion.json_face."""

    def initialize(self, args):
        model = bridge.ModelArguments.parse(args, known=("max_calls", "text_to_image_model"))
        self._target = model.parameters["text_to_image_model"]
        self._workers = NamedThreads(int(model.parameters["max_calls"]), "call")
        bridge.tell_loaded(model.name)

    def execute(self, requests):
        for request in requests:
            with bridge.handling(request):
                self._workers.submit(self._serve, bridge.read_inputs_and_parameters(request), bridge.late_reply(request))

    def _serve(self, inputs, reply):
        try:
            reply(generate_json(inputs, self._target, calls.call_model), None)
        except Exception as error:
            reply(None, error)

    def finalize(self):
        self._workers.shutdown(wait=True, cancel_futures=True)
