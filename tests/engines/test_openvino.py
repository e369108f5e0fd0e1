"""The stand-in for Triton's OpenVINO backend: what of a config it takes, refuses by name, and makes of requests."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ov = pytest.importorskip("openvino")
import openvino.opset13 as ops

from nereid.engines.compile_cache import CACHE_FOLDER, choose_folder
from nereid.engines.digests import sign
from nereid.engines.openvino_model import OpenVinoModel, computes_bf16
from nereid.engines.openvino_options import properties
from nereid.engines.served_model import warm_up
from nereid.flow.errors import EngineError, InvalidRequestError

WIDTH = 64


@dataclass(frozen=True)
class Started:
    """Start arguments of a model in `version_folder`."""

    version_folder: Path
    parameters: dict[str, str] = field(default_factory=dict)
    max_batch_size: int = 0
    changes: dict[str, Any] = field(default_factory=dict)
    name: str = "sums"
    instance_kind: str = "CPU"
    device_id: int = 0

    @property
    def config(self) -> dict[str, Any]:
        lead = [] if self.max_batch_size else [-1]
        return {
            "max_batch_size": self.max_batch_size,
            "input": [{"name": "x", "dims": [*lead, WIDTH], "data_type": "TYPE_FP32"}],
            "output": [{"name": "y", "dims": [*lead, WIDTH], "data_type": "TYPE_FP32"}],
            **self.changes,
        }


@pytest.fixture(scope="module")
def weights() -> np.ndarray:
    return np.random.default_rng(1).standard_normal((WIDTH, WIDTH)).astype(np.float32)


def save(made: Path, weights: np.ndarray, *names: str) -> Path:
    """A product with `weights`; its input has these names."""
    x = ops.parameter(ov.PartialShape([-1, WIDTH]), ov.Type.f32, name="x")
    x.output(0).set_names(set(names))
    y = ops.matmul(x, ops.constant(weights), False, False)
    y.output(0).set_names({"y"})
    model = ov.Model([ops.result(y)], [x], "sums")
    ov.save_model(model, made / "model.xml", compress_to_fp16=False)
    return made


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, weights: np.ndarray) -> Path:
    return save(tmp_path_factory.mktemp("ir"), weights, "x")


def rows(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, WIDTH)).astype(np.float32)


def test_requests_of_any_rows_are_run_each_by_itself(folder: Path, weights: np.ndarray) -> None:
    model = OpenVinoModel.load(Started(folder))
    asked = [rows(1, 1), rows(5, 2), rows(3, 3)]
    made = model.run([{"x": x} for x in asked])
    for x, result in zip(asked, made, strict=True):
        assert isinstance(result, dict)
        np.testing.assert_allclose(result["y"], x @ weights, rtol=1e-4, atol=1e-4)
    again = model.run([{"x": rows(5, 4)}])[0]
    assert isinstance(again, dict)
    assert isinstance(made[1], dict)
    assert not np.array_equal(made[1]["y"], again["y"])  # results are copies, not the request's memory


def test_a_tensor_of_several_names_has_the_configs(weights: np.ndarray, tmp_path: Path) -> None:
    """An ONNX graph's input that is cast at once has the cast's name too."""
    made = OpenVinoModel.load(Started(save(tmp_path, weights, "x", "/Cast_output_0"))).run([{"x": rows(2)}])[0]
    assert isinstance(made, dict)
    np.testing.assert_allclose(made["y"], rows(2) @ weights, rtol=1e-4, atol=1e-4)


def test_a_fixed_batch_refuses_fewer_rows_or_pads_them(folder: Path, weights: np.ndarray) -> None:
    model = OpenVinoModel.load(Started(folder, max_batch_size=4))
    refused = model.run([{"x": rows(3)}])[0]
    assert isinstance(refused, InvalidRequestError)
    assert "3 rows are not allowed; it must be 4" in str(refused)
    together = model.run([{"x": rows(3, 1)}, {"x": rows(1, 2)}])
    padded = OpenVinoModel.load(Started(folder, {"ENABLE_BATCH_PADDING": "yes"}, max_batch_size=4))
    for results in (together, padded.run([{"x": rows(3, 1)}]), padded.run([{"x": rows(1, 1)[:1]}, {"x": rows(2, 5)}])):
        assert all(isinstance(result, dict) for result in results)
    first = padded.run([{"x": rows(3, 1)}])[0]
    assert isinstance(first, dict)
    np.testing.assert_allclose(first["y"], rows(3, 1) @ weights, rtol=1e-4, atol=1e-4)
    too_many = padded.run([{"x": rows(5)}])[0]
    assert isinstance(too_many, InvalidRequestError)


def test_a_signal_finds_no_stack_of_a_model_that_is_gone(folder: Path) -> None:
    """In a process of its own: OpenVINO leaves a freed signal stack behind, and the next signal would end the process."""
    code = f"""
