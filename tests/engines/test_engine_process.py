"""An engine in a process of its own: calls, failures, deaths."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nereid.engines.digests import MANIFEST, MANIFEST_VERSION
from nereid.engines.engine_process import EngineProcess
from nereid.engines.worker import WorkerOptions
from nereid.flow.errors import EngineError, LostError

from waiting import until

onnx = pytest.importorskip("onnx")
from onnx import TensorProto, helper


def write_doubler(folder: Path) -> Path:
    """`twice` = 2 x `value`, rows x 3."""
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["rows", 3]) for name in ("value", "twice")]
    graph = helper.make_graph([helper.make_node("Add", ["value", "value"], ["twice"])], "doubler", ports[:1], ports[1:])
    folder.mkdir(parents=True)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    onnx.save(model, str(folder / "model.onnx"))
    return folder / "model.onnx"


def options(file: Path, **changes: Any) -> WorkerOptions:
    settings = {
        "file": str(file),
        "engine": "onnxruntime",
        "threads": 1,
        "outputs": ["twice"],
        "warm_up": [{"value": ["float32", [1, 3]]}],
        **changes,
    }
    return WorkerOptions(function="nereid.engines.engine_process_main:run", name="doubler", settings=settings)


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[EngineProcess]:
    process = EngineProcess(options(write_doubler(tmp_path / "doubler" / "1")))
    process.wait_ready()
    yield process
    process.stop()


def twice(engine: EngineProcess, value: float, rows: int = 2) -> np.ndarray:
    made = engine.call({"value": np.full((rows, 3), value, np.float32)}, ["twice"]).result(30)
    return made["twice"]


def test_each_call_gets_its_own_answer(engine: EngineProcess) -> None:
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda number: twice(engine, number, rows=1 + number % 3), range(40)))
    assert [(value.shape, float(value[0, 0])) for value in made] == [((1 + n % 3, 3), 2.0 * n) for n in range(40)]


def test_a_call_that_fails_is_its_own_error_and_the_process_lives(engine: EngineProcess) -> None:
    pid = engine.pid
    with pytest.raises(EngineError, match="doubler: "):
        engine.call({"value": np.zeros((2, 4), np.float32)}, ["twice"]).result(30)
    assert twice(engine, 1)[0, 0] == 2
    assert engine.pid == pid


def test_a_death_fails_what_is_inside_and_the_next_process_answers(tmp_path: Path) -> None:
    deaths: list[int] = []
    process = EngineProcess(options(write_doubler(tmp_path / "doubler" / "1")), lambda: deaths.append(1))
    process.wait_ready()
    pid = process.pid
    assert pid is not None
    try:
        os.kill(pid, signal.SIGSTOP)  # so that the call is inside
        inside = process.call({"value": np.zeros((1, 3), np.float32)}, ["twice"])
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(LostError, match=r"the engine's process ended \(signal 9\)"):
            inside.result(30)
        assert process.down_since is not None
        with pytest.raises(LostError, match="is being replaced"):
            process.call({"value": np.zeros((1, 3), np.float32)}, ["twice"]).result(0)
        until(lambda: process.down_since is None)
        assert twice(process, 3)[0, 0] == 6
        assert process.pid != pid
        assert deaths == [1]
    finally:
        process.stop()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, r"model\.onnx cannot be loaded"),
        ({"warm_up": [{"value": ["float32", [1, 4]]}]}, "doubler: the engine does not run"),
    ],
)
def test_what_does_not_load_or_run_is_told_before_anybody_asks(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    file = write_doubler(tmp_path / "doubler" / "1")
    if not changes:
        file.write_text("no engine")
    process = EngineProcess(options(file, **changes))
    with pytest.raises(ValueError, match=said):
        process.wait_ready()


def test_nothing_is_loaded_that_differs_from_its_digest(tmp_path: Path) -> None:
    file = write_doubler(tmp_path / "doubler" / "1")
    manifest = {"version": MANIFEST_VERSION, "models": ["doubler"], "files": {"doubler/1/model.onnx": "0" * 64}}
    (tmp_path / "doubler" / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match=r"model\.onnx"):
        EngineProcess(options(file)).wait_ready()


def test_openvino_runs_the_same_graph(tmp_path: Path) -> None:
    ov = pytest.importorskip("openvino")
    file = write_doubler(tmp_path / "doubler" / "1")
    ov.save_model(ov.Core().read_model(file), file.with_suffix(".xml"), compress_to_fp16=False)
    process = EngineProcess(options(file.with_suffix(".xml"), engine="openvino"))
    process.wait_ready()
    try:
        assert twice(process, 2)[1, 2] == 4
    finally:
        process.stop()
