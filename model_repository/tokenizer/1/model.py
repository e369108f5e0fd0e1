"""Triton's side of `tokenizer`: texts to token ids, and (in the ensemble) a place at `denoise` before anything is encoded."""

from concurrent.futures import ThreadPoolExecutor

from nereid.diffusion.admission import take_ticket
from nereid.diffusion.prompts import PromptService
from nereid.triton import bridge

CALL_SECONDS = 10.0


class TritonPythonModel:
    """Adapts nereid.diffusion.prompts and nereid.diffusion.admission."""

    def initialize(self, args):
        model = bridge.ModelArguments.parse(args, known=("denoise_model", "max_calls"))
        self._service = PromptService.read(model.version_folder)
        self._denoise = model.parameters["denoise_model"]
        threads = int(model.parameters["max_calls"])
        self._workers, self._callers = ThreadPoolExecutor(threads, "tokenize"), bridge.Callers.of(threads)

    def execute(self, requests):
        for request in requests:
            wanted = set(request.requested_output_names())
            self._workers.submit(self._serve, bridge.read_inputs(request), wanted, bridge.late_reply(request))

    def _serve(self, inputs, wanted, reply):
        try:
            prompts = bridge.read_texts(inputs, "prompt", [])
            made = {}
            if "ticket" in wanted:
                made["ticket"] = take_ticket(inputs, len(prompts), self._denoise, self._call)
            negative = bridge.read_texts(inputs, "negative_prompt", [""] * len(prompts))
            reply({**made, **self._service.encode(prompts, negative)}, None)
        except Exception as error:
            reply(None, error)

    def _call(self, *call):
        return self._callers.call(*call, timeout=CALL_SECONDS)

    def finalize(self):
        self._workers.shutdown(wait=True, cancel_futures=True)
