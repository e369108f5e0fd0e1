"""Triton's side of `image_output`: floats to pixels."""

from nereid.backends import bridge
from nereid.runtime.images import to_pixels


class TritonPythonModel:
    """Adapts nereid.runtime.images."""

    def execute(self, requests):
        return bridge.answer_each(requests, lambda inputs: {"generated_image": to_pixels(inputs["image"])})
