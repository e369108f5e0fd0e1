"""What the rungs of the ladder come to: rows from measurements, and the peers beside each. Pure functions."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nereid_bench.ladder_rungs import LadderModel, PeerWay, Rung, Step, Way
from nereid_export.drawing import psnr
from nereid_export.scorers import Scorer


@dataclass(slots=True)
class Found:
    """What one way has come to so far: ms of each lone picture, pictures a second of each round, the highest peak in bytes.

    `pixels` has pictures, uint8 height x width x 3, by their number, which is their seed.
    """

    ms: list[float] = field(default_factory=list)
    images_per_second: list[float] = field(default_factory=list)
    peak_bytes: int = 0
    pixels: dict[int, NDArray[np.uint8]] = field(default_factory=dict)

    def add(self, other: Found) -> None:
        """One more round."""
        self.ms += other.ms
        self.images_per_second += other.images_per_second
        self.peak_bytes = max(self.peak_bytes, other.peak_bytes)
        self.pixels |= other.pixels


def rows_of(model: LadderModel, steps: Sequence[Step], found: Mapping[Way, Found], scorer: Scorer | None) -> list[dict[str, Any]]:
    """A row for each rung that has been measured; quality is None where weights are random, or the pictures are not all there."""
    plain = next((found[step.way] for step in steps if step.rung == Rung.PLAIN and step.way in found), None)
    return [_row(model, step, found, plain, scorer) for step in steps if step.way in found]


def _row(
    model: LadderModel, step: Step, found: Mapping[Way, Found], plain: Found | None, scorer: Scorer | None
) -> dict[str, Any]:
    mine = found[step.way]
    ms, rate = statistics.median(mine.ms), statistics.median(mine.images_per_second)
    return {
        "model": model.name,
        "rung": str(step.rung),
        "ms_per_image": ms,
        "speedup": None if plain is None else statistics.median(plain.ms) / ms,
        "images_per_second": rate,
        "load_speedup": None if plain is None else rate / statistics.median(plain.images_per_second),
        "memory_mb": mine.peak_bytes / 1e6,
        "psnr": None if model.random or plain is None else likeness(mine.pixels, plain.pixels),
        "score": None if model.random or scorer is None else scored(mine.pixels, scorer),
        "uses_student": step.uses_student,
        "peers": _peers(step.peers, found),
        "peers_psnr": {} if model.random or plain is None else _peers_psnr(step.peers, found, plain),
    }


def _peers(peers: Sequence[PeerWay], found: Mapping[Way, Found]) -> dict[str, float]:
    return {peer.label: statistics.median(found[peer].ms) for peer in peers if peer in found}


def _peers_psnr(peers: Sequence[PeerWay], found: Mapping[Way, Found], plain: Found) -> dict[str, float]:
    """What each peer's speed costs: a cache alone can be as quick as anybody likes."""
    told = {peer.label: likeness(found[peer].pixels, plain.pixels) for peer in peers if peer in found and peer.given_noise}
    return {label: psnr for label, psnr in told.items() if psnr is not None}


def likeness(ours: Mapping[int, NDArray[np.uint8]], theirs: Mapping[int, NDArray[np.uint8]]) -> float | None:
    """Median PSNR in dB of the pictures that both have; None where there are none."""
    both = [psnr(picture, theirs[seed]) for seed, picture in ours.items() if seed in theirs]
    return statistics.median(both) if both else None


def scored(pixels: Mapping[int, NDArray[np.uint8]], scorer: Scorer) -> float | None:
    """Percent of the pictures that are right; None while one before the last is missing: a scorer wants all in order."""
    count = len(pixels)
    if not count or set(pixels) != set(range(count)):
        return None

    def draw(texts: list[str], seeds: list[int]) -> Iterator[NDArray[np.uint8]]:
        return (pixels[seed] for seed in seeds)

    silent: Callable[[int], None] = lambda done: None  # noqa: E731
    return scorer.score(draw, count, silent)
