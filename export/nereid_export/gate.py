"""The quality gate of a whole pipeline: its engines draw again what PyTorch has drawn in float32, and are scored beside it."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nereid.diffusion.settings import Decoder
from nereid_export.calibration import Drawn
from nereid_export.drawing import Drawer, psnr, refusals_told
from nereid_export.engines.precision import PSNR_BOUNDS, SCORE_BOUND, Precision
from nereid_export.errors import ExportError
from nereid_export.scorers import Draw, Scorer

SCORED = 288
"""Pictures that a scorer sees of PyTorch, and of the engines: fewer cannot tell a loss of 2 points from chance."""
_BATCH = 16


def check_pictures(engines: Drawer, pictures: Sequence[Drawn], told: Callable[[str], None]) -> dict[str, float]:
    """Median and lowest PSNR in dB of the engines' pictures against PyTorch's, which are given.

    The median, since now and then a small error turns a picture into another one, which says nothing of its quality.
    """
    found = []
    for number, drawn in enumerate(pictures):
        told(f"drawing picture {number + 1} of {len(pictures)} with the engines")
        (ours,) = engines.draw([drawn.prompt], [drawn.seed], steps=drawn.steps)
        found.append(psnr(ours, drawn.picture))
    return {"pictures": len(found), "psnr": _rounded(statistics.median(found)), "psnr_lowest": _rounded(min(found))}


def score(drawer: Drawer, scorer: Scorer, said: str, told: Callable[[str], None]) -> float:
    """Percent of pictures that are right; the prompts and seeds are the same for whatever draws them."""
    return scorer.score(_draw(drawer), SCORED, partial(_tell, told, said))


def compare_decoders(torch: Drawer, prompts: Sequence[str], scorer: Scorer | None, told: Callable[[str], None]) -> dict[str, Any]:
    """What the tiny decoder costs, by PyTorch in float32: PSNR in dB of its pictures against the full one's, of the same latents.

    With a scorer also the percent of pictures by each that are right.
    """
    found = []
    for number, prompt in enumerate(prompts):
        told(f"decoding picture {number + 1} of {len(prompts)} with both decoders")
        with refusals_told():
            latents = torch.denoise(torch.request([prompt], [number]))
        full, tiny = (torch.decode(latents, decoder)[0] for decoder in (Decoder.FULL, Decoder.TINY))
        found.append(psnr(tiny, full))
    made: dict[str, Any] = {
        "pictures": len(found),
        "psnr": _rounded(statistics.median(found)),
        "psnr_lowest": _rounded(min(found)),
    }
    if scorer is None:
        return made
    kept: list[NDArray[np.float32]] = []

    def by_full(texts: list[str], seeds: list[int]) -> Iterator[NDArray[np.uint8]]:
        for start in range(0, len(texts), _BATCH):
            with refusals_told():
                kept.append(torch.denoise(torch.request(texts[start : start + _BATCH], seeds[start : start + _BATCH])))
            yield from torch.decode(kept[-1])

    def by_tiny(texts: list[str], seeds: list[int]) -> Iterator[NDArray[np.uint8]]:
        for latents in kept:  # the same prompts and seeds
            yield from torch.decode(latents, Decoder.TINY)

    scores = {
        decoder: scorer.score(draw, SCORED, partial(_tell, told, f"scoring the {decoder} decoder's pictures"))
        for decoder, draw in ((Decoder.FULL, by_full), (Decoder.TINY, by_tiny))
    }
    return made | {
        "scored_by": scorer.name,
        "scored": SCORED,
        "score_full": scores[Decoder.FULL],
        "score_tiny": scores[Decoder.TINY],
    }


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


def _rounded(value: float) -> float:
    return round(value, 2)


def _tell(told: Callable[[str], None], said: str, done: int) -> None:
    told(f"{said}: {done} of {SCORED}")


def psnr_bound(precisions: Sequence[Precision]) -> float:
    return min(PSNR_BOUNDS[precision] for precision in precisions)


def _draw(drawer: Drawer) -> Draw:
    def draw(texts: list[str], seeds: list[int]) -> Iterator[NDArray[np.uint8]]:
        for start in range(0, len(texts), _BATCH):
            yield from drawer.draw(texts[start : start + _BATCH], seeds[start : start + _BATCH])

    return draw
