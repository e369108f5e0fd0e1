"""`nereid bench engines`: every engine asked for is built, measured in a process of its own, and told with its error."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

pytest.importorskip("torch")
from nereid_bench import engines as module
from nereid_bench.cli import app
from nereid_bench.engines import EnginesPlan, engines
from nereid_bench.optimum_cli import IMAGES, converted
from nereid_export.engines import BUILDERS, Engine
from nereid_export.engines.precision import Precision
from nereid_export.errors import ExportError

pytestmark = pytest.mark.torch


def test_engines_and_peers_are_measured_by_rows(
    checkpoints: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MODELS", {"tiny": 32})
    monkeypatch.setattr(module, "_checkpoint", lambda *_: checkpoints["sd"])
    quick = (Precision.FP32, Precision.FP16, Precision.BF16, Precision.INT8_WEIGHTS)
    for engine in (Engine.ONNXRUNTIME, Engine.OPENVINO):
        kind = type(BUILDERS[engine])
        monkeypatch.setattr(kind, "precisions", tuple(one for one in kind.precisions if one in quick))
    said: list[str] = []
    only = ("onnxruntime", "openvino", "diffusers")
    plan = EnginesPlan(work=tmp_path, models=("tiny",), rows=(1, 2), rounds=1, seconds=0.01, only=only)
    found = engines(plan, said.append)
    kinds = {(row["engine"], row["precision"]) for row in found}
    assert {("onnxruntime", "fp32"), ("onnxruntime", "fp16"), ("openvino", "fp32"), ("diffusers", "fp32")} <= kinds
    assert {("onnxruntime", "int8-weights"), ("openvino", "int8-weights")} <= kinds
    assert ("openvino", "bf16") in kinds or any("openvino bf16 is left out" in line for line in said)
    for kind in kinds:
        rows = [row for row in found if (row["engine"], row["precision"]) == kind]
        assert [row["rows"] for row in rows] == [1, 2]
        assert all(row["ms"] > 0 and row["load_seconds"] > 0 for row in rows)
    errors = {(row["engine"], row["precision"]): row["error"] for row in found}
    assert errors["onnxruntime", "fp32"] < 1e-4 < errors["onnxruntime", "fp16"]
    assert errors["diffusers", "fp32"] is None
    built = [line for line in said if line.startswith("building")]
    assert engines(replace(plan, only=("onnxruntime",), rows=(1,)), said.append)
    assert [line for line in said if line.startswith("building")] == built  # not built twice


def test_a_turn_that_dies_is_said_and_left_out(
    checkpoints: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MODELS", {"tiny": 32})
    monkeypatch.setattr(module, "_checkpoint", lambda *_: checkpoints["sd"])
    monkeypatch.setattr(module.sys, "executable", "/bin/false")
    said: list[str] = []
    plan = EnginesPlan(work=tmp_path, models=("tiny",), rows=(1,), rounds=1, only=("diffusers",))
    assert engines(plan, said.append) == []
    assert any("diffusers fp32 did not run to its end" in line for line in said)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--models", "sd3"], "'sd3' is not a model"),
        (["--only", "vllm"], "'vllm' is not measured"),
        (["--only", "auto"], "'auto' is not measured"),
        (["--precisions", "fp8"], "'fp8' is not a precision"),
    ],
)
def test_what_is_not_there_is_refused_by_name(arguments: list[str], sentence: str) -> None:
    result = CliRunner().invoke(app, ["engines", *arguments])
    assert result.exit_code == 2
    assert sentence in result.output.replace("\n", " ").replace("│", "").replace("  ", " ")


def test_a_transformer_is_built_and_measured_without_a_checkpoint(tmp_path: Path) -> None:
    said: list[str] = []
    plan = EnginesPlan(
        work=tmp_path, models=("transformer",), rows=(1,), rounds=1, seconds=0.01, only=("onnxruntime",), precisions=("fp32",)
    )
    (row,) = engines(plan, said.append)
    assert (row["model"], row["engine"], row["precision"], row["rows"]) == ("transformer", "onnxruntime", "fp32", 1)
    assert 1e-8 < row["error"] < 1e-4
    assert row["ms"] > 0


def test_the_command_that_makes_openvino_genais_models_is_run_once_and_its_failure_is_one_sentence(tmp_path: Path) -> None:
    cli, log = tmp_path / "optimum-cli", tmp_path / "log"
    cli.write_text(f'#!/bin/sh\necho "$@" >> {log}\nfor last; do :; done\nmkdir "$last"\n')
    cli.chmod(0o700)
    converted(tmp_path / "checkpoint", tmp_path / "none", None, *IMAGES)
    for _ in range(2):
        converted(tmp_path / "checkpoint", tmp_path / "made", cli, *IMAGES)
    (line,) = log.read_text().splitlines()
    assert line == f"export openvino -m {tmp_path}/checkpoint {' '.join(IMAGES)} {tmp_path}/made.new"
    assert (tmp_path / "made").is_dir()
    cli.write_text("#!/bin/sh\nfor last; do :; done\nmkdir \"$last\"\necho 'Traceback' >&2\necho 'no such model' >&2\nexit 3\n")
    with pytest.raises(ExportError, match=r"--optimum-cli: .* could not convert .*: no such model"):
        converted(tmp_path / "checkpoint", tmp_path / "other", cli, *IMAGES)
    with pytest.raises(ExportError, match=r"--optimum-cli: .*/absent cannot be run: no such file or directory"):
        converted(tmp_path / "checkpoint", tmp_path / "other", tmp_path / "absent", *IMAGES)
    assert not (tmp_path / "other").exists()  # half a model is not taken for one the next time


def test_openvino_genai_is_left_out_by_name_where_it_is_not(
    checkpoints: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MODELS", {"tiny": 32})
    monkeypatch.setattr(module, "_checkpoint", lambda *_: checkpoints["sd"])
    said: list[str] = []
    plan = EnginesPlan(work=tmp_path, models=("tiny",), rows=(1,), rounds=1, only=("openvino-genai",))
    assert engines(plan, said.append) == []
    assert said == ["openvino-genai is left out: it needs `pip install -e './benchmarks[openvino-genai]'` and --optimum-cli"]
