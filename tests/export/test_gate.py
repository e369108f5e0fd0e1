"""The gate of whole pipelines: pictures and scores that are too far from PyTorch are not published."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
from nereid_export.checkpoint import Checkpoint
from nereid_export.engines.precision import Precision
from nereid_export.errors import ExportError
from nereid_export.gate import SCORED, refuse_pipeline, score
from nereid_export.scorers import scorer_for
from nereid_zoo.shapes.score import CHECKPOINT

pytestmark = pytest.mark.torch

FOUND = {"pictures": 10, "psnr": 21.0, "psnr_lowest": 9.0}


def test_pictures_too_far_from_pytorch_are_refused() -> None:
    refuse_pipeline(FOUND, (Precision.INT8,))
    refuse_pipeline(FOUND, (Precision.FP16, Precision.INT8))
    with pytest.raises(ExportError, match=r"median PSNR of 21\.0 dB .* below the bound of 30 for fp16; nothing was published"):
        refuse_pipeline(FOUND, (Precision.FP16,))
    with pytest.raises(ExportError, match="median PSNR"):
        refuse_pipeline({**FOUND, "psnr": float("nan")}, (Precision.INT8,))


def test_a_score_too_far_below_pytorchs_is_refused() -> None:
    scored = {**FOUND, "scored_by": "captions drawn right", "scored": 288, "score_fp32": 98.0}
    refuse_pipeline({**scored, "score": 95.5}, (Precision.INT8,))
    with pytest.raises(ExportError, match=r"captions drawn right: 94\.0% .* more than 3 points below PyTorch's 98\.0%"):
        refuse_pipeline({**scored, "score": 94.0}, (Precision.INT8,))


def test_the_zoos_scorer_knows_its_own_checkpoints_form_and_no_other(checkpoints: dict[str, Path]) -> None:
    scorer = scorer_for(CHECKPOINT)
    assert scorer is not None
    assert scorer_for(checkpoints["sd"]) is None
    assert scorer_for(Checkpoint.open(checkpoints["sdxl"]).folder) is None
    prompts = scorer.prompts(10)
    assert len(set(prompts)) == 10


def test_a_score_is_of_equal_prompts_and_seeds_by_both(monkeypatch: pytest.MonkeyPatch) -> None:
    class Drawing:
        def __init__(self) -> None:
            self.asked: list[tuple[str, int]] = []

        def draw(self, prompts: list[str], seeds: list[int]) -> list[str]:
            self.asked += zip(prompts, seeds, strict=True)
            return [f"{prompt} {seed}" for prompt, seed in zip(prompts, seeds, strict=True)]

    class Counting:
        name = "even seeds"

        def prompts(self, count: int) -> list[str]:
            return []

        def score(self, draw: Any, count: int, told: Any) -> float:
            made = list(draw([f"p{number}" for number in range(count)], list(range(count))))
            told(count)
            return 100 * sum(picture.endswith(("0", "2", "4", "6", "8")) for picture in made) / count

    ours, theirs, lines = Drawing(), Drawing(), []
    for drawer in (ours, theirs):
        assert score(drawer, Counting(), "scoring", lines.append) == 50  # type: ignore[arg-type]
    assert ours.asked == theirs.asked
    assert lines == 2 * [f"scoring: {SCORED} of {SCORED}"]
