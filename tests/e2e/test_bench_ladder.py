"""`nereid bench ladder` with a Triton and a diffusers of its own: a tiny checkpoint climbs, its repository is exported once."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("torch")
from nereid_bench import ladder, ladder_choice, ladder_repositories
from nereid_bench.ladder import Ladder
from nereid_bench.ladder_choice import served_steps
from nereid_bench.ladder_rungs import LadderModel, LadderPlan

pytestmark = [pytest.mark.triton, pytest.mark.torch]


def test_a_tiny_checkpoint_climbs_the_ladder_and_is_exported_once(
    checkpoints: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ladder, "MODELS", {"tiny": LadderModel(name="tiny", side=32, random=True)})
    monkeypatch.setattr(ladder, "checkpoint_of", lambda *_: checkpoints["sd"])
    for module in (ladder_choice, ladder_repositories):  # one of the real sizes does not fit
        monkeypatch.setattr(module, "tiny_vae_of", lambda *_: None)
    said: list[str] = []
    plan = LadderPlan(
        work=tmp_path,
        models=("tiny",),
        rungs=("plain", "engine", "guidance", "cache"),
        rounds=1,
        pictures=2,
        at_once=2,
        steps=6,
        few_steps=4,
        peers=(),
    )
    report = Ladder(plan, said.append).measure(lambda report: None)
    assert [row["rung"] for row in report["rungs"]] == ["plain", "engine", "guidance", "cache"]
    for row in report["rungs"]:
        assert row["ms_per_image"] > 0
        assert row["speedup"] > 0
        assert row["images_per_second"] > 0
        assert row["memory_mb"] > 50
        assert (row["psnr"], row["score"], row["uses_student"], row["peers"]) == (None, None, False, {})
    assert any(
        line.startswith("tiny: PSNR and score are left out, because its weights are random") for line in report["left_out"]
    )
    again = Ladder(plan, said.append).measure(lambda report: None)
    assert (again["rungs"], again["turns_of_earlier_runs"]) == (report["rungs"], 4)
    exports = [line for line in said if line.startswith("exporting")]
    assert exports == [f"exporting {tmp_path / 'tiny' / 'fp32'}"]
    served_steps(ladder.MODELS["tiny"], checkpoints["sd"], plan, said.append)
    assert [line for line in said if line.startswith("exporting")] == exports