import os, signal
from pathlib import Path
from nereid.engines.openvino_model import load_graph
first, second = (load_graph(Path({str(folder / "model.xml")!r}), {{}}) for _ in range(2))
del first, second
signal.signal(signal.SIGTERM, lambda *_: None)
os.kill(os.getpid(), signal.SIGTERM)
"""
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0


def test_bf16_is_computed_only_where_it_is_asked_for(folder: Path, weights: np.ndarray) -> None:
    x = rows(8)
    exact = x @ weights
    errors = {}
    for name, parameters in {"fp32": {}, "bf16": {"HINT_BF16": "yes"}}.items():
        made = OpenVinoModel.load(Started(folder, parameters)).run([{"x": x}])[0]
        assert isinstance(made, dict)
        errors[name] = float(np.linalg.norm(made["y"] - exact) / np.linalg.norm(exact))
    assert errors["fp32"] < 1e-5
    if computes_bf16():
        assert 1e-4 < errors["bf16"] < 5e-2


@pytest.mark.parametrize(
    ("parameters", "sentence"),
    [
        ({"INFERENCE_NUM_THREAD": "2"}, "INFERENCE_NUM_THREAD: not known; did you mean INFERENCE_NUM_THREADS"),
        ({"INFERENCE_NUM_THREADS": "0"}, "INFERENCE_NUM_THREADS: '0' is not allowed; it must be a whole number above 0"),
        ({"COMPILATION_NUM_THREADS": "-1"}, "COMPILATION_NUM_THREADS: '-1'"),
        ({"NUM_STREAMS": "many"}, "NUM_STREAMS: 'many' is not allowed; it must be AUTO, NUMA or a whole number"),
        ({"PERFORMANCE_HINT": "FAST"}, "PERFORMANCE_HINT: 'FAST' is not allowed; it must be LATENCY or THROUGHPUT"),
        ({"TARGET_DEVICE": "GPU"}, "TARGET_DEVICE: 'GPU' is not allowed; it must be CPU"),
        ({"HINT_BF16": "maybe"}, "HINT_BF16: 'MAYBE' is not allowed; it must be YES"),
        ({"CPU_EXTENSION_PATH": "/x.so"}, "CPU_EXTENSION_PATH: not known"),
    ],
)
def test_parameters_that_mean_nothing_are_refused_by_name(parameters: dict[str, str], sentence: str, folder: Path) -> None:
    with pytest.raises(ValueError, match=sentence):
        OpenVinoModel.load(Started(folder, parameters))


def test_what_is_known_reaches_openvino() -> None:
    made = properties({"INFERENCE_NUM_THREADS": "2", "NUM_STREAMS": "auto", "PERFORMANCE_HINT": "throughput"})
    assert made["INFERENCE_NUM_THREADS"] == 2
    assert made["NUM_STREAMS"] == "AUTO"
    assert made["PERFORMANCE_HINT"] == "THROUGHPUT"
    assert made["INFERENCE_PRECISION_HINT"] == "f32"


TENSOR = {"name": "x", "dims": [-1, WIDTH], "data_type": "TYPE_FP32"}


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"input": [{**TENSOR, "name": "z"}]}, r"inputs \['z'\] are not the graph's \['x'\]"),
        ({"input": [TENSOR, {**TENSOR, "name": "z"}]}, "inputs"),
        ({"input": [{**TENSOR, "data_type": "TYPE_INT32"}]}, "input x is f32 in the graph, TYPE_INT32 in config"),
        ({"input": [{**TENSOR, "dims": [-1, 1, WIDTH]}]}, "rank 2 in the graph, 3 in config"),
        ({"input": [{**TENSOR, "optional": True}]}, "input x cannot be optional"),
        ({"output": [{**TENSOR, "name": "q"}]}, "outputs"),
    ],
)
def test_a_config_that_is_not_the_graphs_is_refused(changes: dict[str, Any], sentence: str, folder: Path) -> None:
    with pytest.raises(ValueError, match=sentence):
        OpenVinoModel.load(Started(folder, changes=changes))


@pytest.mark.parametrize("damage", ["absent", "not xml", "weights cut"])
def test_a_file_that_openvino_cannot_load_is_one_sentence(damage: str, folder: Path, tmp_path: Path) -> None:
    for name in ("model.xml", "model.bin"):
        content = (folder / name).read_bytes()
        if damage == "weights cut" and name == "model.bin":
            content = content[:100]
        if damage == "not xml" and name == "model.xml":
            content = b"<net"
        if damage != "absent":
            (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=r"model.xml: OpenVINO .* cannot load it: .+") as caught:
        OpenVinoModel.load(Started(tmp_path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("x", [rows(2)[:, :5], rows(2)[None], rows(2)[0, 0]])
def test_a_request_that_does_not_fit_is_refused_alone(x: np.ndarray, folder: Path) -> None:
    model = OpenVinoModel.load(Started(folder))
    wrong, right = model.run([{"x": x}, {"x": rows(2)}])
    assert isinstance(wrong, InvalidRequestError | EngineError)
    assert "\n" not in str(wrong)
    assert isinstance(right, dict)


def test_no_graphics_card(folder: Path) -> None:
    with pytest.raises(ValueError, match="KIND_GPU is not allowed; it must be KIND_CPU"):
        OpenVinoModel.load(Started(folder, instance_kind="GPU"))


def exported(repository: Path, weights: np.ndarray) -> Path:
    """The version folder of a model that a manifest knows."""
    made = repository / "sums" / "1"
    made.mkdir(parents=True)
    save(made, weights, "x")
    (repository / "sums" / "manifest.json").write_text(json.dumps({"version": 2, "models": ["sums"], "files": {}}))
    sign(repository)
    return made


def test_a_compiled_engine_is_kept_for_the_next_load_and_a_damaged_one_is_compiled_again(
    tmp_path: Path, weights: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = choose_folder(tmp_path / "cache", tmp_path / "other")
    monkeypatch.setenv(CACHE_FOLDER, str(cache))
    folder, x = exported(tmp_path / "repository", weights), rows(3)

    def made() -> np.ndarray:
        (result,) = OpenVinoModel.load(Started(folder)).run([{"x": x}])
        assert isinstance(result, dict)
        return result["y"]

    first = made()
    (blob,) = cache.rglob("*.blob")
    written = blob.stat().st_ino
    assert np.array_equal(made(), first)
    assert blob.stat().st_ino == written
    content = bytearray(blob.read_bytes())
    for offset in range(len(content) // 4, len(content), 64):
        content[offset] ^= 0x40
    blob.write_bytes(content)
    assert np.array_equal(made(), first)
    assert blob.read_bytes() != bytes(content)


def test_a_changed_engine_never_meets_the_entry_of_the_old_one(
    tmp_path: Path, weights: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = choose_folder(tmp_path / "cache", tmp_path / "other")
    monkeypatch.setenv(CACHE_FOLDER, str(cache))
    for repository, changed in (("old", weights), ("new", 2 * weights)):
        OpenVinoModel.load(Started(exported(tmp_path / repository, changed)))
    assert len({blob.parent for blob in cache.rglob("*.blob")}) == 2


def warm_up_sample(**inputs: dict[str, Any]) -> dict[str, Any]:
    return {"model_warmup": [{"name": "3 rows", "batch_size": 1, "inputs": inputs}]}


@pytest.mark.parametrize(
    ("sample", "sentence"),
    [
        ({"x": {"data_type": "TYPE_FP32", "dims": [3, WIDTH + 1], "zero_data": True}}, "sums: model_warmup '3 rows' failed: "),
        (
            {"x": {"data_type": "TYPE_FP32", "dims": [3, WIDTH], "random_data": True}},
            "input x must have zero_data: true",
        ),
        ({"x": {"data_type": "TYPE_BF16", "dims": [3, WIDTH], "zero_data": True}}, "'3 rows': input x: TYPE_BF16 is not allowed"),
        ({}, r"'3 rows': inputs \[\] are not allowed; they must be the model's \['x'\]"),
    ],
)
def test_a_sample_that_cannot_be_run_is_named(sample: dict[str, Any], sentence: str, folder: Path) -> None:
    arguments = Started(folder, changes=warm_up_sample(**sample))
    with pytest.raises(ValueError, match=sentence) as caught:
        warm_up(OpenVinoModel.load(arguments), arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("batch", "dims"), [(0, [3, WIDTH]), (3, [WIDTH])])
def test_every_sample_is_run_with_its_rows(batch: int, dims: list[int], folder: Path) -> None:
    """As one request where the batch is a dimension, as several of one row where it is Triton's."""
    runs: list[list[tuple[int, ...]]] = []

    class Watched:
        def run(self, requests: Sequence[Mapping[str, np.ndarray]]) -> Sequence[dict[str, np.ndarray] | Exception]:
            runs.append([request["x"].shape for request in requests])
            return [{} for _ in requests]

    changes = warm_up_sample(x={"data_type": "TYPE_FP32", "dims": dims, "zero_data": True})
    changes["model_warmup"][0]["batch_size"] = batch or 1
    warm_up(Watched(), Started(folder, max_batch_size=batch, changes=changes))
    assert runs == [[(1, WIDTH)] * 3 if batch else [(3, WIDTH)]]
