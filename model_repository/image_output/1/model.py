"""Triton's side of `image_output`: floats to pixels."""

from nereid.diffusion.images import to_pixels
from nereid.triton import bridge


class TritonPythonModel:
    """Adapts nereid.diffusion.images."""

    def initialize(self, args):
        bridge.ModelArguments.parse(args, known=())

    def execute(self, requests):
        return bridge.answer_each(requests, lambda inputs: {"generated_image": to_pixels(inputs["image"])})
