"""`nereid bench ladder`: its rungs and peers, what measurements come to, what is left out by name, what is refused."""

from __future__ import annotations

import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("torch")
from nereid.serving.errors import ServingError
from nereid_bench import ladder_choice, ladder_draws, ladder_repositories
from nereid_bench.ladder_choice import served_steps, with_peers
from nereid_bench.ladder_cli import _shown
from nereid_bench.ladder_draws import draw_at_once, measured, take_turn
from nereid_bench.ladder_rows import Found, rows_of
from nereid_bench.ladder_rungs import (
    Kind,
    LadderPlan,
    PeerName,
    PeerWay,
    Rung,
    ServedWay,
    steps_of,
)
from nereid_bench.ladder_turn import failure
from nereid_bench.random_checkpoint import SD15_VAE
from nereid_export.engines import Engine
from nereid_export.engines.precision import parse_precisions
from nereid_export.errors import ExportError
from nereid_zoo.shapes.score import CHECKPOINT, ShapesScorer

from ladder_forms import COLUMNS, RANDOM, SHAPES, flat, found, steps

pytestmark = pytest.mark.torch


# --- the rungs ---


def test_the_rungs_go_from_plain_diffusers_to_all_in_their_order() -> None:
    made = steps()
    assert list(made) == list(Rung)
    assert [rung for rung, step in made.items() if isinstance(step.way, PeerWay)] == [Rung.PLAIN, Rung.SOLVER]
    assert [rung for rung, step in made.items() if step.uses_student] == [Rung.STUDENT_4, Rung.STUDENT_2, Rung.ALL]
    batched = [rung for rung, step in made.items() if isinstance(step.way, ServedWay) and step.way.batching]
    assert batched == [Rung.BATCHING, Rung.STUDENT_4, Rung.STUDENT_2, Rung.ALL]


def test_the_plainest_rung_is_always_measured() -> None:
    assert list(steps(rungs=("cache",))) == [Rung.PLAIN, Rung.CACHE]


def test_rungs_beyond_precision_are_in_fp32_where_precision_is_not_asked_for() -> None:
    assert steps()[Rung.CACHE].way.kind is Kind.AUTO
    assert steps(rungs=("engine", "cache"))[Rung.CACHE].way.kind is Kind.FP32


def test_levels_are_asked_of_trained_weights_and_intervals_of_random_ones() -> None:
    trained, random = steps()[Rung.CACHE].way.fields, steps(RANDOM, cache_interval=4)[Rung.CACHE].way.fields
    assert (trained["cache"], trained["guidance_cache"]) == ("balanced", "balanced")
    assert (random["cache_interval"], random["guidance_cache_interval"]) == (4, 4)
    assert "guidance_cache" in steps()[Rung.GUIDANCE].way.fields
    assert "cache" not in steps()[Rung.GUIDANCE].way.fields


def test_peers_draw_with_the_steps_of_their_rung() -> None:
    for rung, step in steps(few_steps=12).items():
        for peer in step.peers:
            assert peer.steps == step.way.fields["num_inference_steps"], (rung, peer)


# --- what measurements come to ---


def test_speed_ups_are_against_the_first_rung_by_medians() -> None:
    made = steps(rungs=("plain", "batching"))
    plain, batching = made[Rung.PLAIN], made[Rung.BATCHING]
    (peer,) = batching.peers
    results = {
        plain.way: found([90.0, 100.0, 900.0], [10.0]),
        batching.way: found([20.0, 25.0, 30.0], [80.0, 100.0, 120.0]),
        peer: found([15.0], [66.0]),
    }
    first, last = rows_of(SHAPES, [plain, batching], results, None)
    assert list(first) == COLUMNS
    assert (first["speedup"], first["load_speedup"], first["peers"]) == (1, 1, {})
    assert (last["ms_per_image"], last["speedup"], last["images_per_second"], last["load_speedup"]) == (25, 4, 100, 10)
    assert last["peers"] == {"diffusers-batched of 8": 15}
    assert last["memory_mb"] == 2


