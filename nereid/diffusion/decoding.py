"""`image_output` as plain Python: latents to pixels by the VAE decoder, whole or by tiles, until nobody waits any more."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from nereid.diffusion.decoder import RequestDecoder, SharedDecoder
from nereid.diffusion.images import to_pixels
from nereid.diffusion.settings import Decoder
from nereid.diffusion.vae_tiles import Array, VaeTiling, decode_latents
from nereid.flow.errors import CancelledError, DeadlineError, InvalidRequestError, RequestError
from nereid.flow.fields import decode_text
from nereid.flow.parameters import read_parameters
from nereid.flow.runs import RunState

TILING = ("tile_sample_min_size", "tile_overlap_factor")
"""Inputs that say how large pictures are cut: outputs of `denoise`."""
DECODING = ("seconds_left", "run_id", *TILING, "decoder")
"""Inputs beside the latents: outputs of `denoise`, too."""

CallModel = Callable[[str, Mapping[str, np.ndarray], Sequence[str]], dict[str, np.ndarray]]
"""Calls a model by name with inputs and wanted outputs; raises RequestError."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodingSettings:
    """Every field is a parameter of `image_output`'s config.pbtxt, spelled the same."""

    max_calls: int = 16
    use_slicing: bool = False
    vae_decoder_model: str = "vae_decoder"
    vae_decoder_tiny_model: str = "vae_decoder_tiny"
    denoise_model: str = "denoise"

    def model_of(self, decoder: Decoder) -> str:
        return self.vae_decoder_tiny_model if decoder is Decoder.TINY else self.vae_decoder_model

    @classmethod
    def from_parameters(cls, parameters: Mapping[str, str]) -> DecodingSettings:
        """Raises ValueError naming the parameter that is not known or not allowed."""
        return read_parameters(cls, parameters, may_be_zero=())


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodingService:
    """Requests of `image_output`; safe to use from several threads. `call` reaches the decoder, `ask` reaches `denoise`.

    `decoders` are the processes that live of a decoder, by its model; `tiny_decoder`: whether the pipeline has a tiny one.
    """

    settings: DecodingSettings
    vae_scale_factor: int
    call: CallModel
    ask: CallModel
    decoders: Callable[[str], frozenset[int]] = lambda model: frozenset()
    tiny_decoder: bool = False
    clock: Callable[[], float] = time.monotonic
    _decoders: Mapping[Decoder, SharedDecoder] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_decoders", {decoder: self._shared(self.settings.model_of(decoder)) for decoder in Decoder})

    def _shared(self, model: str) -> SharedDecoder:
        def image(latents: Array) -> Array:
            return self.call(model, {"latents": latents}, ["image"])["image"]

        return SharedDecoder(image, partial(self.decoders, model))

    def decode(
        self, inputs: Mapping[str, np.ndarray], is_cancelled: Callable[[], bool], arrived: float | None = None
    ) -> dict[str, np.ndarray]:
        """`generated_image` of `latents`; raises RequestError. Time counts from `arrived`, on `clock`."""
        latents = inputs["latents"]
        if 0 in latents.shape:
            raise InvalidRequestError.of("shape of latents", latents.shape, "one latent at least on every side")
        tiling = self._tiling(inputs)
        decoder = Decoder.parse(_text(inputs, "decoder") or Decoder.FULL, tiny=self.tiny_decoder)
        waited = _Waited(
            self,
            self._decoders[decoder],
            self._deadline(inputs, arrived),
            _text(inputs, "run_id"),
            is_cancelled,
            asks=tiling is not None and tiling.tiles(*latents.shape[2:]),
        )
        image = decode_latents(latents, tiling, waited.decode, waited.proceed, use_slicing=self.settings.use_slicing)
        return {"generated_image": to_pixels(image)}

    def _tiling(self, inputs: Mapping[str, np.ndarray]) -> VaeTiling | None:
        """As `denoise` has resolved it; a caller who says nothing has pictures decoded whole."""
        given = [name for name in TILING if name in inputs]
        if not given:
            return None
        if len(given) < len(TILING):
            missing = next(name for name in TILING if name not in inputs)
            raise InvalidRequestError(f"{missing}: nothing is not allowed beside {given[0]}", missing)
        side, overlap = (inputs[name].reshape(-1)[0].item() for name in TILING)
        try:
            return VaeTiling(tile_sample_min_size=side, tile_overlap_factor=overlap, vae_scale_factor=self.vae_scale_factor)
        except ValueError as error:
            raise InvalidRequestError(str(error), str(error).partition(":")[0]) from None

    def _deadline(self, inputs: Mapping[str, np.ndarray], arrived: float | None) -> float:
        if "seconds_left" not in inputs:
            return math.inf
        return (self.clock() if arrived is None else arrived) + float(inputs["seconds_left"].min())


@dataclass(slots=True)
class _Waited:
    """One request's caller. `asks`: it takes long, so `denoise` is told of it and asked whether the run was cancelled."""

    service: DecodingService
    shared: SharedDecoder
    deadline: float
    run_id: str
    is_cancelled: Callable[[], bool]
    asks: bool
    _calls: int = 0
    _decoder: RequestDecoder = field(init=False)

    def __post_init__(self) -> None:
        self._decoder = RequestDecoder(self.shared, self._in_time, math.isfinite(self.deadline))

    def proceed(self) -> None:
        """Raises CancelledError or DeadlineError where nobody waits for the rest."""
        self._in_time()
        if self.asks and (self.is_cancelled() or self._left()):
            raise CancelledError("the request was cancelled")

    def decode(self, latents: Array) -> Array:
        made = self._decoder(latents)
        self._calls += 1
        return made

    def _in_time(self) -> None:
        if self.service.clock() >= self.deadline:
            said = f"timeout_seconds: the time is up after {self._calls} calls of the VAE decoder"
            raise DeadlineError(said, "timeout_seconds")

    def _left(self) -> bool:
        if not self.run_id:
            return False
        told = {"decoding": np.array([[self.run_id.encode()]], np.object_)}
        try:
            state = self.service.ask(self.service.settings.denoise_model, told, ["run_state"])["run_state"].item()
        except RequestError:
            return False  # a `denoise` that has died is no reason to give up what it has made
        return bool(state.decode() == RunState.FAILED)


def _text(inputs: Mapping[str, np.ndarray], name: str) -> str:
    """What all rows of a request have the same of; "" where absent."""
    if name not in inputs:
        return ""
    return decode_text(name, inputs[name].reshape(-1)[0])
