"""One image as a stream: a run started once and watched to its end; knows sibling models only as a callable."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, wait
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import dataclass, field, fields
from functools import partial
from typing import Protocol

import numpy as np

from nereid.diffusion.admission import take_ticket
from nereid.diffusion.decoding import DECODING
from nereid.diffusion.families import family_of
from nereid.diffusion.families.base import HALVES
from nereid.diffusion.options import default_strength, first_step, steps_of
from nereid.diffusion.settings import Pipeline
from nereid.diffusion.watching import HOLD_SECONDS
from nereid.flow.errors import CancelledError, LostError, QueueFullError, RequestError
from nereid.flow.fields import FieldReader, Inputs
from nereid.flow.request_parameters import refuse_parameters
from nereid.flow.retry import call_again
from nereid.flow.runs import RunState
from nereid_protocol.field import Model
from nereid_protocol.fields import carried_by, names, passed_on

Outputs = Mapping[str, np.ndarray]

_PASSED_ON = names(passed_on(Model.STREAM, Model.DENOISE))
_TOLD = ("image_seed", "warnings", "timings", "system_fingerprint")
_DECODED = ("latents", *DECODING)
_LOOK_SECONDS = 0.5
"""How often a stream looks, while its picture is decoded, whether its caller has left or the decoding has died."""
_PATIENCE_SECONDS = HOLD_SECONDS + 3.0
"""A watch that is not answered by then, though `denoise` answers each within HOLD_SECONDS, means that `denoise` has died."""


class Calls(Protocol):
    """Calls of sibling models."""

    def submit(self, name: str, inputs: Outputs, outputs: Sequence[str]) -> Future[dict[str, np.ndarray]]: ...

    def call(self, name: str, inputs: Outputs, outputs: Sequence[str], timeout: float | None = None) -> dict[str, np.ndarray]:
        """Raises RequestError; a LostError after `timeout` seconds."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Siblings:
    """Names of the models that the stream calls; each is a parameter `<field>_model` of its config.pbtxt."""

    tokenizer: str
    text_encoder: str
    denoise: str
    image_output: str

    @classmethod
    def from_parameters(cls, parameters: Mapping[str, str]) -> Siblings:
        return cls(**{field.name: parameters[f"{field.name}_model"] for field in fields(cls)})


@dataclass(slots=True, eq=False)
class StreamPlaces:
    """Each stream holds a thread: one more than there are is refused at once, as by a full queue."""

    most: int
    _taken: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def take(self) -> None:
        """Raises QueueFullError."""
        with self._lock:
            if self._taken >= self.most:
                raise QueueFullError(f"streams: {self._taken} are served already; at most {self.most} may be (max_streams)")
            self._taken += 1

    def give_back(self) -> None:
        with self._lock:
            self._taken -= 1


