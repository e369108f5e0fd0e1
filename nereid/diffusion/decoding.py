"""`image_output` as plain Python: latents to pixels by the VAE decoder, whole or by tiles, until nobody waits any more."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from nereid.diffusion.images import to_pixels
from nereid.diffusion.vae_tiles import Array, VaeTiling, decode_latents
from nereid.flow.errors import CancelledError, DeadlineError, InvalidRequestError, RequestError
from nereid.flow.parameters import read_parameters
from nereid.flow.retry import call_again
from nereid.flow.runs import RunState

CallModel = Callable[[str, Mapping[str, np.ndarray], Sequence[str]], dict[str, np.ndarray]]
"""Calls a model by name with inputs and wanted outputs; raises RequestError."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodingSettings:
    """Every field is a parameter of `image_output`'s config.pbtxt, spelled the same."""

    max_calls: int = 16
    tile_sample_min_size: int = 1024
    tile_overlap_factor: float = 0.25
    use_slicing: bool = False
    vae_decoder_model: str = "vae_decoder"
    denoise_model: str = "denoise"

    @classmethod
    def from_parameters(cls, parameters: Mapping[str, str]) -> DecodingSettings:
        """Raises ValueError naming the parameter that is not known or not allowed."""
        return read_parameters(cls, parameters, may_be_zero=())

    def tiling(self, vae_scale_factor: int) -> VaeTiling:
        return VaeTiling(
            tile_sample_min_size=self.tile_sample_min_size,
            tile_overlap_factor=self.tile_overlap_factor,
            use_slicing=self.use_slicing,
            vae_scale_factor=vae_scale_factor,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodingService:
    """Requests of `image_output`; safe to use from several threads. `call` reaches the decoder, `ask` reaches `denoise`."""

    settings: DecodingSettings
    tiling: VaeTiling
    call: CallModel
    ask: CallModel
    clock: Callable[[], float] = time.monotonic

    def decode(
        self, inputs: Mapping[str, np.ndarray], is_cancelled: Callable[[], bool], arrived: float | None = None
    ) -> dict[str, np.ndarray]:
        """`generated_image` of `latents`; raises RequestError. Time counts from `arrived`, on `clock`."""
        latents = inputs["latents"]
        if 0 in latents.shape:
            raise InvalidRequestError.of("shape of latents", latents.shape, "one latent at least on every side")
        waited = _Waited(
            self, self._deadline(inputs, arrived), _run_id(inputs), is_cancelled, asks=self.tiling.tiles(*latents.shape[2:])
        )
        return {"generated_image": to_pixels(decode_latents(latents, self.tiling, waited.decode, waited.proceed))}

    def _deadline(self, inputs: Mapping[str, np.ndarray], arrived: float | None) -> float:
        if "seconds_left" not in inputs:
            return float("inf")
        return (self.clock() if arrived is None else arrived) + float(inputs["seconds_left"].min())


@dataclass(slots=True)
class _Waited:
    """One request's caller. `asks`: it takes long, so `denoise` is told of it and asked whether the run was cancelled."""

    service: DecodingService
    deadline: float
    run_id: str
    is_cancelled: Callable[[], bool]
    asks: bool
    _calls: int = 0

    def proceed(self) -> None:
        """Raises CancelledError or DeadlineError where nobody waits for the rest."""
        if self._overdue():
            said = f"timeout_seconds: the time is up after {self._calls} calls of the VAE decoder"
            raise DeadlineError(said, "timeout_seconds")
        if self.asks and (self.is_cancelled() or self._left()):
            raise CancelledError("the request was cancelled")

    def decode(self, latents: Array) -> Array:
        """The decoder's image; called again where the decoder died meanwhile."""
        service = self.service
        made = call_again(
            lambda: service.call(service.settings.vae_decoder_model, {"latents": latents}, ["image"]), self._overdue
        )
        self._calls += 1
        return made["image"]

    def _overdue(self) -> bool:
        return self.service.clock() >= self.deadline

    def _left(self) -> bool:
        if not self.run_id:
            return False
        told = {"decoding": np.array([[self.run_id.encode()]], np.object_)}
        try:
            state = self.service.ask(self.service.settings.denoise_model, told, ["run_state"])["run_state"].item()
        except RequestError:
            return False  # a `denoise` that has died is no reason to give up what it has made
        return bool(state.decode() == RunState.FAILED)


def _run_id(inputs: Mapping[str, np.ndarray]) -> str:
    """The run that the latents are of; all rows of a request have the same."""
    if "run_id" not in inputs:
        return ""
    value = inputs["run_id"].reshape(-1)[0]
    return value.decode() if isinstance(value, bytes) else str(value)
