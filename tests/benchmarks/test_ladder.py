"""`nereid bench ladder`: its rungs and peers, what measurements come to, what is left out by name, what is refused."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

pytest.importorskip("torch")
from nereid.serving.errors import ServingError
from nereid_bench import ladder, ladder_choice, ladder_cli, ladder_draws, ladder_repositories
from nereid_bench.cli import app
from nereid_bench.ladder import Ladder
from nereid_bench.ladder_choice import served_steps, with_peers
from nereid_bench.ladder_cli import _shown
from nereid_bench.ladder_draws import draw_at_once, measured, take_turn
from nereid_bench.ladder_kept import KeptTurns, key_of
from nereid_bench.ladder_plot import beside, plot
from nereid_bench.ladder_rows import Found, rows_of
from nereid_bench.ladder_rungs import (
    MODELS,
    Kind,
    LadderModel,
    LadderPlan,
    PeerName,
    PeerWay,
    Rung,
    ServedWay,
    Step,
    steps_of,
)
from nereid_bench.ladder_turn import failure
from nereid_bench.random_checkpoint import SD15_VAE
from nereid_client import NereidError
from nereid_export.errors import ExportError
from nereid_zoo.shapes.score import CHECKPOINT, ShapesScorer

pytestmark = pytest.mark.torch

SHAPES, RANDOM = MODELS["shapes"], MODELS["sd15-256"]
COLUMNS = ["model", "rung", "ms_per_image", "speedup", "images_per_second", "load_speedup", "memory_mb", "psnr", "score"]
COLUMNS += ["uses_student", "peers", "peers_psnr"]


def steps(model: LadderModel = SHAPES, **plan: Any) -> dict[Rung, Step]:
    return {step.rung: step for step in steps_of(model, CHECKPOINT, LadderPlan(**plan), None)}


def flat(value: int) -> Any:
    return np.full((128, 128, 3), value, np.uint8)


def found(ms: list[float], rate: list[float], value: int = 0) -> Found:
    pixels = {seed: flat(value) for seed in range(len(ms))}
    return Found(ms=ms, images_per_second=rate, peak_bytes=2_000_000, pixels=pixels)


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
    (tmp_path / "student-4step").mkdir()
    made, _ = served_steps(SHAPES, CHECKPOINT, LadderPlan(rungs=("all",)), pytest.fail)
    assert made[-1].way.fields["num_inference_steps"] == 4
    assert (made[-1].peers[0].steps, Path(made[-1].peers[0].checkpoint).name) == (4, "student-4step")
    assert ladder_repositories._options(Kind.ALL, SHAPES, CHECKPOINT, tmp_path).checkpoint == tmp_path / "student-4step"
    (tmp_path / "student-2step").mkdir()
    assert ladder_repositories._options(Kind.ALL, SHAPES, CHECKPOINT, tmp_path).checkpoint == tmp_path / "student-2step"


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
    for kind in (Kind.FP32, Kind.AUTO):
        options = ladder_repositories._options(kind, RANDOM, CHECKPOINT, tmp_path / "sd15")
        assert options.tiny_vae is not None
        assert options.tiny_vae.folder == tmp_path / "sd15" / "tiny-vae"
        options.tiny_vae.require_fits({"latent_channels": 4, "block_out_channels": SD15_VAE["block_out_channels"]})
    assert ladder_repositories._options(Kind.FP32, SHAPES, CHECKPOINT, tmp_path / "shapes").tiny_vae is None


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


# --- the report ---


@contextmanager
def _no_server(*_: Any) -> Iterator[Any]:
    class Painter:
        def generate_image(self, prompt: str, *, seed: int, **asked: Any) -> Any:
            return type("Answer", (), {"pixels": [flat(seed % 7)]})

    yield Painter()


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """Turns that take no time; the names of the peers that have had theirs."""
    taken: list[str] = []

    def turn(told: dict[str, Any]) -> Found:
        taken.append(told["way"]["name"])
        return Found(ms=[100.0], images_per_second=[10.0], peak_bytes=10**6, pixels={seed: flat(1) for seed in told["seeds"]})

    monkeypatch.setattr(ladder, "take_turn", turn)
    monkeypatch.setattr(ladder, "running", _no_server)
    monkeypatch.setattr(ladder_choice, "repository_of", lambda kind, *_: tmp_path / kind)
    return taken


def test_the_report_has_rungs_plan_machine_and_a_plot(scripted: list[str], tmp_path: Path) -> None:
    out = tmp_path / "ladder.json"
    command = [
        "ladder",
        "--out",
        str(out),
        "--work",
        str(tmp_path),
        "--rungs",
        "engine,cache",
        "--rounds",
        "2",
        "--pictures",
        "4",
        "--json",
    ]
    done = CliRunner().invoke(app, [*command, "--peers", "pyramid-attention-broadcast"])
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    assert report == json.loads(out.read_text())
    assert [row["rung"] for row in report["rungs"]] == ["plain", "engine", "cache"]
    assert all(list(row) == COLUMNS for row in report["rungs"])
    assert report["rungs"][2]["peers"] == {"pyramid-attention-broadcast": 100.0}
    assert report["rounds_done"] == {"shapes": 2}
    assert report["plan"]["few_steps"] == 20
    assert report["machine"]["processor"]
    assert out.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert len(scripted) == 4  # two ways without a server, two rounds


def test_a_lone_picture_is_drawn_before_one_is_timed(
    scripted: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    seeds: list[int] = []

    @contextmanager
    def noted(*_: Any) -> Iterator[Any]:
        class Painter:
            def generate_image(self, prompt: str, *, seed: int, **asked: Any) -> Any:
                seeds.append(seed)
                return type("Answer", (), {"pixels": [flat(1)]})

        yield Painter()

    monkeypatch.setattr(ladder, "running", noted)
    Ladder(LadderPlan(work=tmp_path, rungs=("engine",), rounds=1, pictures=3, at_once=2, peers=()), lambda _: None).measure(
        lambda report: None
    )
    together, lone, timed, load = seeds[:2], seeds[2:3], seeds[3:6], seeds[6:]
    assert (sorted(together), lone, timed, sorted(load)) == ([0, 1], [0], [0, 1, 2], [0, 1, 2])


def test_peers_have_the_processors_that_this_process_may_use(
    scripted: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(ladder_cli, "available_processors", lambda: 7)
    out = tmp_path / "ladder.json"
    done = CliRunner().invoke(app, ["ladder", "--out", str(out), "--work", str(tmp_path), "--rungs", "plain", "--pictures", "3"])
    assert done.exit_code == 0, done.output
    assert json.loads(out.read_text())["plan"]["threads"] == 7


def test_what_is_left_out_is_said_once() -> None:
    said: list[str] = []
    ladder_ = Ladder(LadderPlan(), said.append)
    for _ in range(2):
        ladder_._leave_out("engine is left out")
    assert (said, ladder_.left_out) == (["engine is left out"], ["engine is left out"])


def test_each_round_begins_with_another_turn(scripted: list[str], tmp_path: Path) -> None:
    peers = (PeerName.ATTENTION_BROADCAST,)
    plan = LadderPlan(work=tmp_path, rungs=("cache",), rounds=3, pictures=3, peers=peers)
    Ladder(plan, lambda _: None).measure(lambda report: None)
    assert scripted == ["diffusers", peers[0], peers[0], "diffusers", "diffusers", peers[0]]


def test_what_was_measured_before_an_interruption_is_kept(
    scripted: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "ladder.json"

    @contextmanager
    def interrupted(*_: Any) -> Iterator[Any]:
        raise KeyboardInterrupt
        yield

    monkeypatch.setattr(ladder, "running", interrupted)
    done = CliRunner().invoke(
        app, ["ladder", "--out", str(out), "--work", str(tmp_path), "--rungs", "engine", "--peers", "", "--pictures", "3"]
    )
    assert done.exit_code == 130
    assert [row["rung"] for row in json.loads(out.read_text())["rungs"]] == ["plain"]


def test_a_peer_that_fails_is_left_out_and_the_others_go_on(
    scripted: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    taken = ladder.take_turn

    def turn(told: dict[str, Any]) -> Found:
        if told["way"]["name"] == PeerName.ATTENTION_BROADCAST:
            raise ServingError("no such hook")
        return taken(told)

    monkeypatch.setattr(ladder, "take_turn", turn)
    plan = LadderPlan(work=tmp_path, rungs=("cache",), rounds=2, pictures=2, peers=(PeerName.ATTENTION_BROADCAST,))
    report = Ladder(plan, lambda _: None).measure(lambda report: None)
    assert [(row["rung"], row["peers"]) for row in report["rungs"]] == [("plain", {}), ("cache", {})]
    assert (
        report["left_out"].count("shapes: pyramid-attention-broadcast with 20 steps of dpmpp_2m is left out: no such hook") == 1
    )


def test_an_interrupted_run_goes_on_after_the_turns_it_finished(
    scripted: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = LadderPlan(work=tmp_path, rungs=("engine",), rounds=1, pictures=2, peers=(PeerName.COMPILED,))
    unbroken = ladder.running

    @contextmanager
    def interrupted(*_: Any) -> Iterator[Any]:
        raise KeyboardInterrupt
        yield

    monkeypatch.setattr(ladder, "running", interrupted)
    with pytest.raises(KeyboardInterrupt):
        Ladder(plan, lambda _: None).measure(lambda report: None)
    assert scripted == ["diffusers", "torch.compile"]
    monkeypatch.setattr(ladder, "running", unbroken)
    report = Ladder(plan, lambda _: None).measure(lambda report: None)
    assert scripted == ["diffusers", "torch.compile"]  # not drawn again
    assert [(row["rung"], row["peers"]) for row in report["rungs"]] == [("plain", {}), ("engine", {"torch.compile": 100.0})]
    assert report["turns_of_earlier_runs"] == 2
    Ladder(plan, lambda _: None).measure(lambda report: None)
    Ladder(replace(plan, fresh=True), lambda _: None).measure(lambda report: None)
    assert scripted == ["diffusers", "torch.compile"] * 2


def test_turns_of_other_threads_pictures_or_engines_are_not_taken_for_these(tmp_path: Path) -> None:
    plain, engine = (step.way for step in steps(rungs=("engine",)).values())
    drawn = {"turn": 0, "seeds": [0], "prompts": ["a box"], "side": 128, "threads": 2}
    home = tmp_path / "fp32" / "text_to_image"
    home.mkdir(parents=True)

    def sign(digest: str) -> None:
        files = {"denoise/1/pipeline.json": digest}
        (home / "manifest.json").write_text(json.dumps({"version": 2, "models": ["denoise"], "files": files}))

    sign("a")
    kept, result = KeptTurns(tmp_path / "turns"), found([90.0], [10.0], value=7)
    keys = [key_of(plain, None, drawn), key_of(engine, home.parent, drawn)]
    others = [key_of(plain, None, {**drawn, "threads": 1}), key_of(plain, None, {**drawn, "seeds": [1]})]
    sign("b")
    others.append(key_of(engine, home.parent, drawn))
    for key in keys:
        kept.write(key, result)
    back = kept.read(keys[0])
    assert back is not None
    assert (back.ms, back.images_per_second, back.peak_bytes) == ([90.0], [10.0], 2_000_000)
    assert np.array_equal(back.pixels[0], flat(7))
    assert [kept.read(key) for key in others] == [None] * 3
    for file in (tmp_path / "turns").iterdir():
        file.write_bytes(file.read_bytes()[:-30])
    assert kept.read(keys[0]) is None  # damaged


@pytest.mark.parametrize("where", ["start", "request"])
def test_a_rung_whose_server_fails_is_left_out_and_the_others_go_on(
    where: str, scripted: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    @contextmanager
    def failing(repository: Path, batching: bool) -> Iterator[Any]:
        class Painter:
            def generate_image(self, prompt: str, *, seed: int, **asked: Any) -> Any:
                if "cache" in asked:
                    raise NereidError("no such level")
                return type("Answer", (), {"pixels": [flat(1)]})

        if where == "start" and not batching and repository.name == "fp32":
            raise ServingError("no such level")
        yield Painter()

    monkeypatch.setattr(ladder, "running", failing)
    rungs = ("engine", "precision", "cache", "student-4step") if where == "request" else ("engine", "precision")
    plan = LadderPlan(work=tmp_path, rungs=rungs, rounds=2, pictures=2, peers=())
    report = Ladder(plan, lambda _: None).measure(lambda report: None)
    lost, rest = (
        ("cache", ["plain", "engine", "precision", "student-4step"])
        if where == "request"
        else (
            "engine",
            ["plain", "precision"],
        )
    )
    assert [row["rung"] for row in report["rungs"]] == rest
    assert report["left_out"] == [f"shapes: {lost} is left out: no such level"]


def test_a_model_whose_plainest_way_fails_is_left_out_and_the_others_stay(
    scripted: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    taken = ladder.take_turn

    def turn(told: dict[str, Any]) -> Found:
        if told["side"] == 64:
            raise ServingError("no memory")
        return taken(told)

    monkeypatch.setattr(ladder, "take_turn", turn)
    monkeypatch.setattr(ladder, "MODELS", {"shapes": SHAPES, "small": LadderModel(name="small", side=64)})
    plan = LadderPlan(work=tmp_path, models=("small", "shapes"), rungs=("plain",), rounds=1, pictures=1)
    report = Ladder(plan, lambda _: None).measure(lambda report: None)
    assert [row["model"] for row in report["rungs"]] == ["shapes"]
    what = "diffusers with 50 steps of the checkpoint's scheduler, which all are held against, failed: no memory"
    assert report["left_out"] == [f"small is left out: {what}"]
    with pytest.raises(ServingError, match=f"small: {what}"):
        Ladder(replace(plan, models=("small",)), lambda _: None).measure(lambda report: None)


def test_what_fails_after_some_rounds_keeps_them_and_says_so(
    scripted: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    taken = ladder.take_turn

    def turn(told: dict[str, Any]) -> Found:
        if scripted.count("torch.compile") == 1 and told["way"]["name"] == "torch.compile":
            raise ServingError("its process was ended by SIGKILL")
        return taken(told)

    monkeypatch.setattr(ladder, "take_turn", turn)
    plan = LadderPlan(work=tmp_path, rungs=("engine",), rounds=2, pictures=2, peers=(PeerName.COMPILED,))
    report = Ladder(plan, lambda _: None).measure(lambda report: None)
    assert report["rungs"][1]["peers"] == {"torch.compile": 100.0}
    what = "torch.compile with 20 steps of dpmpp_2m is left out of later rounds"
    assert report["left_out"] == [f"shapes: {what}: its process was ended by SIGKILL"]


def test_the_plot_tells_quality_beside_the_bars(tmp_path: Path) -> None:
    row = {"model": "a", "rung": "plain", "speedup": 1.0, "load_speedup": 2.0, "score": 95.8, "psnr": 31.24}
    assert beside(row) == "score 95.8%, 31.2 dB"
    assert beside({**row, "score": None, "psnr": None}) == ""
    other = {**row, "model": "b", "score": None, "psnr": None, "speedup": None, "load_speedup": None}
    plot([row, other], tmp_path / "plots" / "ladder.svg")
    assert "plain" in (tmp_path / "plots" / "ladder.svg").read_text()


# --- refusals ---


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--models", "sd3"], "'sd3' is not a model; it must be one of shapes, sd15-256, sd15-512"),
        (["--models", ""], "'' is not a model; it must be one of"),
        (["--rungs", "top"], "'top' is not a rung; it must be one of plain, solver"),
        (["--peers", "vllm"], "'vllm' is not a peer; it must be one of diffusers"),
        (["--few-solver", "lcm"], "'lcm' is not one that every peer has; it must be one of ddim, euler, dpmpp_2m, unipc"),
        (
            ["--few-solver", "ddim,euler"],
            "'ddim,euler' is not one that every peer has; it must be one of ddim, euler, dpmpp_2m, unipc",
        ),
        (["--pictures", "2", "--rounds", "3"], "2 is not allowed with --rounds 3; it must be 3 at least"),
        (["--optimum-cli", "/no/where"], "/no/where is no command that can be run"),
        (["--plot", "ladder.txt"], "ladder.txt is not allowed; its name must end with one of .png, .svg, .pdf"),
        (["--few-steps", "2"], "Input should be greater than or equal to 3"),
    ],
)
def test_what_cannot_be_asked_for_is_refused_in_one_sentence(arguments: list[str], sentence: str) -> None:
    result = CliRunner().invoke(app, ["ladder", *arguments], env={"COLUMNS": "300"})
    assert result.exit_code == 2
    assert sentence in " ".join(result.output.replace("│", "").split())
