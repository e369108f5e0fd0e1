"""The quality gate of a whole pipeline: its engines draw again what PyTorch has drawn in float32, and are scored beside it."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nereid_export.calibration import Drawn
from nereid_export.drawing import Drawer, psnr
from nereid_export.engines.precision import PSNR_BOUNDS, SCORE_BOUND, Precision
from nereid_export.errors import ExportError
from nereid_export.scorers import Draw, Scorer

SCORED = 288
"""Pictures that a scorer sees of PyTorch, and of the engines: fewer cannot tell a loss of 2 points from chance."""
_BATCH = 16
_MOST_DB = 100.0
"""Of pictures that are equal, whose PSNR is infinite."""


def check_pictures(engines: Drawer, pictures: Sequence[Drawn], told: Callable[[str], None]) -> dict[str, float]:
    """Median and lowest PSNR in dB of the engines' pictures against PyTorch's, which are given.

    The median, since now and then a small error turns a picture into another one, which says nothing of its quality.
    """
    found = []
    for number, drawn in enumerate(pictures):
        told(f"drawing picture {number + 1} of {len(pictures)} with the engines")
        (ours,) = engines.draw([drawn.prompt], [drawn.seed], steps=drawn.steps)
        found.append(min(psnr(ours, drawn.picture), _MOST_DB))
    return {"pictures": len(found), "psnr": round(statistics.median(found), 2), "psnr_lowest": round(min(found), 2)}


def score(drawer: Drawer, scorer: Scorer, said: str, told: Callable[[str], None]) -> float:
    """Percent of pictures that are right; the prompts and seeds are the same for whatever draws them."""
    return scorer.score(_draw(drawer), SCORED, partial(_tell, told, said))


def refuse_pipeline(found: dict[str, Any], precisions: Sequence[Precision]) -> None:
    """Raise ExportError for pictures too far from PyTorch's to be published; the coarsest precision sets the bound."""
    bound = psnr_bound(precisions)
    if not found["psnr"] >= bound:
        raise ExportError(
            f"the pictures' median PSNR of {found['psnr']:.1f} dB against PyTorch in float32 is below the bound of {bound:g} for "
            f"{', '.join(precisions)}; nothing was published"
        )
    if "score" in found and found["score_fp32"] - found["score"] > SCORE_BOUND:
        raise ExportError(
            f"{found['scored_by']}: {found['score']:.1f}% by the engines is more than {SCORE_BOUND:g} points below PyTorch's "
            f"{found['score_fp32']:.1f}%; nothing was published"
        )


def _tell(told: Callable[[str], None], said: str, done: int) -> None:
    told(f"{said}: {done} of {SCORED}")


def psnr_bound(precisions: Sequence[Precision]) -> float:
    return min(PSNR_BOUNDS[precision] for precision in precisions)


def _draw(drawer: Drawer) -> Draw:
    def draw(texts: list[str], seeds: list[int]) -> Iterator[NDArray[np.uint8]]:
        for start in range(0, len(texts), _BATCH):
            yield from drawer.draw(texts[start : start + _BATCH], seeds[start : start + _BATCH])

    return draw
