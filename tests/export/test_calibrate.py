"""Calibrating feature caching: curves of real engines, levels within their bounds, what is published, what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from nereid.diffusion.feature_cache import Level, greedy_plan
from nereid.diffusion.settings import Pipeline
from nereid.engines.digests import Verifier

from conftest import Silent, export

torch = pytest.importorskip("torch")
from nereid_export.calibrate import CalibrateOptions, calibrate
from nereid_export.drawing import Drawer, denoised
from nereid_export.errors import ExportError
from nereid_export.kept_figures import KeptFigures
from nereid_export.kept_plans import quickest

pytestmark = pytest.mark.torch


@pytest.fixture(scope="module")
def cut(tmp_path_factory: pytest.TempPathFactory, checkpoints: dict[str, Path]) -> Path:
    """A pipeline whose UNet is cut: to be copied."""
    out = tmp_path_factory.mktemp("cut") / "out"
    export(checkpoints["sd"], out, cache_branch=0)
    return out


@pytest.fixture
def copied(cut: Path, tmp_path: Path) -> Path:
    shutil.copytree(cut, tmp_path / "repository")
    return tmp_path / "repository"


def options(repository: Path, checkpoint: Path, **changes: object) -> CalibrateOptions:
    return CalibrateOptions(repository=repository, checkpoint=checkpoint, **changes)  # type: ignore[arg-type]


def test_levels_keep_their_bounds_and_are_published_with_new_digests(copied: Path, checkpoints: dict[str, Path]) -> None:
    found = calibrate(options(copied, checkpoints["sd"], schedulers=("ddim",), steps=(6, 8)), Silent())
    assert [(its["field"], its["steps"]) for its in found] == [
        *(("cache", 6), ("cache", 8)),
        *(("guidance_cache", 6), ("guidance_cache", 8)),
    ]
    for its in found:
        assert [len(its["curves"]), *map(len, its["curves"])] == [its["steps"] - 1, *[its["steps"]] * (its["steps"] - 1)]
        assert all(value > 0 for over, curve in enumerate(its["curves"], 1) for value in curve[: its["steps"] - over])
        for level, bound in (("light", 30), ("balanced", 25), ("aggressive", 20)):
            assert its["levels"][level]["psnr"] >= bound
            plan = greedy_plan(its["curves"], its["levels"][level]["threshold"], 0, its["steps"])
            assert len(plan.full or ()) == its["levels"][level]["whole_steps"]
        assert its["levels"]["aggressive"]["whole_steps"] < its["steps"]
    pipeline = Pipeline.read(copied / "denoise" / "1")
    assert pipeline.cache is not None
    assert [its.steps for its in pipeline.cache.calibrations] == [6, 8]
    assert [its.steps for its in pipeline.guidance_calibrations] == [6, 8]
    assert set(pipeline.cache.calibrations[0].levels) == set(Level)
    manifest = json.loads((copied / "text_to_image" / "manifest.json").read_text())
    for field in ("cache", "guidance_cache"):
        measured = [its["levels"]["light"]["psnr"] for its in found if its["field"] == field]
        assert [its["levels"]["light"]["psnr"] for its in manifest["calibrations"][field]] == measured
    Verifier(copied).verify(manifest["models"])


def test_calibrating_again_replaces_its_own_and_keeps_the_others(copied: Path, checkpoints: dict[str, Path]) -> None:
    for steps in ((4, 5), (5,)):
        calibrate(options(copied, checkpoints["sd"], schedulers=("ddim",), steps=steps), Silent())
    cache = Pipeline.read(copied / "denoise" / "1").cache
    assert cache is not None
    assert sorted(its.steps for its in cache.calibrations) == [4, 5]


def test_of_a_solver_that_calls_the_unet_twice_in_a_step_calls_are_calibrated(copied: Path, checkpoints: dict[str, Path]) -> None:
    prompts = copied.parent / "prompts.txt"
    prompts.write_text("one\ntwo\nthree\n")
    chosen = options(copied, checkpoints["sd"], schedulers=("dpmpp_sde",), steps=(3,), prompts=prompts)
    for its in calibrate(chosen, Silent()):
        assert (its["steps"], [len(curve) for curve in its["curves"]]) == (3, [5] * 4)
        assert its["curves"][3][0] > 0
        for level in its["levels"].values():
            assert level["whole_steps"] == len(greedy_plan(its["curves"], level["threshold"], 0, 5).full or ())
    cache = Pipeline.read(copied / "denoise" / "1").cache
    assert cache is not None
    (known,) = cache.calibrations
    assert 4 in (known.plan(Level.LIGHT, 0).full or ())  # the last is whole


def test_curves_are_the_relative_changes_of_the_features(copied: Path, checkpoints: dict[str, Path]) -> None:
    from nereid_export.calibrate import _Calibrating
    from nereid_export.kept_kinds import KEPT_FEATURES, KEPT_GUIDANCE

    prompts = copied.parent / "prompts.txt"
    prompts.write_text("one\ntwo\nthree\n")
    chosen = options(copied, checkpoints["sd"], prompts=prompts)
    manifest = json.loads((copied / "text_to_image" / "manifest.json").read_text())
    calibrating = _Calibrating.of(chosen, copied, manifest)
    for kind in (KEPT_FEATURES, KEPT_GUIDANCE):
        expected = np.zeros((3, 4))
        for seed, prompt in enumerate(("one", "two", "three")):
            drawer: Drawer = calibrating._asked("ddim", 4)
            seen: list[np.ndarray] = []
            denoised(
                drawer.pipeline,
                drawer.request([prompt], [seed], steps=4),
                lambda call, drawer=drawer: drawer.runs[call.variant](call.inputs, ("out_sample", "features")),
                lambda runs, call, outputs, seen=seen, kind=kind: seen.append(
                    outputs["features"] if kind is KEPT_FEATURES else outputs["out_sample"][:1] - outputs["out_sample"][1:]
                ),
            )
            for over in (1, 2, 3):
                for step in range(4 - over):
                    later = seen[step + over]
                    expected[over - 1, step] += np.abs(seen[step] - later).sum() / np.abs(later).sum() / 3
        assert np.allclose(calibrating._curves(kind, "ddim", 4, lambda text: None), expected, rtol=1e-3)


def test_a_unet_that_is_not_cut_is_calibrated_for_guidance_alone(
    repository: Path, checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    shutil.copytree(repository, tmp_path / "repository")
    found = calibrate(options(tmp_path / "repository", checkpoints["sd"], steps=(4,)), Silent())
    assert [its["field"] for its in found] == ["guidance_cache"]
    assert Pipeline.read(tmp_path / "repository" / "denoise" / "1").cache is None


def test_a_repository_that_is_changed_meanwhile_stays_as_it_is(
    copied: Path, checkpoints: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from nereid_export.calibrate import _Calibrating

    def interfered(calibrating: object, progress: object) -> list[dict[str, object]]:
        manifest.write_text(manifest.read_text() + "\n")
        return []

    manifest = copied / "text_to_image" / "manifest.json"
    monkeypatch.setattr(_Calibrating, "all", interfered)
    with pytest.raises(ExportError, match="it was changed meanwhile; nothing was published"):
        calibrate(options(copied, checkpoints["sd"]), Silent())
    assert manifest.read_text().endswith("\n")
    assert Pipeline.read(copied / "denoise" / "1").guidance_calibrations == ()


def test_an_interrupted_calibration_measures_nothing_twice(
    copied: Path, checkpoints: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from nereid_export.calibrate import _Calibrating
    from nereid_export.kept_kinds import KEPT_FEATURES

    def interrupted_at(calibrating: object, kind: object, *_: object) -> object:
        if kind is KEPT_FEATURES:
            return levels(calibrating, kind, *_)
        raise KeyboardInterrupt

    def twice(*_: object) -> object:
        raise AssertionError("these figures were kept")

    curves, levels = _Calibrating._curves, _Calibrating._levels
    chosen = options(copied, checkpoints["sd"], steps=(4,))
    with monkeypatch.context() as patched:
        patched.setattr(_Calibrating, "_levels", interrupted_at)
        with pytest.raises(KeyboardInterrupt):
            calibrate(chosen, Silent())
    (kept,) = copied.parent.glob(".*.json")
    before = kept.read_text()
    with monkeypatch.context() as patched:
        patched.setattr(_Calibrating, "_curves", twice)
        found = calibrate(chosen, Silent())
    assert not kept.exists()
    assert [its["field"] for its in found] == ["cache", "guidance_cache"]
    pictures = [name for name in json.loads(before)["figures"] if "PSNR" in name]
    assert pictures

    kept.write_text(before)  # of the repository as it was before: its pipeline is another now
    counted = []
    monkeypatch.setattr(_Calibrating, "_curves", lambda *given: counted.append(0) or curves(*given))
    assert [its["levels"] for its in calibrate(chosen, Silent())] == [its["levels"] for its in found]
    assert len(counted) == 2


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"of": 1}'])
def test_kept_figures_that_are_damaged_are_measured_anew(tmp_path: Path, damage: str) -> None:
    KeptFigures.open(tmp_path / "kept", {"a": 1}).get("x", lambda: 1)
    assert KeptFigures.open(tmp_path / "kept", {"a": 1}).get("x", lambda: 2) == 1
    assert KeptFigures.open(tmp_path / "kept", {"a": 2}).get("x", lambda: 3) == 3
    (tmp_path / "kept").write_text(damage)
    assert KeptFigures.open(tmp_path / "kept", {"a": 2}).get("x", lambda: 4) == 4


def test_an_engine_whose_output_is_none_ends_in_one_sentence(copied: Path, checkpoints: dict[str, Path]) -> None:
    from nereid_export.calibrate import _Calibrating
    from nereid_export.kept_kinds import KEPT_GUIDANCE

    manifest = json.loads((copied / "text_to_image" / "manifest.json").read_text())
    calibrating = _Calibrating.of(options(copied, checkpoints["sd"]), copied, manifest)
    runs = calibrating.drawer.runs
    runs["unet"] = lambda inputs, outputs: {"out_sample": np.full_like(inputs["sample"], np.nan)}  # type: ignore[index]
    with pytest.raises(ExportError, match="a picture cannot be drawn: unet: the output holds NaN"):
        calibrating._curves(KEPT_GUIDANCE, "ddim", 4, lambda text: None)


def test_the_quickest_good_threshold_is_found() -> None:
    thresholds = [0.0, 0.1, 0.2, 0.3, 0.4]
    for most in thresholds:
        assert quickest(thresholds, lambda one, most=most: one <= most) == most
    assert quickest([0.0], lambda one: False) == 0.0


def test_what_cannot_be_calibrated_is_refused_in_one_sentence(
    copied: Path, repository: Path, checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    for chosen, said in (
        (options(copied, checkpoints["v"]), "its digest is not that of"),
        (options(repository, checkpoints["lcm"], name="lcm"), "there is nothing to calibrate"),
        (options(copied, checkpoints["sd"], name="other"), "nothing here was exported as the pipeline other_text_to_image"),
        (options(copied, checkpoints["sd"], schedulers=("fast",)), "--scheduler: 'fast' is not allowed"),
        (options(copied, checkpoints["sd"], steps=(2,)), "--steps: 2 is not allowed"),
        (options(tmp_path / "none", checkpoints["sd"]), "is no folder; it must be an exported repository"),
    ):
        with pytest.raises(ExportError, match=said):
            calibrate(chosen, Silent())
    assert not list(copied.parent.glob(".*calibrated"))
