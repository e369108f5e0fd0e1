"""Export of language models for OpenVINO: the same bits in any company, figures of the manifest, refusals."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ov = pytest.importorskip("openvino")

from openvino_llm import IDS, TABLE, engine_of, export, served_logits

from nereid.engines.kv_blocks import Piece
from nereid.engines.openvino_causal import OpenVinoCausalEngine
from nereid.engines.paged_attention import close, layers_of
from nereid.llm.settings import LlmFacts
from nereid_export.errors import ExportError
from nereid_export.frame import Device
from nereid_export.llm import LlmEngine, LlmExportOptions, LlmPrecision
from nereid_export.llm import export_llm as run_export

import checkpoints as make
from conftest import Silent, made_once

pytestmark = pytest.mark.torch


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make.make_llm(tmp_path_factory.mktemp("llm") / "llama", "llama")


@pytest.fixture(scope="module")
def exported(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A repository of the tiny model in that precision."""
    return made_once(tmp_path_factory, lambda out, precision: export(tiny, out, precision))


@pytest.fixture(scope="module", params=["fp32", "int4", "int8"])
def wide(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with matrices of sizes at which kernels are chosen by the number of rows."""
    folder = tmp_path_factory.mktemp(request.param)
    export(make.make_llm(folder / "llama", "llama", hidden_size=256, intermediate_size=672), folder / "out", request.param)
    return folder / "out"


def test_company_and_chunks_do_not_change_a_bit(wide: Path) -> None:
    """Alone or in a batch, beside chunks of prompts, a prompt whole or in chunks, whatever is split into several calls."""
    engine = OpenVinoCausalEngine.load(wide / "llm" / "1" / "model.xml", tokens=2048, threads=2)
    rng = np.random.default_rng(1)
    prompts = [rng.integers(3, 250, length).tolist() for length in (60, 17, 33, 65, 150)]
    tables = [range(1 + 5 * row, 6 + 5 * row) for row in range(7)]

    def fill(row: int, ids: list[int], chunk: int) -> np.ndarray:
        for start in range(0, len(ids), chunk):
            logits = engine.run([Piece(tables[row], start, ids[start : start + chunk])])
        return np.array(logits[0])

    whole = [fill(0, ids, 200) for ids in prompts]
    for chunk in (1, 7, 16, 33):
        assert all(np.array_equal(fill(6, ids, chunk), expected) for ids, expected in zip(prompts, whole, strict=True))
    for row, ids in enumerate(prompts):
        fill(row, ids, 40)
    rows = [Piece(tables[row], len(ids), [5 + row], decoded=True) for row, ids in enumerate(prompts)]
    alone = np.concatenate([engine.run([row]).copy() for row in rows])
    for count in (2, 3, 5):
        assert np.array_equal(engine.run(rows[:count]), alone[:count])
    for length in (1, 2, 31, 150):
        ids = prompts[4][:length]
        beside = engine.run([*rows[:4], Piece(tables[6], 0, ids)]).copy()
        assert np.array_equal(beside[:4], alone[:4])
        assert np.array_equal(beside[4], fill(5, ids, 200))


def test_a_draft_checked_at_once_has_the_logits_of_prompts(exported: Callable[[str], Path]) -> None:
    engine = engine_of(exported("fp32"))
    engine.run([Piece(TABLE, 0, IDS[:40])])
    together = engine.run([Piece(TABLE, 40, IDS[40:45], keep=5)]).copy()
    single = [engine.run([Piece(TABLE, place, [IDS[place]])])[0].copy() for place in range(40, 45)]
    assert np.array_equal(together, np.stack(single))


def test_the_manifest_says_what_the_engine_costs(tmp_path: Path, tiny: Path) -> None:
    manifest = export(tiny, tmp_path / "out", "int4", eight_bit_share=0.3)
    engine = manifest["engine"]
    errors = [item["output_error"] for item in engine["matrices"]]
    assert errors == sorted(errors, reverse=True)
    assert engine["matrices"][0]["matrix"] in engine["eight_bit"]
    assert 0 < engine["logits_error"] < 0.6
    assert engine["perplexity"] > 1
    assert engine["kv_cache_int8"]["logits_error"] == pytest.approx(engine["logits_error"], rel=0.2)
    assert manifest["arguments"]["engine"] == "openvino"
    assert manifest["versions"]["openvino"] == "".join(ov.__version__.split("-")[0])
    facts = LlmFacts.read(tmp_path / "out" / "llm" / "1")
    files = sum((tmp_path / "out" / "llm" / "1" / name).stat().st_size for name in ("model.xml", "model.bin"))
    assert facts.weight_bytes == engine["engine_bytes"] == files
    assert 'key: "engine"\n  value {\n    string_value: "openvino"' in (tmp_path / "out" / "llm" / "config.pbtxt").read_text()


def test_nothing_is_told_to_be_kept_in_8_bits_where_all_is(exported: Callable[[str], Path]) -> None:
    told = {precision: json.loads((exported(precision) / "llm" / "manifest.json").read_text()) for precision in ("int4", "int8")}
    assert told["int4"]["engine"]["eight_bit"]
    assert told["int8"]["engine"]["eight_bit"] == []


def test_a_cache_that_the_memory_cannot_hold_is_a_memory_error(exported: Callable[[str], Path]) -> None:
    with pytest.raises(MemoryError):
        OpenVinoCausalEngine.load(exported("fp32") / "llm" / "1" / "model.xml", tokens=10**14)


def test_an_8_bit_cache_is_told_apart_from_the_exact_one(exported: Callable[[str], Path]) -> None:
    exact, rounded = engine_of(exported("fp32")), engine_of(exported("fp32"), batch_invariant=False, kv_cache_precision="int8")
    assert rounded.block_bytes < 0.5 * exact.block_bytes
    expected, made = (served_logits(engine, IDS, decoded=4) for engine in (exact, rounded))
    assert 1e-6 < np.linalg.norm(made - expected) / np.linalg.norm(expected) < 0.02


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"device": Device.CUDA}, "--device: cuda is not allowed with --engine openvino; it must be cpu"),
        ({"precision": "fp16"}, "--precision: fp16 is not allowed with --engine openvino; it must be fp32, int8 or int4"),
        (
            {"precision": "int4", "block_size": 64},
            "--block-size: 64 .* llama's intermediate_size is 96; it must be 16 or 32",
        ),
    ],
)
def test_what_the_engine_cannot_do_is_refused(tmp_path: Path, tiny: Path, options: dict[str, Any], words: str) -> None:
    with pytest.raises(ExportError, match=words):
        export(tiny, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_a_graph_that_is_not_pytorchs_is_not_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from nereid.engines.paged_attention import Attention
    from nereid_export import llm_ir

    checkpoint = make.make_llm(tmp_path / "mistral", "mistral", sliding_window=16)
    seen_whole = Attention(kv_heads=2, head_size=16, scale=0.25)
    monkeypatch.setattr(llm_ir, "_attention_of", lambda attention, config: seen_whole)
    with pytest.raises(ExportError, match=r"relative error .* nothing was published"):
        export(checkpoint, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_export_and_serving_send_nothing(tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from openvino_telemetry.utils.sender import TelemetrySender

    sent: list[object] = []
    monkeypatch.setattr(TelemetrySender, "send", lambda self, *message: sent.append(message))
    export(tiny, tmp_path / "out", "int8")
    served_logits(engine_of(tmp_path / "out"), IDS[:4], decoded=1)
    assert sent == []


def test_a_signal_finds_no_stack_of_an_engine_that_is_gone(exported: Callable[[str], Path]) -> None:
    code = f"""
import os, signal
from pathlib import Path
from nereid.engines.openvino_causal import OpenVinoCausalEngine
file = Path({str(exported("fp32") / "llm" / "1" / "model.xml")!r})
first, second = (OpenVinoCausalEngine.load(file, tokens=64, threads=1) for _ in range(2))
del first, second
signal.signal(signal.SIGTERM, lambda *_: None)
os.kill(os.getpid(), signal.SIGTERM)
"""
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0


def test_a_draft_model_comes_with_the_large_one(tmp_path: Path, tiny: Path) -> None:
    manifest = export(tiny, tmp_path / "out", draft=make.make_llm(tmp_path / "qwen3", "qwen3"))
    folder = tmp_path / "out" / "llm" / "1"
    assert manifest["draft"]["source"]["architecture"] == "Qwen3ForCausalLM"
    graphs = [ov.Core().read_model(place / "model.xml") for place in (folder, folder / "draft")]
    assert [layer.head_size for graph in graphs for layer in layers_of(graph)] == [16] * 4
    assert {f"llm/1/draft/{file.name}" for file in (folder / "draft").iterdir()} <= set(manifest["files"])
    assert {file.name for file in (folder / "draft").iterdir()} == {"model.xml", "model.bin"}


def test_an_interrupted_export_resumes_with_the_same_engine_alone(
    tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("nereid_export.llm.publish", interrupt)
    said = []
    for engine in (LlmEngine.OPENVINO, LlmEngine.OPENVINO, LlmEngine.ONNXRUNTIME):
        watcher = Silent()
        options = LlmExportOptions(checkpoint=tiny, out=tmp_path / "out", precision=LlmPrecision.FP32, engine=engine)
        with pytest.raises(KeyboardInterrupt):
            run_export(options, watcher)
        said.append("built before" in watcher.said)
    assert said == [False, True, False]


def test_a_graph_that_export_did_not_write_is_refused(tmp_path: Path) -> None:
    from openvino import opset13 as ops

    given = ops.parameter([1], np.float32)
    ov.save_model(ov.Model([ops.result(given)], [given], "other"), tmp_path / "model.xml")
    with pytest.raises(ValueError, match="the graph lacks nereid/attention"):
        close(ov.Core().read_model(tmp_path / "model.xml"))
    (tmp_path / "broken.xml").write_text("<net>")
    with pytest.raises(ValueError, match=r"broken\.xml: OpenVINO .* cannot load it"):
        OpenVinoCausalEngine.load(tmp_path / "broken.xml", tokens=64)
