"""Graphs compiled for one shape each: the same results for any company, few graphs, and what memory they may take."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from concurrent.futures import wait
from pathlib import Path

import numpy as np
import pytest

ov = pytest.importorskip("openvino")
import openvino.opset13 as ops

from nereid.engines.openvino_model import OpenGraph, load_graph
from nereid.engines.openvino_options import properties, shapes_memory
from nereid.engines.openvino_shapes import FEWEST_SHAPES, MOST_SHAPES, ShapedGraph, kept_bytes, padded_rows, shapes_kept

WIDTH = 64
MIB = 1 << 20


@pytest.fixture(scope="module")
def weights() -> np.ndarray:
    return np.random.default_rng(1).standard_normal((WIDTH, WIDTH)).astype(np.float32)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory, weights: np.ndarray) -> Path:
    """Rows of any number of places, each multiplied with `weights`, and a number for each row that is added."""
    x = ops.parameter(ov.PartialShape([-1, -1, WIDTH]), ov.Type.f32, name="x")
    t = ops.parameter(ov.PartialShape([-1, 1, 1]), ov.Type.f32, name="t")
    for port, name in ((x, "x"), (t, "t")):
        port.output(0).set_names({name})
    y = ops.add(ops.matmul(x, ops.constant(weights), False, False), t)
    y.output(0).set_names({"y"})
    made = tmp_path_factory.mktemp("ir") / "model.xml"
    ov.save_model(ov.Model([ops.result(y)], [x, t], "sums"), made, compress_to_fp16=False)
    return made


def call(rows: int, places: int = 3, seed: int = 0) -> dict[str, np.ndarray]:
    made = np.random.default_rng(seed)
    return {
        "x": made.standard_normal((rows, places, WIDTH)).astype(np.float32),
        "t": made.standard_normal((rows, 1, 1)).astype(np.float32),
    }


def shaped(file: Path, memory: int = 512 * MIB) -> ShapedGraph:
    return ShapedGraph(file, properties({}), memory)


def test_a_row_has_the_same_bits_alone_and_in_any_company(file: Path, weights: np.ndarray) -> None:
    graph, whole = shaped(file), call(17)
    (together,) = graph.infer(whole, ["y"])
    np.testing.assert_allclose(together, whole["x"] @ weights + whole["t"], rtol=1e-4, atol=1e-4)
    for rows in (1, 2, 5, 7, 16):
        (part,) = graph.infer({name: value[:rows] for name, value in whole.items()}, ["y"])
        assert part.tobytes() == together[:rows].tobytes()


def settle(graph: ShapedGraph) -> None:
    """Wait for what is compiled in the background."""
    wait(graph._coming.values(), 30)
    graph._collect()


def test_rows_are_padded_to_a_few_counts(file: Path) -> None:
    graph = shaped(file)
    for rows in range(1, 33):
        assert len(graph.infer(call(rows), ["y"])[0]) == rows
    assert graph.compiled == [1, 2, 3, 4, 6, 8, 12, 16, 24, 32]
    assert [padded_rows(rows) for rows in (33, 64, 65)] == [64, 64, 96]


def test_results_are_copies(file: Path) -> None:
    graph = shaped(file)
    (first,) = graph.infer(call(3), ["y"])
    kept = first.copy()
    graph.infer(call(3, seed=1), ["y"])
    assert np.array_equal(first, kept)


def test_a_graph_that_is_used_again_is_not_compiled_again(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    graph, compiled = shaped(file), []
    compile_one = ShapedGraph._compile

    def counted(self: ShapedGraph, feeds: Mapping[str, np.ndarray]) -> object:
        compiled.append(feeds["x"].shape)
        return compile_one(self, feeds)

    monkeypatch.setattr(ShapedGraph, "_compile", counted)
    for rows, places in ((5, 3), (6, 3), (6, 4), (5, 3), (5, 4)):
        graph.infer(call(rows, places), ["y"])
    assert compiled == [(6, 3, WIDTH), (6, 4, WIDTH)]


def test_a_larger_graph_does_the_work_until_the_usual_one_is_compiled(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    graph, go_on = shaped(file), threading.Event()
    (expected,) = graph.infer(call(16), ["y"])
    compile_one = ShapedGraph._compile

    def held(self: ShapedGraph, feeds: Mapping[str, np.ndarray]) -> object:
        assert go_on.wait(30)
        return compile_one(self, feeds)

    monkeypatch.setattr(ShapedGraph, "_compile", held)
    first = {name: value[:4] for name, value in call(16).items()}
    for _ in range(3):
        assert graph.infer(first, ["y"])[0].tobytes() == expected[:4].tobytes()
    assert graph.compiled == [16]
    go_on.set()
    settle(graph)
    assert graph.infer(first, ["y"])[0].tobytes() == expected[:4].tobytes()
    assert graph.compiled == [16, 4]


def test_a_lone_row_is_never_padded(file: Path) -> None:
    graph = shaped(file)
    graph.infer(call(16), ["y"])
    graph.infer(call(1), ["y"])
    assert graph.compiled == [16, 1]


def test_what_cannot_be_compiled_in_the_background_is_told_once_and_a_larger_graph_goes_on(
    file: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    graph, tried = shaped(file), []
    graph.infer(call(16), ["y"])

    def fails(self: ShapedGraph, feeds: Mapping[str, np.ndarray]) -> object:
        tried.append(len(feeds["x"]))
        raise RuntimeError("no memory")

    monkeypatch.setattr(ShapedGraph, "_compile", fails)
    for _ in range(3):
        assert len(graph.infer(call(3), ["y"])[0]) == 3
        settle(graph)
    assert tried == [3]
    assert [record.message for record in caplog.records] == [
        "a graph for 3 rows could not be compiled; a larger one goes on: no memory"
    ]


def test_graphs_that_nobody_used_for_long_make_room(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = full(file, monkeypatch, room=2)
    for rows, places in ((2, 4), (16, 3), (4, 3)):
        graph.infer(call(rows, places), ["y"])
    settle(graph)
    assert graph.compiled == [2, 16]
    monkeypatch.setattr("nereid.engines.openvino_shapes.IDLE_SECONDS", 0.0)
    graph.infer(call(4, 3), ["y"])
    settle(graph)
    assert graph.compiled == [16, 4]


def full(file: Path, monkeypatch: pytest.MonkeyPatch, room: int) -> ShapedGraph:
    """One with room for so many graphs, whatever they take."""
    monkeypatch.setattr("nereid.engines.openvino_shapes.MOST_SHAPES", room)
    return shaped(file)


def test_without_room_a_larger_graph_of_the_same_size_does_the_work(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = full(file, monkeypatch, room=2)
    for rows, places in ((16, 3), (8, 4), (4, 3)):
        graph.infer(call(rows, places), ["y"])
    settle(graph)
    assert graph.compiled == [8, 16]


def test_without_room_a_smaller_graph_of_the_same_size_goes_first(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = full(file, monkeypatch, room=3)
    for rows, places in ((8, 4), (2, 3), (4, 3), (8, 3)):
        graph.infer(call(rows, places), ["y"])
    assert graph.compiled == [8, 4, 8]


def test_of_other_sizes_the_least_recently_used_goes(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = full(file, monkeypatch, room=2)
    for rows, places in ((1, 3), (2, 4), (1, 3), (4, 5)):
        graph.infer(call(rows, places), ["y"])
    assert graph.compiled == [1, 4]


def test_memory_bounds_what_is_kept_of_several(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held = iter(range(0, 1000 * MIB, 10 * MIB))  # every graph takes 10 MiB
    monkeypatch.setattr("nereid.engines.openvino_shapes._resident_bytes", lambda: next(held))
    graph = shaped(file, memory=25 * MIB)
    for places in (3, 4, 5):
        graph.infer(call(1, places), ["y"])
    assert len(graph.compiled) == 2
    alone = shaped(file, memory=5 * MIB)
    for places in (3, 4):
        alone.infer(call(1, places), ["y"])
    assert len(alone.compiled) == 1


def test_inputs_of_different_rows_are_refused(file: Path) -> None:
    with pytest.raises(ValueError, match="inputs of 1 and 2 rows are not allowed"):
        shaped(file).infer({**call(2), "t": call(1)["t"]}, ["y"])
    with pytest.raises(ValueError, match="inputs of 0 rows are not allowed"):
        shaped(file).infer(call(0), ["y"])


def test_a_shape_that_does_not_fit_leaves_nothing_behind(file: Path) -> None:
    graph = shaped(file)
    graph.infer(call(2), ["y"])
    with pytest.raises(RuntimeError):
        graph.infer({**call(2), "x": np.zeros((2, 3, WIDTH + 1), np.float32)}, ["y"])
    assert graph.compiled == [2]
    assert len(graph.infer(call(2), ["y"])[0]) == 2


def test_small_graphs_alone_are_compiled_for_shapes(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {"COMPILED_SHAPES_MIB": "512"}
    assert isinstance(load_graph(file, asked), ShapedGraph)
    assert isinstance(load_graph(file, {}), OpenGraph)
    assert isinstance(load_graph(file, {"COMPILED_SHAPES_MIB": "0"}), OpenGraph)
    assert isinstance(load_graph(file, asked, batch=2), OpenGraph)  # its shape is fixed as it is
    monkeypatch.setattr("nereid.engines.openvino_model.weights_bytes", lambda path: 64 * MIB)
    assert isinstance(load_graph(file, asked), OpenGraph)


def test_the_memory_that_is_counted_is_what_may_be_taken() -> None:
    assert shapes_kept(0, 0) == kept_bytes(0, 0) == 0
    assert shapes_kept(20 * MIB, 512 * MIB) == 5
    assert shapes_kept(40 * MIB, 512 * MIB) == kept_bytes(40 * MIB, 512 * MIB) == 0
    assert shapes_kept(1 * MIB, 512 * MIB) == MOST_SHAPES
    assert kept_bytes(1 * MIB, 512 * MIB) == MOST_SHAPES * 12 * MIB
    assert kept_bytes(20 * MIB, 512 * MIB) <= 512 * MIB
    assert FEWEST_SHAPES > 1


@pytest.mark.parametrize("value", ["-1", "some", "²", "1048577", ""])
def test_memory_that_is_no_number_of_mib_is_refused(value: str) -> None:
    sentence = f"COMPILED_SHAPES_MIB: {value!r} is not allowed; it must be a whole number from 0 to 1048576"
    with pytest.raises(ValueError, match=sentence):
        properties({"COMPILED_SHAPES_MIB": value})
    assert shapes_memory({"COMPILED_SHAPES_MIB": "3"}) == 3 * MIB
