"""The VAE decoder as several requests call it: called again after its death; knows the engine as a callable.

As in the denoising loop, those inside at a death have their calls alone from then on, and one that was alone at its second
death is refused. The decoder has several processes: a call that only meets a dead one has killed nothing, so that a death
counts where a process that lived when the call began is dead when it fails.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from nereid.diffusion.vae_tiles import Array, Decode
from nereid.flow.errors import LostError, PoisonousRequestError
from nereid.flow.retry import MAX_SECONDS, PAUSE_SECONDS
from nereid.flow.turns import Turns

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class SharedDecoder:
    """Safe to use from several threads. `processes` are those of the decoder that live; none where it has no own."""

    call: Decode
    processes: Callable[[], frozenset[int]]
    turns: Turns = field(default_factory=Turns)


@dataclass(slots=True, eq=False)
class RequestDecoder:
    """One request's calls. `in_time` raises what ends the waiting for a decoder that is away; without an end of its own
    (`bounded`), the request waits for a minute. `deaths` counts those of the decoder with it inside."""

    shared: SharedDecoder
    in_time: Callable[[], None]
    bounded: bool
    deaths: int = 0

    def __call__(self, latents: Array) -> Array:
        """The decoder's image; raises RequestError."""
        away: float | None = None
        while True:
            try:
                with self.shared.turns.take(self.in_time, alone=self.deaths > 0):
                    return self._once(latents)
            except LostError as error:
                if away is None:
                    away = time.monotonic()
                    log.warning("a call of the VAE decoder failed (%s); it is repeated until the decoder is back", error)
                elif not self.bounded and time.monotonic() - away > MAX_SECONDS:
                    raise
            self.in_time()
            time.sleep(PAUSE_SECONDS)

    def _once(self, latents: Array) -> Array:
        lived = self.shared.processes()
        try:
            return self.shared.call(latents)
        except LostError:
            self.deaths += bool(lived - self.shared.processes())
            if self.deaths > 1:
                raise PoisonousRequestError(
                    "the request was alone in a VAE decoder that died, twice; it is not tried a third time"
                ) from None
            raise
