"""Triton's side of `tokenizer`: texts to token ids."""

from nereid.diffusion.prompts import PromptService
from nereid.triton import bridge


class TritonPythonModel:
    """Adapts nereid.diffusion.prompts."""

    def initialize(self, args):
        self._service = PromptService.read(bridge.ModelArguments.parse(args).version_folder)

    def execute(self, requests):
        return bridge.answer_each(requests, self._answer)

    def _answer(self, inputs):
        prompts = bridge.read_texts(inputs, "prompt", [])
        return self._service.encode(prompts, bridge.read_texts(inputs, "negative_prompt", [""] * len(prompts)))