def test_quality_is_told_of_trained_weights_alone() -> None:
    made = list(steps(rungs=("plain", "solver")).values())
    results = {made[0].way: found([100.0], [10.0], value=10), made[1].way: found([50.0], [20.0], value=35)}
    trained = rows_of(SHAPES, made, results, ShapesScorer())
    assert (trained[0]["psnr"], trained[1]["psnr"]) == (100, pytest.approx(20.17, abs=0.01))
    assert trained[1]["score"] == 0
    for row in rows_of(RANDOM, made, results, None):
        assert (row["psnr"], row["score"]) == (None, None)


def test_peers_are_told_with_what_their_speed_costs_where_they_start_from_the_same_noise() -> None:
    made = steps(rungs=("plain", "engine"))
    plain, engine = made[Rung.PLAIN], made[Rung.ENGINE]
    results = {plain.way: found([100.0], [10.0], value=10), engine.way: found([50.0], [20.0], value=10)}
    results |= {peer: found([50.0], [20.0], value=35) for peer in engine.peers}
    row = rows_of(SHAPES, [plain, engine], results, None)[1]
    assert row["peers"] == {"torch.compile": 50, "openvino-genai": 50}
    assert row["peers_psnr"] == {"torch.compile": pytest.approx(20.17, abs=0.01)}
    assert _shown(row)["peers"] == "torch.compile 50 ms (20.2 dB), openvino-genai 50 ms"
    assert "peers_psnr" not in _shown(row)
    assert rows_of(RANDOM, [plain, engine], results, None)[1]["peers_psnr"] == {}


def test_a_score_waits_for_every_picture() -> None:
    made = list(steps(rungs=("plain",)).values())
    results = {made[0].way: Found(ms=[1.0], images_per_second=[1.0], pixels={1: flat(0)})}
    (row,) = rows_of(SHAPES, made, results, ShapesScorer())
    assert row["score"] is None


def test_rungs_that_have_not_had_their_turn_have_no_row() -> None:
    made = list(steps(rungs=("plain", "solver")).values())
    (row,) = rows_of(SHAPES, made, {made[1].way: found([50.0], [20.0])}, None)
    assert (row["rung"], row["speedup"], row["load_speedup"], row["psnr"]) == ("solver", None, None, None)


def test_lone_pictures_are_timed_and_kept_and_the_load_is_counted() -> None:
    drawn: list[int] = []

    def draw(seed: int) -> Any:
        drawn.append(seed)
        return flat(seed)

    result = measured(draw, [3, 6], range(4), 2)
    assert drawn[:2] == [3, 6]
    assert sorted(drawn[2:]) == [0, 1, 2, 3]
    assert (len(result.ms), len(result.images_per_second), sorted(result.pixels)) == (2, 1, [3, 6])


def test_where_one_request_fails_the_others_are_not_waited_for() -> None:
    go_on, left = threading.Event(), threading.Event()

    def draw(seed: int) -> Any:
        if seed == 0:
            raise ServingError("no")
        go_on.wait(30)
        left.set()

    try:
        with pytest.raises(ServingError):
            draw_at_once(draw, range(4), 2)
        assert not left.is_set()
    finally:
        go_on.set()


# --- what is left out ---


def test_models_that_cannot_be_converted_leave_out_their_peer_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fails(*_: Any) -> bool:
        raise ExportError("--optimum-cli: it could not convert")

    monkeypatch.setattr(ladder_choice, "images_converted", fails)
    said: list[str] = []
    plan = LadderPlan(rungs=("engine",))
    made = with_peers(SHAPES, CHECKPOINT, list(steps(rungs=("engine",)).values()), plan, tmp_path, said.append)
    assert [peer.name for step in made for peer in step.peers] == [PeerName.COMPILED]
    assert said == ["shapes: openvino-genai is left out: --optimum-cli: it could not convert"]


