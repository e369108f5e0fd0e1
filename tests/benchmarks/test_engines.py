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
from nereid_export.engines import BUILDERS, Engine
from nereid_export.engines.precision import Precision

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
    [(["--models", "sd3"], "'sd3' is not a model"), (["--only", "vllm"], "'vllm' is not measured")],
)
def test_what_is_not_there_is_refused_by_name(arguments: list[str], sentence: str) -> None:
    result = CliRunner().invoke(app, ["engines", *arguments])
    assert result.exit_code == 2
    assert sentence in result.output.replace("\n", " ").replace("│", "").replace("  ", " ")
