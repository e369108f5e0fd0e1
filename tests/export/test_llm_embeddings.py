"""`nereid export llm --embeddings`: both engines give transformers' last hidden states, whatever the chunks and the company."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

pytest.importorskip("openvino")

from openvino_llm import engine_of as openvino_engine
from peft_adapters import loaded, make_adapter, named

from nereid.engines.kv_blocks import Piece
from nereid.engines.onnx_causal import OnnxCausalEngine
from nereid.engines.openvino_causal import OpenVinoCausalEngine
from nereid_export.errors import ExportError
from nereid_export.llm import LlmEngine
from nereid_export.llm_figures import compare_states
from nereid_export.shown import show_llm

import checkpoints as make
from conftest import export_llm, made_once

pytestmark = pytest.mark.torch

IDS = [int(token) for token in np.random.default_rng(2).integers(3, 250, 90)]
BOTH = list(LlmEngine)[:2]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make.make_llm(tmp_path_factory.mktemp("llm") / "llama", "llama")


@pytest.fixture(scope="module")
def exported(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The tiny model, by engine and precision."""

    def make_it(out: Path, kind: str) -> object:
        engine, precision = kind.split("-")
        return export_llm(tiny, out, precision, engine=LlmEngine(engine), embeddings=True)

    return made_once(tmp_path_factory, make_it)


def onnx_engine(repository: Path) -> OnnxCausalEngine:
    engine = OnnxCausalEngine.load(repository / "llm" / "1" / "model.onnx", tokens=2048, threads=1)
    engine.arrange(3, 256)
    return engine


def states_of(model: Path, ids: list[int]) -> np.ndarray:
    import torch
    from transformers import AutoModelForCausalLM

    with torch.no_grad():
        found = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval().model(torch.tensor([ids]))
    return np.asarray(found.last_hidden_state[0].numpy())


@pytest.mark.parametrize("engine", BOTH)
@pytest.mark.parametrize("family", ["qwen3", "phi3", "gemma", "gemma3", "smollm3"])
def test_each_family_gives_transformers_last_hidden_states(tmp_path: Path, family: str, engine: LlmEngine) -> None:
    checkpoint = make.make_llm(tmp_path / family, family)
    manifest: Any = export_llm(checkpoint, tmp_path / "out", "fp32", engine=engine, embeddings=True)
    assert manifest["engine"]["states_error"] < 1e-5
    assert manifest["engine"]["embedding_error"] < 1e-5
    assert manifest["arguments"]["embeddings"] == "True"
    width = json.loads((checkpoint / "config.json").read_text())["hidden_size"]
    assert json.loads((tmp_path / "out" / "llm" / "1" / "llm.json").read_text())["embedding_width"] == width
    if engine is LlmEngine.ONNXRUNTIME:
        found = onnx_engine(tmp_path / "out").read_states(0, 0, IDS[:40])
    else:
        piece = Piece(range(1, 9), 0, IDS[:40], keep=0, states=True)
        found = openvino_engine(tmp_path / "out").run_with_states([piece])[1]
    np.testing.assert_allclose(found, states_of(checkpoint, IDS[:40]), atol=2e-5)


@pytest.mark.parametrize("precision", ["fp32", "int8", "int4"])
def test_chunks_do_not_change_a_bit_of_onnx_runtimes_states(exported: Callable[[str], Path], precision: str) -> None:
    engine = onnx_engine(exported(f"onnxruntime-{precision}"))
    whole = engine.read_states(0, 0, IDS).copy()
    logits = engine.extend(0, 0, IDS, keep=3).copy()
    for size in (1, 7, 33, 64):
        parts = [engine.read_states(1, start, IDS[start : start + size]).copy() for start in range(0, len(IDS), size)]
        assert np.array_equal(np.concatenate(parts), whole)
    assert np.array_equal(engine.extend(1, 0, IDS, keep=3), logits)  # the row's other call is as it was