def test_peers_that_cannot_run_here_are_left_out_by_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(ladder_choice, "computes_bf16", lambda: False)
    monkeypatch.setattr(ladder_choice, "images_converted", lambda *_: False)
    monkeypatch.setattr(ladder_choice.importlib.util, "find_spec", lambda name: None)
    said: list[str] = []
    made = with_peers(SHAPES, CHECKPOINT, list(steps().values()), LadderPlan(), tmp_path, said.append)
    peers = {peer.name for step in made for peer in step.peers}
    assert peers == {PeerName.COMPILED, PeerName.BATCHED, PeerName.ATTENTION_BROADCAST, PeerName.DIFFUSERS}
    assert said == [
        "shapes: deepcache is left out: it needs `pip install -e './benchmarks[deepcache]'`",
        "shapes: cache-dit is left out: it needs `pip install cache-dit`",
        "shapes: openvino-genai bf16 and torch.compile bf16 are left out: this processor has no bfloat16",
        "shapes: openvino-genai is left out: it needs `pip install -e './benchmarks[openvino-genai]'` and --optimum-cli",
    ]


def test_peers_that_were_not_asked_for_are_not_measured(tmp_path: Path) -> None:
    made = with_peers(SHAPES, CHECKPOINT, list(steps().values()), LadderPlan(peers=()), tmp_path, pytest.fail)
    assert all(step.peers == () for step in made)


def test_rungs_without_a_student_are_left_out_by_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(ladder_repositories, "SHAPES", tmp_path)
    monkeypatch.setattr(ladder_choice, "repository_of", lambda kind, *_: tmp_path / kind)
    said: list[str] = []
    made, homes = served_steps(SHAPES, CHECKPOINT, LadderPlan(rungs=("engine", "student-2step", "all")), said.append)
    assert [step.rung for step in made] == [Rung.PLAIN, Rung.ENGINE]
    assert homes == {Kind.FP32: tmp_path / "fp32"}
    missing = f"is left out: {tmp_path / 'student-2step'} is missing; `nereid zoo train shapes-student` makes one"
    assert said == [f"shapes: student-2step {missing}", f"shapes: all {missing}"]
    ladder_repositories.require_student(Rung.ALL, RANDOM)  # its students are its own weights


def test_all_takes_the_student_with_the_fewest_steps_that_is_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(ladder_repositories, "SHAPES", tmp_path)
    monkeypatch.setattr(ladder_choice, "repository_of", lambda kind, *_: tmp_path / kind)
    plan = LadderPlan(work=tmp_path)
    (tmp_path / "student-4step").mkdir()
    made, _ = served_steps(SHAPES, CHECKPOINT, LadderPlan(rungs=("all",)), pytest.fail)
    assert made[-1].way.fields["num_inference_steps"] == 4
    assert (made[-1].peers[0].steps, Path(made[-1].peers[0].checkpoint).name) == (4, "student-4step")
    assert ladder_repositories._options(Kind.ALL, SHAPES, CHECKPOINT, plan).checkpoint == tmp_path / "student-4step"
    (tmp_path / "student-2step").mkdir()
    assert ladder_repositories._options(Kind.ALL, SHAPES, CHECKPOINT, plan).checkpoint == tmp_path / "student-2step"


def test_students_of_random_weights_are_the_checkpoint_at_few_steps_without_guidance(tmp_path: Path) -> None:
    made = {step.rung: step for step in steps_of(RANDOM, tmp_path, LadderPlan(), tmp_path / "tiny")}
    student, everything = made[Rung.STUDENT_4], made[Rung.ALL]
    few = {"num_inference_steps": 4, "scheduler": "lcm", "guidance_scale": 1.0}
    assert (student.way.kind, student.way.fields) == (Kind.FP32, few)
    assert (everything.way.kind, everything.way.fields) == (Kind.AUTO, {**few, "num_inference_steps": 2, "decoder": "tiny"})
    for peer in (*student.peers, *everything.peers):
        assert (peer.checkpoint, peer.scheduler, peer.guidance) == (str(tmp_path), "lcm", 1.0)
    assert everything.peers[0].tiny_vae == str(tmp_path / "tiny")


