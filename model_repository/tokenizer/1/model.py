"""Triton's side of `tokenizer`: texts to token ids, and (in the ensemble) a place at `denoise` before anything is encoded."""

import time

from nereid.diffusion.admission import Admission
from nereid.diffusion.prompts import PromptService
from nereid.flow.request_ids import NamedThreads
from nereid.triton import bridge, calls

CALL_SECONDS = 10.0


class TritonPythonModel:
    """Adapts nereid.diffusion.prompts and nereid.diffusion.admission."""

    def initialize(self, args):
        model = bridge.ModelArguments.parse(args, known=("denoise_model", "max_calls"))
        self._service = PromptService.read(model.version_folder)
        threads = int(model.parameters["max_calls"])
        self._workers, self._callers = NamedThreads(threads, "tokenize"), calls.Callers.of(threads)
        self._admission = Admission(model.parameters["denoise_model"], self._call)
        bridge.tell_loaded(model.name)

    def execute(self, requests):
        for request in requests:
            with bridge.handling(request):
                wanted = set(request.requested_output_names())
                self._workers.submit(
                    self._serve, bridge.read_inputs(request), wanted, bridge.late_reply(request), time.monotonic()
                )

    def _serve(self, inputs, wanted, reply, arrived):
        try:
            prompts = bridge.read_texts(inputs, "prompt", [])
            made = {}
            if "ticket" in wanted:
                made["ticket"] = self._admission.take(inputs, len(prompts), arrived)
            negative = bridge.read_texts(inputs, "negative_prompt", [""] * len(prompts))
            reply({**made, **self._service.encode(prompts, negative, inputs)}, None)
        except Exception as error:
            reply(None, error)

    def _call(self, *call):
        return self._callers.call(*call, timeout=CALL_SECONDS)

    def finalize(self):
        self._workers.shutdown(wait=True, cancel_futures=True)
