"""Image models whose answer is known: a picture's negative where one was sent, else one of a single grey, which is the seed."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from gateway_before import small_repository
from scripted import texts
from small_servers import RefusedError, Tensors

STEPS = 8
FACTS = {"default_steps": STEPS, "size_multiple": 8}


def drawing_repository(folder: Path, facts: dict[str, Any] | None = None) -> Path:
    """As much of a language model and an image pipeline as the gateway reads."""
    made = small_repository(folder)
    (made / "text_to_image_stream" / "1" / "pipeline.json").write_text(json.dumps(FACTS if facts is None else facts))
    return made


class Drawers:
    """What was asked is kept in `asked`. Streams stop before step `held` until `release` is set."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        self.cancelled = threading.Event()
        self.reached = threading.Event()
        self.release = threading.Event()
        self.held = 0

    def all(self) -> dict[str, Any]:
        return {"text_to_image": self.whole, "text_to_image_stream": self.stream, "denoise": self.denoise}

    def denoise(self, inputs: Tensors) -> Iterator[Tensors]:
        if "cancel" in inputs:
            self.cancelled.set()
        yield {"run_state": np.array([[b"running"]], object)}

    def whole(self, inputs: Tensors) -> Iterator[Tensors]:
        yield self._drawn({name: value[0] for name, value in inputs.items()})

    def stream(self, inputs: Tensors) -> Iterator[Tensors]:
        made = self._drawn(inputs)
        steps = int(inputs["num_inference_steps"][0]) if "num_inference_steps" in inputs else STEPS
        begin = steps - round(steps * float(inputs["strength"][0])) if "strength" in inputs else 0
        height, width = made["generated_image"].shape[1:3]
        for step in range(begin + 1, steps):
            if step == self.held:
                self.reached.set()
                self.release.wait(60)
            yield {
                "step": np.array([step]),
                "num_inference_steps": np.array([steps]),
                "preview": np.full((height // 8, width // 8, 3), step, np.uint8),
            }
        yield {name: value[0] for name, value in made.items()}

    def _drawn(self, inputs: Tensors) -> Tensors:
        given = {name: value if value.size > 1 else value.reshape(-1)[0] for name, value in inputs.items()}
        self.asked.append(given)
        if given["prompt"] == b"WRONG":
            raise RefusedError("width: 500 is not allowed; it must be a multiple of 8 [nereid: INVALID_ARG invalid width]")
        height, width = int(given.get("height", 64)), int(given.get("width", 64))
        seed, count = int(given["seed"]), int(given.get("num_images_per_prompt", 1))
        picture = given.get("init_image")
        if picture is None:
            pixels = np.full((height, width, 3), seed % 256, np.uint8)
        else:  # of another size only where its latents are brought to that which is drawn
            pixels = 255 - np.asarray(Image.fromarray(picture).resize((width, height), Image.Resampling.NEAREST))
        return {
            "generated_image": np.stack([pixels] * count),
            "image_seed": np.array([[seed + index for index in range(count)]]),
            "warnings": np.array([texts("one")]),
            "timings": np.array([[0.5, 1.5]], np.float32),
        }
