"""Export of layout transformers whose MLPs pass over tokens: what is written, what it computes, company, what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from nereid.diffusion.dynamic_width import WHOLE_WITH_TOKENS, TokenEngine, WidthEngine
from nereid.layout.elements import Section
from nereid.layout.settings import KEPT, LayoutFacts
from nereid.layout.tokens import tokens_of
from nereid_export.engines.check import random_inputs
from nereid_export.errors import ExportError
from nereid_export.layout_drawing import LayoutDrawer
from nereid_zoo.layout.batches import sample_row
from nereid_zoo.layout.component import token_components
from nereid_zoo.layout.draw import torch_predict

import checkpoints
from conftest import export_layout

pytestmark = pytest.mark.torch


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoints.make_dynamic_layout(tmp_path_factory.mktemp("layout") / "tokens", tokens=True)


@pytest.fixture(scope="module", params=["onnxruntime", "openvino"])
def passing(request: pytest.FixtureRequest, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with engines that pass over tokens, of slices, too, with ONNX Runtime; to be read only."""
    out = tmp_path_factory.mktemp(f"passing-{request.param}") / "out"
    export_layout(checkpoint, out, engine=request.param, widths=request.param == "onnxruntime", tokens=True)
    return out / "layout"


def engines_of(drawer: LayoutDrawer) -> list[TokenEngine]:
    return [engine for engine in drawer.model.facts.slices if isinstance(engine, TokenEngine)]


def sections(count: int) -> list[Section]:
    rng = Random(3)
    return [sample_row(rng)[0] for _ in range(count)]


def test_engines_are_exported_checked_and_named(passing: Path) -> None:
    manifest, sliced = json.loads((passing / "manifest.json").read_text()), "onnxruntime" in str(passing)
    assert manifest["token_engines"].keys() == (set(TokenEngine) if sliced else {TokenEngine.WHOLE})
    assert manifest.get("width_engines", {}).keys() == (set(WidthEngine) if sliced else set())
    for said in manifest["token_engines"].values():
        assert {check["sizes"]["tokens"] for check in said["checks"]} == {8, 16, 24, 32}
        assert {check["output"] for check in said["checks"]} == {"out_sample", KEPT}
        assert said["batch_invariant_from_rows"] in (1, 2)
    file = {"onnxruntime": "model.onnx", "openvino": "model.xml"}[manifest["engines"]["layout"]["engine"]]
    assert {f"layout/1/{name}/{file}" for name in manifest["token_engines"]} <= manifest["files"].keys()
    facts = LayoutFacts.read(passing / "1")
    assert facts.tokens
    assert (facts.widths is not None) is sliced
    assert sliced or facts.slices == (TokenEngine.WHOLE,)


def test_every_engine_answers_as_the_masked_transformer_does_and_tells_what_it_kept(passing: Path, checkpoint: Path) -> None:
    drawer, asked = LayoutDrawer.of(passing), sections(3)
    tokens, table = tokens_of(asked, 32), drawer.model.facts.widths
    sample = np.random.default_rng(1).standard_normal((3, 32, 4), np.float32)
    for timestep in (100, 400, 900):
        told = {**tokens.as_inputs(), "timestep": np.full((3, 1), timestep, np.float32)}
        slices = [] if table is None else [(table.passing_over_tokens().engine(timestep), True)]
        for engine, widths in (*slices, (TokenEngine.WHOLE, False)):
            made = drawer.engines[engine]({**told, "sample": sample}, ["out_sample", KEPT])
            masked = torch_predict(checkpoint, widths=widths, tokens=True)
            every = torch_predict(checkpoint, widths=True) if widths else torch_predict(checkpoint)
            given = {**told, "boxes": sample, "timestep": told["timestep"][:, 0]}
            expected, all_tokens = masked(given), every(given)
            for row, section in enumerate(asked):
                ours, theirs, others = (its[row, : len(section)] for its in (made["out_sample"], expected, all_tokens))
                assert np.abs(ours - theirs).max() < 1e-4 * np.abs(theirs).max()
                assert np.abs(ours - others).max() > 1e-3 * np.abs(theirs).max()
                assert (made[KEPT][row] <= 1 + len(section)).all()
            assert 0 < made[KEPT].sum() < 2 * (3 + sum(map(len, asked)))