def test_repositories_of_random_weights_have_the_tiny_decoder_that_all_asks_for(tmp_path: Path) -> None:
    plan = LadderPlan(work=tmp_path)
    for kind in (Kind.FP32, Kind.AUTO):
        options = ladder_repositories._options(kind, RANDOM, CHECKPOINT, plan)
        assert options.tiny_vae is not None
        assert options.tiny_vae.folder == tmp_path / "sd15" / "tiny-vae"
        options.tiny_vae.require_fits({"latent_channels": 4, "block_out_channels": SD15_VAE["block_out_channels"]})
    assert ladder_repositories._options(Kind.FP32, SHAPES, CHECKPOINT, plan).tiny_vae is None


def test_what_lies_beyond_float32_is_exported_as_it_was_asked_for(tmp_path: Path) -> None:
    """A measured choice of engine and precision takes hours at Stable Diffusion's sizes."""
    plan = LadderPlan(work=tmp_path, engine="openvino", precision="bf16")
    asked = {kind: ladder_repositories._options(kind, RANDOM, CHECKPOINT, plan) for kind in (Kind.FP32, Kind.AUTO)}
    assert (asked[Kind.AUTO].engine, asked[Kind.AUTO].precision) == (Engine.OPENVINO, parse_precisions("bf16"))
    assert (asked[Kind.FP32].engine, asked[Kind.FP32].precision) == (Engine.ONNXRUNTIME, parse_precisions("fp32"))
    default = ladder_repositories._options(Kind.AUTO, RANDOM, CHECKPOINT, LadderPlan(work=tmp_path))
    assert (default.engine, default.precision) == (Engine.AUTO, parse_precisions("auto"))


def test_torch_compile_compiles_the_decoder_too(monkeypatch: pytest.MonkeyPatch) -> None:
    from nereid_bench import ladder_turn

    compiled: list[str] = []
    monkeypatch.setattr(ladder_turn, "_compiled", lambda module: compiled.append(module) or module)
    pipeline = SimpleNamespace(unet="unet", vae=SimpleNamespace(decoder="decoder"))
    ladder_turn._adapted(pipeline, PeerWay(name=PeerName.COMPILED, checkpoint="", steps=1))
    assert compiled == ["unet", "decoder"]


def test_where_precision_cannot_be_exported_the_rungs_beyond_it_are_in_fp32(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def repository(kind: Kind, *_: Any) -> Path:
        if kind is Kind.AUTO:
            raise ExportError("nothing passes")
        return tmp_path / kind

    monkeypatch.setattr(ladder_choice, "repository_of", repository)
    said: list[str] = []
    made, homes = served_steps(SHAPES, CHECKPOINT, LadderPlan(rungs=("precision", "cache")), said.append)
    assert [(step.rung, getattr(step.way, "kind", None)) for step in made] == [(Rung.PLAIN, None), (Rung.CACHE, Kind.FP32)]
    assert said == ["shapes: precision is left out: nothing passes"]
    assert list(homes) == [Kind.FP32]


def test_a_peer_that_fails_is_told_by_its_last_line() -> None:
    way = {"name": "diffusers", "checkpoint": "/nowhere", "steps": 1}
    with pytest.raises(ServingError, match="/nowhere"):
        take_turn({"way": way, "threads": 1, "side": 32, "genai": "", "prompts": ["a box"], "seeds": [0]})


def test_a_failure_is_told_by_the_line_that_says_what_it_was() -> None:
    assert failure(ValueError("no such level")) == "ValueError: no such level"
    compiler = "backend='inductor' raised:\nInvalidCxxCompiler: No working C++ compiler found\n\nSet TORCHDYNAMO_VERBOSE=1"
    assert failure(RuntimeError(compiler)) == "RuntimeError: InvalidCxxCompiler: No working C++ compiler found"
    engine = "Exception from src/core.cpp:123:\nCheck 'ok' failed at src/core.cpp:9:\nno memory\n\n"
    assert failure(RuntimeError(engine)) == "RuntimeError: no memory"
    assert failure(KeyError()) == "KeyError"


def test_a_peer_whose_process_is_killed_is_told_by_the_signal(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    killed = tmp_path / "python"
    killed.write_text("#!/bin/sh\nkill -KILL $$\n")
    killed.chmod(0o700)
    monkeypatch.setattr(ladder_draws.sys, "executable", str(killed))
    with pytest.raises(ServingError, match="its process was ended by SIGKILL"):
        take_turn({})