@dataclass(frozen=True, slots=True)
class ImageStream:
    """Runs requests of `text_to_image_stream`; inputs come without a batch dimension."""

    pipeline: Pipeline
    siblings: Siblings
    calls: Calls

    def run(self, inputs: Inputs, send: Callable[[Outputs], None], is_cancelled: Callable[[], bool]) -> None:
        """Send progress after every `preview_interval` steps and the image at the end; raises RequestError."""
        refuse_parameters(inputs, names(carried_by(Model.STREAM)))
        given = {name: value[None] for name, value in inputs.items()}
        reader = FieldReader(given, 1)
        interval = reader.value("preview_interval", 1)
        run_id = reader.value("run_id", "") or secrets.token_urlsafe(18)
        given["run_id"] = _text(run_id)
        denoise = self.siblings.denoise
        ticket = take_ticket(given, 1, denoise, partial(self.calls.call, timeout=_PATIENCE_SECONDS), watched=True)
        conditions = {**self._encode(given), **{name: given[name] for name in _PASSED_ON if name in given}, "ticket": ticket}
        run = self.calls.submit(denoise, conditions, (*_TOLD, *_DECODED))
        steps = steps_of(reader, self.pipeline)
        strength = reader.value("strength", default_strength(masked="mask_image" in given))
        begin = first_step(steps, strength) if "init_image" in given else 0
        for watched in self._watch(run_id, begin, interval, run, is_cancelled):
            send(
                {
                    "step": watched["step"].reshape(1),
                    "num_inference_steps": watched["num_inference_steps"].reshape(1),
                    "preview_scale": watched["preview_scale"].reshape(1),
                    **_picture("preview", watched["preview"][0]),
                }
            )
        try:
            made = run.result(_PATIENCE_SECONDS)  # it has ended
        except FutureTimeout:
            raise LostError("denoise: the run's answer does not come") from None
        pixels = self._decode({name: made[name] for name in _DECODED}, run_id, is_cancelled)
        send(
            {
                "step": np.array([steps], np.int32),
                "num_inference_steps": np.array([steps], np.int32),
                **_picture("generated_image", pixels[0]),
                **{name: made[name][0] for name in _TOLD},
            }
        )

    def _watch(
        self, run_id: str, begin: int, interval: int, run: Future[dict[str, np.ndarray]], is_cancelled: Callable[[], bool]
    ) -> Iterator[Outputs]:
        """The run's progress until it has ended; its cancellation is passed on."""
        after = begin + interval - 1
        while not (run.done() and run.exception() is not None):
            if is_cancelled():
                self._ask({"cancel": _text(run_id)}, ["run_state"])
                raise CancelledError("the request was cancelled")
            asked = {"watch": _text(run_id), "after_step": np.array([[after]], np.int32)}
            found = self._ask(asked, ["run_state", "step", "num_inference_steps", "preview", "preview_scale"])
            if "preview" in found:
                step = int(found["step"].item())
                if step >= int(found["num_inference_steps"].item()):
                    return
                yield found
                after = step + interval - 1
                continue
            state = found["run_state"].item().decode()
            if state in (RunState.DONE, RunState.FAILED) or run.done():
                return
            if state == RunState.UNKNOWN:
                raise LostError("denoise: the run is gone")

    def _ask(self, asked: Outputs, outputs: Sequence[str]) -> dict[str, np.ndarray]:
        return self.calls.call(self.siblings.denoise, asked, outputs, timeout=_PATIENCE_SECONDS)

    def _decode(self, made: Outputs, run_id: str, is_cancelled: Callable[[], bool]) -> np.ndarray:
        """The picture, asked for again where `image_output` died.

        Large ones take long: a cancellation meanwhile is passed on, and ends the decoding after its tile.
        """

        begun = time.monotonic()

        def once() -> np.ndarray:
            left = made["seconds_left"] - np.float32(time.monotonic() - begun)
            known = self._state({"decoding": _text(run_id)}) == RunState.RUNNING
            picture = self.calls.submit(self.siblings.image_output, {**made, "seconds_left": left}, ["generated_image"])
            while not wait([picture], _LOOK_SECONDS).done:
                if is_cancelled():
                    self._ask({"cancel": _text(run_id)}, ["run_state"])
                    raise CancelledError("the request was cancelled")
                if known and self._state({"watch": _text(run_id)}) == RunState.UNKNOWN:
                    raise LostError("image_output: it died with the picture")  # its answer would never come
            return picture.result()["generated_image"]

        return call_again(once, is_cancelled)

    def _state(self, asked: Outputs) -> str | None:
        """What `denoise` says of the run; None where it says nothing: it may have died after its work was done."""
        try:
            return str(self._ask(asked, ["run_state"])["run_state"].item().decode())
        except RequestError:
            return None

    def _again(
        self, model: str, inputs: Outputs, outputs: Sequence[str], is_cancelled: Callable[[], bool]
    ) -> dict[str, np.ndarray]:
        return call_again(lambda: self.calls.call(model, inputs, outputs), is_cancelled)

    def _encode(self, given: Inputs) -> dict[str, np.ndarray]:
        """Prompt and negative prompt through the tokenizers and text encoders."""
        encoders = family_of(self.pipeline.family).encoders
        texts = {name: given[name] for name in ("prompt", "negative_prompt") if name in given}
        wanted = [encoder.ids(half) for encoder in encoders for half in HALVES]
        tokens = self._again(self.siblings.tokenizer, texts, [*wanted, "tokenizer_warnings"], lambda: False)
        conditions = {"tokenizer_warnings": tokens["tokenizer_warnings"]}
        if self.pipeline.force_zeros_for_empty_prompt and "negative_prompt" in texts:
            conditions["negative_prompt"] = texts["negative_prompt"]
        for encoder in encoders:
            model = f"{self.siblings.text_encoder}{encoder.suffix}"
            for half in HALVES:
                names_of = encoder.outputs(half)
                made = self._again(model, {"input_ids": tokens[encoder.ids(half)]}, list(names_of), lambda: False)
                conditions.update({ours: made[theirs] for theirs, ours in names_of.items()})
        return conditions


def _text(value: str) -> np.ndarray:
    return np.array([[value.encode()]], np.object_)


def _picture(name: str, pixels: np.ndarray) -> dict[str, np.ndarray]:
    return {name: pixels, "picture_shape": np.array(pixels.shape, dtype=np.int32)}