def test_no_token_of_what_engines_are_checked_with_is_nearly_kept(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nereid_zoo.layout.component.NEARLY", 0.01)  # of a tenth of all calls some token is so near
    near: list[float] = []

    def note(module: Any, given: Any, logits: Any) -> None:
        near.append(logits.abs().min().item())

    for component in token_components(checkpoint, widths=True).values():
        module = component.load()
        for block in module.transformer.blocks:  # type: ignore[union-attr]
            block.router.register_forward_hook(note)
        for number, (rows, sizes) in enumerate(component.checks, 1):
            with torch.inference_mode():
                module(*random_inputs(component, rows, sizes, number).values())
    assert len(near) == 4 * 4 * 2
    assert min(near) > 0.01


def test_a_row_has_the_same_bytes_and_the_same_tokens_in_any_company(passing: Path) -> None:
    drawer = LayoutDrawer.of(passing)
    least = drawer.model.limits.engine_min_batch_size
    for size in (8, 16, 32):
        asked = [section for section in sections(60) if len(section) <= size][:8]
        tokens = tokens_of(asked, size)
        sample = np.random.default_rng(size).standard_normal((8, size, 4), np.float32)
        inputs = {**tokens.as_inputs(), "timestep": np.linspace(40, 960, 8, dtype=np.float32)[:, None], "sample": sample}
        for engine in engines_of(drawer):
            together = drawer.engines[engine](inputs, ["out_sample", KEPT])
            for start, rows in ((0, least), (3, least), (7, 1), (0, 3), (2, 5)):
                places = np.minimum(np.arange(start, start + max(rows, least)), 7)  # filled up as the loop does
                part = drawer.engines[engine]({name: value[places] for name, value in inputs.items()}, ["out_sample", KEPT])
                for name, value in part.items():
                    assert value.tobytes() == together[name][places].tobytes(), (engine, start, rows, name)


def test_a_whole_run_is_the_same_alone_and_in_company(passing: Path) -> None:
    drawer, asked = LayoutDrawer.of(passing), sections(8)
    table, plain = drawer.table(drawer.model.facts.scheduler, 4), drawer.model.facts.widths
    widths = WHOLE_WITH_TOKENS if plain is None else plain.passing_over_tokens()
    kept: list[float] = []

    def stepped(places: Any, call: Any, outputs: Any) -> None:
        kept.append(float(outputs[KEPT].sum() / (outputs[KEPT].shape[1] * (call.inputs["valid"].sum() + call.rows))))

    together = drawer.draw(asked, list(range(8)), table, widths=widths, stepped=stepped)
    assert 0.2 < np.mean(kept) < 0.95
    if drawer.model.limits.engine_min_batch_size == 1:
        assert [drawer.draw([section], [seed], table, widths=widths)[0] for seed, section in enumerate(asked)] == together
    assert together != drawer.draw(asked, list(range(8)), table, widths=plain)


def test_what_has_no_routers_of_tokens_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"--tokens: .* has no dynamic_transformer/, which `nereid zoo train layout-dynamic`"):
        export_layout(checkpoints.make_layout(tmp_path / "plain"), tmp_path / "out", tokens=True)
    without = checkpoints.make_dynamic_layout(tmp_path / "widths")
    with pytest.raises(ExportError, match=r"dynamic_transformer cannot be used: .* no routers of tokens; train it with `nereid"):
        export_layout(without, tmp_path / "out", tokens=True)
    assert not (tmp_path / "out").exists()


def test_an_engine_whose_rows_depend_on_their_company_is_refused_before_all_others_are_built(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[str] = []
    monkeypatch.setattr("nereid_export.built.batch_invariant_from", lambda component, run, places: tried.append(component.name))
    with pytest.raises(ExportError, match="--tokens: onnxruntime is not allowed here; on this processor a row's bits depend on"):
        export_layout(checkpoint, tmp_path / "out", tokens=True, cache=True, widths=True)
    assert tried == ["layout_transformer", token_components(checkpoint, widths=False)[TokenEngine.WHOLE].name]
    assert not (tmp_path / "out").exists()
