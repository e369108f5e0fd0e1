"""`nereid export llm --engine auto`: what is built, what is measured, and what is served."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

pytest.importorskip("torch")
pytest.importorskip("openvino")

from nereid.llm.engine import KvMemory
from nereid.llm.loading import load_model
from nereid.llm.settings import LlmFacts, LlmLimits
from nereid_export import llm_auto
from nereid_export.cli import app
from nereid_export.configs import read_config
from nereid_export.errors import ExportError
from nereid_export.frame import MANIFEST, Device
from nereid_export.llm import BUILDERS, LlmEngine, LlmExportOptions
from nereid_export.llm_openvino import OpenVinoBuilder

from checkpoints import make_llm
from conftest import export_llm

pytestmark = pytest.mark.torch


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_llm(tmp_path_factory.mktemp("llama") / "llama", "llama")


def prefer(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Time the engines as if the one with this memory were twice as fast."""

    def milliseconds(memory: KvMemory, facts: LlmFacts, rows: int) -> float:
        return rows * (1.0 if type(memory).__name__ == kind else 2.0)

    monkeypatch.setattr(llm_auto, "_milliseconds", milliseconds)


@pytest.mark.parametrize(("memory", "engine"), [("KvRows", "onnxruntime"), ("KvBlocks", "openvino")])
def test_the_fastest_engine_is_served_and_the_table_has_both(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, memory: str, engine: str
) -> None:
    prefer(memory, monkeypatch)
    manifest: dict[str, Any] = export_llm(llama, tmp_path / "out", engine=LlmEngine.AUTO, step_rows=(1, 2))
    folder = tmp_path / "out" / "llm"
    parameters = read_config(folder / "config.pbtxt").parameters
    assert parameters["engine"].string_value == engine
    assert int(parameters["max_rows"].string_value) == BUILDERS[LlmEngine(engine)].max_rows
    assert (manifest["arguments"]["engine"], manifest["engine"]["engine"]) == ("auto", engine)
    rows = {row["engine"]: row for row in manifest["candidates"]["llm"]}
    assert set(rows) == {"onnxruntime", "openvino"}
    assert {name: row["chosen"] for name, row in rows.items()} == {name: name == engine for name in rows}
    assert rows[engine]["milliseconds"] == {"1": 1.0, "2": 2.0}
    assert all(row["bytes"] and row["error"] for row in rows.values())
    load_model(folder / "1", LlmFacts.read(folder / "1"), LlmLimits(engine=engine, kv_tokens=512), None)
    left = {LlmEngine.ONNXRUNTIME: "model.xml", LlmEngine.OPENVINO: "model.onnx"}[LlmEngine(engine)]
    assert not (folder / "1" / left).exists()
    assert json.loads((folder / MANIFEST).read_text()) == manifest


def test_engines_are_timed_as_the_server_calls_them(llama: Path, tmp_path: Path) -> None:
    manifest: dict[str, Any] = export_llm(llama, tmp_path / "out", engine=LlmEngine.AUTO, step_rows=(1, 3))
    for row in manifest["candidates"]["llm"]:
        assert set(row["milliseconds"]) == {"1", "3"}
        assert all(took > 0 for took in row["milliseconds"].values())


def test_an_engine_that_cannot_compute_the_model_loses_with_its_reason(tmp_path: Path) -> None:
    gemma = make_llm(tmp_path / "gemma2", "gemma2", attn_logit_softcapping=30.0)
    manifest: dict[str, Any] = export_llm(gemma, tmp_path / "out", engine=LlmEngine.AUTO, step_rows=(1,))
    rows = {row["engine"]: row for row in manifest["candidates"]["llm"]}
    assert rows["onnxruntime"]["chosen"]
    assert "attn_logit_softcapping" in rows["openvino"]["dropped"]


def test_an_engine_that_fails_its_check_loses_with_its_reason(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise ExportError("the logits differ; nothing was published")

    monkeypatch.setattr(OpenVinoBuilder, "build", broken)
    manifest: dict[str, Any] = export_llm(llama, tmp_path / "out", engine=LlmEngine.AUTO, step_rows=(1,))
    rows = {row["engine"]: row for row in manifest["candidates"]["llm"]}
    assert (rows["onnxruntime"]["chosen"], rows["openvino"]["dropped"]) == (True, "the logits differ")


def test_a_full_disk_ends_the_export_whichever_engine_meets_it(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(OpenVinoBuilder, "build", full)
    with pytest.raises(ExportError, match="the disk is full; nothing was published"):
        export_llm(llama, tmp_path / "out", engine=LlmEngine.AUTO, step_rows=(1,))
    assert not (tmp_path / "out").exists()


def test_without_any_engine_every_reason_is_named(llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise ExportError("it is not installed")

    for builder in BUILDERS.values():
        monkeypatch.setattr(type(builder), "check", refuse)
    with pytest.raises(ExportError, match="--engine auto has no engine for this model here: it is not installed"):
        export_llm(llama, tmp_path / "out", engine=LlmEngine.AUTO)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"engine": LlmEngine.AUTO, "device": Device.CUDA}, "--device: cuda is not allowed with --engine auto; it must be cpu"),
        ({"step_rows": (2,)}, "--step-rows is not allowed with --engine onnxruntime; .* the engine be auto"),
        ({"engine": LlmEngine.AUTO, "step_rows": (1, 257)}, "--step-rows: 257 is not allowed; it must be 1 to 256"),
    ],
)
def test_options_that_do_not_go_together_are_refused(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ExportError, match=sentence):
        LlmExportOptions(checkpoint=Path("c"), out=Path("o"), **options).check()


def test_rows_that_are_no_numbers_are_one_sentence_on_the_command_line(llama: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = CliRunner().invoke(app, ["llm", str(llama), "--engine", "auto", "--step-rows", "1,0", "--out", str(out)])
    assert result.exit_code == 1
    assert "error: --step-rows: '0' is not allowed; it must be whole numbers above 0" in " ".join(result.output.split())
    assert "Traceback" not in result.output
    assert not out.exists()
