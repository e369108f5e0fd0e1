"""The VAE decoder as several requests call it: called again after its death; knows the engine as a callable.

As in the denoising loop: those inside at a death have their calls alone from then on, and one that was alone at its second
death is refused. Whether the decoder is back is tried with empty latents, so that nobody's call is risked.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from nereid.diffusion.vae_tiles import Array, Decode
from nereid.flow.errors import LostError, PoisonousRequestError, RequestError
from nereid.flow.turns import Turns

log = logging.getLogger(__name__)

RETRY_SECONDS = 0.2
_PROBE_LATENTS = 8
"""A side of the empty latents."""


@dataclass(slots=True, eq=False)
class SharedDecoder:
    """Safe to use from several threads. `down`: a call has found it dead, and none has found it alive since."""

    call: Decode
    down: bool = False
    turns: Turns = field(default_factory=Turns)

    def for_request(self, in_time: Callable[[], None]) -> RequestDecoder:
        """`in_time` raises what ends the waiting for a decoder that is away."""
        return RequestDecoder(self, in_time)


@dataclass(slots=True, eq=False)
class RequestDecoder:
    """One request's calls. `deaths` counts those of the decoder with it inside."""

    shared: SharedDecoder
    in_time: Callable[[], None]
    deaths: int = 0

    def __call__(self, latents: Array) -> Array:
        """The decoder's image; raises RequestError."""
        while True:
            try:
                return self._once(latents)
            except LostError as error:
                log.warning("a call of the VAE decoder failed (%s); it is repeated when the decoder is back", error)

    def _once(self, latents: Array) -> Array:
        shared = self.shared
        with shared.turns.take(self.in_time, alone=self.deaths > 0):
            if shared.down:
                self._wait_until_back(latents)
            try:
                return shared.call(latents)
            except LostError:
                shared.down = True
                self.deaths += 1
                if self.deaths > 1:
                    raise PoisonousRequestError(
                        "the request was alone in a VAE decoder that died, twice; it is not tried a third time"
                    ) from None
                raise

    def _wait_until_back(self, latents: Array) -> None:
        empty = np.zeros((1, latents.shape[1], *(min(side, _PROBE_LATENTS) for side in latents.shape[2:])), np.float32)
        while self.shared.down:
            try:
                self.shared.call(empty)
            except LostError:
                self.in_time()
                time.sleep(RETRY_SECONDS)
                continue
            except RequestError:
                pass  # it refuses empty latents, and so it lives
            self.shared.down = False
