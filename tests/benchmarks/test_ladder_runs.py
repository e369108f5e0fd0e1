"""`nereid bench ladder`: what a run reports, keeps and goes on from, what fails, what is refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

pytest.importorskip("torch")
from nereid.serving.errors import ServingError
from nereid_bench import ladder, ladder_choice, ladder_cli
from nereid_bench.cli import app
from nereid_bench.ladder import Ladder
from nereid_bench.ladder_kept import KeptTurns, key_of
from nereid_bench.ladder_plot import beside, plot
from nereid_bench.ladder_rows import Found
from nereid_bench.ladder_rungs import (
    LadderModel,
    LadderPlan,
    PeerName,
)
from nereid_client import NereidError

from ladder_forms import COLUMNS, SHAPES, flat, found, steps

pytestmark = pytest.mark.torch


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
    together, (lone, *timed), load = seeds[:8], seeds[8:12], seeds[12:]
    assert (sorted(together), lone, timed, sorted(load)) == ([0] * 4 + [1] * 4, 0, [0, 1, 2], [0, 1, 2])


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