@pytest.mark.parametrize("precision", ["fp32", "int8", "int4"])
def test_chunks_and_company_do_not_change_a_bit_of_openvinos_states(exported: Callable[[str], Path], precision: str) -> None:
    engine = openvino_engine(exported(f"openvino-{precision}"))
    table, other, third = (1, 2, 3), (4, 5), (6,)

    def piece(start: int, end: int) -> Piece:
        return Piece(table, start, IDS[start:end], keep=0, states=True)

    logits, whole = engine.run_with_states([piece(0, 90)])
    assert logits.shape == (0, engine.vocabulary)
    whole = whole.copy()
    alone = engine.run([Piece(other, 0, IDS[:50], keep=2)]).copy()
    for size in (1, 7, 33):
        parts = []
        for start in range(0, 90, size):
            company = [Piece(other, 0, IDS[:50], keep=2), piece(start, min(90, start + size)), Piece(third, 0, [5], decoded=True)]
            logits, states = engine.run_with_states(company)
            assert np.array_equal(logits[:2], alone)
            assert logits.shape == (3, engine.vocabulary)
            parts.append(states.copy())
        assert np.array_equal(np.concatenate(parts), whole)


def test_states_of_a_call_that_is_split_are_all_there(exported: Callable[[str], Path]) -> None:
    engine = openvino_engine(exported("openvino-fp32"))
    pieces = [Piece((1, 2, 3), 0, IDS, keep=0, states=True), Piece((4,), 0, IDS[:20], keep=1)]
    logits, states = (made.copy() for made in engine.run_with_states(pieces))
    engine.call_tokens = 16
    again = engine.run_with_states(pieces)
    assert np.array_equal(again[0], logits)
    assert np.array_equal(again[1], states)


@pytest.mark.parametrize("engine", BOTH)
def test_adapters_have_states_of_their_own_and_a_draft_has_none(tiny: Path, tmp_path: Path, engine: LlmEngine) -> None:
    import torch
    from peft import PeftModel

    adapter = make_adapter(tiny, tmp_path / "sql")
    export_llm(tiny, tmp_path / "out", "fp32", engine=engine, embeddings=True, adapters=named(sql=adapter), draft=tiny)
    with torch.no_grad():
        model = PeftModel.from_pretrained(loaded(tiny), adapter).eval().get_base_model()
        wanted = model.model(torch.tensor([IDS[:40]])).last_hidden_state[0].numpy()
    if engine is LlmEngine.ONNXRUNTIME:
        made = onnx_engine(tmp_path / "out")
        own, plain = (made.read_states(0, 0, IDS[:40], adapter=number).copy() for number in (1, 0))
        draft = OnnxCausalEngine.load(tmp_path / "out" / "llm" / "1" / "draft" / "model.onnx", tokens=64)
        assert draft.states_width == 0
    else:
        served = openvino_engine(tmp_path / "out")
        pieces = [Piece((1, 2), 0, IDS[:40], keep=0, adapter=1, states=True), Piece((3, 4), 0, IDS[:40], keep=0, states=True)]
        own, plain = np.split(served.run_with_states(pieces)[1], 2)
        draft = OpenVinoCausalEngine.load(tmp_path / "out" / "llm" / "1" / "draft" / "model.xml", tokens=64)
        assert draft.states_width == 0
    np.testing.assert_allclose(own, wanted, atol=2e-5)
    np.testing.assert_allclose(plain, states_of(tiny, IDS[:40]), atol=2e-5)
    assert np.abs(own - plain).max() > 0.01


def test_what_rounding_costs_is_told(exported: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = json.loads((exported("openvino-int8") / "llm" / "manifest.json").read_text())
    error = manifest["engine"]["embedding_error"]
    assert 1e-4 < error < 0.1
    show_llm(manifest, tmp_path)
    assert f"embeddings: the mean of the sample's last hidden states differs by {error:.1e}" in capsys.readouterr().out


def test_an_export_without_the_option_keeps_none(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    show_llm(export_llm(tiny, tmp_path / "out", "fp32"), tmp_path)
    assert "embeddings" not in capsys.readouterr().out
    model = onnx.load(str(tmp_path / "out" / "llm" / "1" / "model.onnx"), load_external_data=False)
    assert "hidden_states" not in {output.name for output in model.graph.output}
    assert json.loads((tmp_path / "out" / "llm" / "1" / "llm.json").read_text())["embedding_width"] == 0
    assert onnx_engine(tmp_path / "out").states_width == 0


def test_states_that_are_not_pytorchs_are_not_published() -> None:
    states = np.ones((3, 4), np.float32)
    assert compare_states(states, states, states * 1.5, 1e-4)["states_error"] == pytest.approx(0.5)
    with pytest.raises(
        ExportError, match=r"--embeddings: relative error 0\.01 of the last hidden states .* nothing was published"
    ):
        compare_states(states, states * 1.01, states, 1e-4)
