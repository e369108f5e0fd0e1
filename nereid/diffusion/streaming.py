"""One image as a stream: the pipeline run segment by segment, with previews; knows sibling models only as a callable."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np

from nereid.diffusion.images import preview
from nereid.diffusion.requests import Inputs, first_step
from nereid.diffusion.settings import Pipeline
from nereid.flow.errors import CancelledError, InvalidRequestError

CallModel = Callable[[str, Mapping[str, np.ndarray], Sequence[str]], dict[str, np.ndarray]]
"""Calls a model by name with inputs and wanted outputs."""

Outputs = Mapping[str, np.ndarray]

_PASSED_ON = (
    "num_inference_steps",
    "guidance_scale",
    "scheduler",
    "width",
    "height",
    "timeout_seconds",
    "init_image",
    "strength",
)
MAX_PREVIEW_INTERVAL = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Siblings:
    """Names of the models that the stream calls; each is a parameter `<field>_model` of its config.pbtxt."""

    tokenizer: str
    text_encoder: str
    denoise: str
    vae_decoder: str
    image_output: str
    text_encoder_2: str | None = None

    @classmethod
    def from_parameters(cls, parameters: Mapping[str, str]) -> Siblings:
        names = {field.name: parameters.get(f"{field.name}_model") for field in fields(cls)}
        return cls(**{field: name for field, name in names.items() if name is not None})


@dataclass(frozen=True, slots=True)
class ImageStream:
    """Runs requests of `text_to_image_stream`; inputs come without a batch dimension."""

    pipeline: Pipeline
    siblings: Siblings
    call: CallModel

    def run(self, inputs: Inputs, send: Callable[[Outputs], None], is_cancelled: Callable[[], bool]) -> None:
        """Send progress after every segment and the image at the end; raises RequestError."""
        interval = int(inputs["preview_interval"].item()) if "preview_interval" in inputs else 1
        if not 1 <= interval <= MAX_PREVIEW_INTERVAL:
            raise InvalidRequestError.of("preview_interval", interval, f"1 to {MAX_PREVIEW_INTERVAL}")
        steps = int(inputs["num_inference_steps"].item()) if "num_inference_steps" in inputs else None
        steps = self.pipeline.default_steps if steps is None else steps
        conditions = self._encode(inputs)
        for name in _PASSED_ON:
            if name in inputs:
                conditions[name] = inputs[name][None]
        seed = inputs["seed"] if "seed" in inputs else np.array([secrets.randbits(63)], dtype=np.int64)
        conditions["seed"] = seed.reshape(1, 1)
        begin = self._first_step(inputs, steps)
        state: dict[str, np.ndarray] = {}
        total = np.zeros((1, 2), dtype=np.float32)
        while True:
            end = min(begin + interval, steps) if steps > 0 else steps
            state = self._segment(conditions, state, begin, end)
            total += state["timings"]
            if is_cancelled():
                raise CancelledError("the request was cancelled")
            if end >= steps:
                break
            send(
                {
                    **_progress(end, steps),
                    **_picture("preview", preview(state["latents"][0], self.pipeline.latents_to_rgb)),
                }
            )
            begin = end
        image = self.call(self.siblings.vae_decoder, {"latents": state["latents"]}, ["image"])
        pixels = self.call(self.siblings.image_output, image, ["generated_image"])["generated_image"]
        send(
            {
                **_progress(steps, steps),
                **_picture("generated_image", pixels[0]),
                "image_seed": state["image_seed"][0],
                "warnings": state["warnings"][0],
                "timings": total[0],
            }
        )

    def _first_step(self, inputs: Inputs, steps: int) -> int:
        """img2img starts late, as far as `strength` says; an invalid strength is left for `denoise` to refuse."""
        if "init_image" not in inputs:
            return 0
        strength = float(inputs["strength"].item()) if "strength" in inputs else 0.8
        return first_step(steps, strength) if 0 < strength <= 1 else 0

    def _segment(
        self, conditions: Mapping[str, np.ndarray], state: Mapping[str, np.ndarray], begin: int, end: int
    ) -> dict[str, np.ndarray]:
        segment = {"step_end": np.array([[end]], dtype=np.int32)}
        if state:
            segment["step_begin"] = np.array([[begin]], dtype=np.int32)
            segment |= {name: state[name] for name in ("latents", "solver_memory")}
        outputs = ["latents", "solver_memory", "image_seed", "warnings", "timings"]
        return self.call(self.siblings.denoise, {**conditions, **segment}, outputs)

    def _encode(self, inputs: Inputs) -> dict[str, np.ndarray]:
        """Token ids, then embeddings, under the names that `denoise` takes."""
        texts = {name: inputs[name][None] for name in ("prompt", "negative_prompt") if name in inputs}
        encoders = [("", self.siblings.text_encoder)]
        if self.siblings.text_encoder_2 is not None:
            encoders.append(("_2", self.siblings.text_encoder_2))
        wanted = [f"{half}input_ids{suffix}" for suffix, _ in encoders for half in ("", "negative_")]
        tokens = self.call(self.siblings.tokenizer, texts, [*wanted, "tokenizer_warnings"])
        conditions = {"tokenizer_warnings": tokens["tokenizer_warnings"]}
        if self.pipeline.force_zeros_for_empty_prompt and "negative_prompt" in texts:
            conditions["negative_prompt"] = texts["negative_prompt"]
        for suffix, encoder in encoders:
            names = ["prompt_embeds"] if not suffix else ["prompt_embeds", "pooled_prompt_embeds"]
            for half in ("", "negative_"):
                made = self.call(encoder, {"input_ids": tokens[f"{half}input_ids{suffix}"]}, names)
                conditions[f"{half}prompt_embeds{suffix}"] = made["prompt_embeds"]
                if suffix:
                    conditions[f"pooled_{half}prompt_embeds"] = made["pooled_prompt_embeds"]
        return conditions


def _progress(step: int, steps: int) -> dict[str, np.ndarray]:
    return {"step": np.array([step], dtype=np.int32), "num_inference_steps": np.array([steps], dtype=np.int32)}


def _picture(name: str, pixels: np.ndarray) -> dict[str, np.ndarray]:
    return {name: pixels, "picture_shape": np.array(pixels.shape, dtype=np.int32)}
