"""Large runs of an ONNX session give their memory back, small ones keep it; the results are the same."""

from __future__ import annotations

import gc
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from nereid.engines.arena import Arena, peak_bytes, reset_peak
from nereid.engines.onnx_options import SHRINKAGE
from nereid.engines.onnx_session import OnnxModel

onnx = pytest.importorskip("onnx")

MIB = 2**20


@dataclass(frozen=True)
class Started:
    """Start arguments of a model in `version_folder`."""

    version_folder: Path
    parameters: dict[str, str] = field(default_factory=dict)
    name: str = "sums"
    instance_kind: str = "CPU"
    device_id: int = 0

    @property
    def config(self) -> dict[str, Any]:
        tensor = {"data_type": "TYPE_FP32"}
        return {
            "max_batch_size": 8,
            "input": [{"name": "x", "dims": [-1], **tensor}],
            "output": [{"name": "y", "dims": [1], **tensor}],
        }


@pytest.fixture
def started(tmp_path: Path) -> Started:
    """A model whose run holds 64 times its input: outer products, summed."""
    from onnx import TensorProto, helper

    nodes = [
        helper.make_node("Unsqueeze", ["x", "last"], ["column"]),
        helper.make_node("Mul", ["column", "wide"], ["product"]),
        helper.make_node("Exp", ["product"], ["grown"]),
        helper.make_node("ReduceSum", ["grown", "last"], ["rows"], keepdims=0),
        helper.make_node("ReduceSum", ["rows", "first"], ["y"], keepdims=1),
    ]
    constants = {"last": np.array([2]), "first": np.array([1]), "wide": np.full((1, 1, 64), 1e-3, np.float32)}
    graph = helper.make_graph(
        nodes,
        "sums",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", "size"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 1])],
        [onnx.numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.save(model, str(tmp_path / "model.onnx"))
    return Started(tmp_path)


def held() -> int:
    gc.collect()
    return reset_peak()


def values(size: int) -> dict[str, np.ndarray]:
    return {"x": np.full((1, size), 0.5, np.float32)}


LARGE = 2_000_000  # 64 x 8 MB, twice over


def test_memory_of_large_runs_is_given_back(started: Started) -> None:
    model = OnnxModel.load(started)
    model.run([values(1000)])
    before = held()
    for _ in range(3):
        model.run([values(LARGE)])
        assert peak_bytes() - before > 256 * MIB
        assert held() - before < 128 * MIB


def test_without_that_it_would_be_kept(started: Started) -> None:
    model = OnnxModel.load(started)
    before = held()
    model.session.run(model.outputs, values(LARGE))
    assert held() - before > 256 * MIB


def test_small_runs_keep_theirs_and_results_are_the_same(started: Started) -> None:
    model = OnnxModel.load(started)
    sizes = (1000, 200_000, LARGE, 200_000, 1000)
    results = [made["y"] for size in sizes for made in model.run([values(size)])]  # type: ignore[index, call-overload, union-attr]
    plain = [model.session.run(["y"], values(size))[0] for size in sizes]
    assert all(np.array_equal(ours, theirs) for ours, theirs in zip(results, plain, strict=True))
    assert model.arena is not None
    assert {shapes[0][1]: large for shapes, large in model.arena._large.items()} == {1000: False, 200_000: False, LARGE: True}


def test_what_counts_as_large_is_one_bound(started: Started) -> None:
    session = ort.InferenceSession(str(started.version_folder / "model.onnx"), providers=["CPUExecutionProvider"])
    for keep, large in ((16 * MIB, True), (512 * MIB, False)):
        arena = Arena(keep_bytes=keep)
        arena.run(session, ["y"], values(200_000))
        assert list(arena._large.values()) == [large]


def test_a_run_that_takes_memory_freed_before_is_seen(started: Started) -> None:
    session = ort.InferenceSession(str(started.version_folder / "model.onnx"), providers=["CPUExecutionProvider"])
    freed = [np.ones(2 * MIB) for _ in range(3)] + [np.ones(MIB) for _ in range(40)] + [np.ones(1000) for _ in range(100)]
    del freed[:-1]  # the C library now takes blocks of up to 16 MB from its heap, and holds 320 MB there
    arena = Arena(keep_bytes=64 * MIB)
    arena.run(session, ["y"], values(400_000))
    assert list(arena._large.values()) == [True]


def test_the_parameter_of_tritons_backend_holds_for_every_run(started: Started) -> None:
    model = OnnxModel.load(Started(started.version_folder, {SHRINKAGE: "cpu:0"}))
    model.run([values(1000)])  # ONNX Runtime keeps the arena's first region, which holds a real model's weights
    before = held()
    model.run([values(200_000)])
    model.run([values(1000)])  # what an answer lies in is given back by the run after
    assert held() - before < 16 * MIB
    assert model.arena is not None
    assert not model.arena._large


def test_a_device_that_is_none_is_refused(started: Started) -> None:
    with pytest.raises(ValueError, match=f"parameter {SHRINKAGE}: 'always' is not allowed"):
        OnnxModel.load(Started(started.version_folder, {SHRINKAGE: "always"}))
