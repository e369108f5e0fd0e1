"""The ladder from the plainest way to draw to all that Nereid can do: what each rung gains, and what it costs in quality.

Rungs and peers take turns for several rounds, each in processes of its own: a server, or a process that draws without one. A
noisy minute falls on all of them, and medians are told.
"""

from __future__ import annotations

import importlib.util
import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nereid.engines.openvino_model import computes_bf16
from nereid.serving.errors import ServingError
from nereid_bench.compare import Say
from nereid_bench.ladder_repositories import checkpoint_name, checkpoint_of, repository_of, require_student, tiny_vae_of
from nereid_bench.ladder_rows import Found, rows_of
from nereid_bench.ladder_rungs import (
    MODELS,
    TINY_VAE,
    Kind,
    LadderModel,
    LadderPlan,
    PeerName,
    PeerWay,
    Rung,
    ServedWay,
    Step,
    Way,
    steps_of,
    told,
)
from nereid_bench.optimum_cli import LEFT_OUT, images_converted
from nereid_bench.schedulers import PROMPTS
from nereid_bench.server_memory import ServerMemory
from nereid_bench.servers import serving, serving_with
from nereid_bench.turns import turned
from nereid_client import Client
from nereid_export.errors import ExportError
from nereid_export.resume import machine
from nereid_export.scorers import Scorer, scorer_for

MEMORY = (
    "peak of resident memory in MB: of diffusers and peers their process's own, of Nereid the sum of each server process's own, "
    "where what processes share counts in each"
)
_LONGEST_SECONDS = 86_400.0
"""A picture of a slow machine is waited for."""
_FIRST_STEPS = 2
"""Of pictures that warm up a server where a whole one takes minutes."""

_NEEDED = {
    PeerName.DEEPCACHE: ("DeepCache", "pip install -e './benchmarks[deepcache]'"),
    PeerName.CACHE_DIT: ("cache_dit", "pip install cache-dit"),
}
"""Packages of peers, as Python imports them, and what installs them."""

DrawSeed = Callable[[int], NDArray[np.uint8]]
"""A picture by its seed."""


@dataclass(slots=True)
class Ladder:
    """One measurement; `report` may be asked for at any time, and has what was measured until then."""

    plan: LadderPlan
    say: Say
    left_out: list[str] = field(default_factory=list)
    rounds_done: dict[str, int] = field(default_factory=dict)
    _models: list[_OneModel] = field(default_factory=list)

    def measure(self, kept: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
        """Everything that was asked for; `kept` is given the report after each turn, for a run that is interrupted later."""
        if Rung.PLAIN not in self.plan.rungs:
            self.say(f"{Rung.PLAIN} is measured, too: speed-ups and PSNR are against it")
        for name in self.plan.models:
            model = _OneModel.of(MODELS[name], self.plan, self._leave_out)
            self._models.append(model)
            for turn in range(self.plan.rounds):
                for _ in model.round(turn, self.say):
                    kept(self.report())
                self.rounds_done[name] = turn + 1
        return self.report()

    def report(self) -> dict[str, Any]:
        """Rows, what each rung draws with, and the facts of plan and machine."""
        return {
            "rungs": [row for model in self._models for row in model.rows()],
            "drawn_with": {model.model.name: told(model.steps) for model in self._models},
            "plan": {name: value for name, value in asdict(self.plan).items() if name not in ("work", "optimum_cli")},
            "rounds_done": self.rounds_done,
            "left_out": self.left_out,
            "memory": MEMORY,
            "machine": machine(),
        }

    def _leave_out(self, sentence: str) -> None:
        self.left_out.append(sentence)
        self.say(sentence)


@dataclass(slots=True)
class _OneModel:
    """One checkpoint: its rungs, where they are served from, and what they have come to."""

    model: LadderModel
    plan: LadderPlan
    checkpoint: Path
    steps: list[Step]
    repositories: Mapping[Kind, Path]
    leave_out: Say
    scorer: Scorer | None
    prompts: list[str]
    genai: Path
    found: dict[Way, Found] = field(default_factory=dict)
    failed: set[Way] = field(default_factory=set)

    @classmethod
    def of(cls, model: LadderModel, plan: LadderPlan, leave_out: Say) -> _OneModel:
        """Everything that can be measured here, exported."""
        if model.random:
            leave_out(f"{model.name}: PSNR and score are left out, because its weights are random")
        checkpoint = checkpoint_of(model, plan.work, leave_out)
        scorer = None if model.random else scorer_for(checkpoint)
        if scorer is None and not model.random:
            leave_out(f"{model.name}: the score is left out, because no scorer knows this checkpoint")
        steps, repositories = _served(model, checkpoint, plan, leave_out)
        if any(step.rung == Rung.ALL for step in steps) and tiny_vae_of(model) is None:
            leave_out(f"{model.name}: {Rung.ALL} has no tiny decoder, because there is no {TINY_VAE}")
        genai = plan.work / checkpoint_name(model) / "openvino-genai"
        steps = _with_peers(model, checkpoint, steps, plan, genai, leave_out)
        count = max(plan.pictures, plan.at_once)
        prompts = [PROMPTS[number % len(PROMPTS)] for number in range(count)] if scorer is None else scorer.scored(count)
        return cls(model, plan, checkpoint, steps, repositories, leave_out, scorer, prompts, genai)

    def rows(self) -> list[dict[str, Any]]:
        return rows_of(self.model, self.steps, self.found, self.scorer)

    def round(self, turn: int, say: Say) -> Iterator[None]:
        """Every process takes its turn; yields after each."""
        seeds = list(range(self.plan.pictures))[turn :: self.plan.rounds]
        for take in turned(self._turns(), turn):
            take(f"{self.model.name}, round {turn + 1} of {self.plan.rounds}", seeds, say)
            yield

    def _turns(self) -> list[Callable[[str, list[int], Say], None]]:
        ways = list(dict.fromkeys(way for step in self.steps for way in (step.way, *step.peers)))
        peers = [way for way in ways if isinstance(way, PeerWay)]
        servers: dict[tuple[Kind, bool], list[ServedWay]] = {}
        for way in ways:
            if isinstance(way, ServedWay):
                servers.setdefault((way.kind, way.batching), []).append(way)
        return [*(partial(self._by_peer, way) for way in peers), *(partial(self._by_server, group) for group in servers.values())]

    def _by_peer(self, way: PeerWay, said: str, seeds: list[int], say: Say) -> None:
        if way in self.failed:
            return
        say(f"{said}: {way.label}, {way.does}")
        drawn = seeds if way.rows == 1 else list(range(way.rows))
        turn = {"way": asdict(way), "threads": self.plan.threads, "side": self.model.side, "genai": str(self.genai)}
        turn |= {"prompts": [self.prompts[seed] for seed in drawn], "seeds": drawn}
        try:
            self.found.setdefault(way, Found()).add(take_turn(turn))
        except ServingError as error:
            if way == self.steps[0].way:
                raise
            self.failed.add(way)
            if not self.found[way].ms:
                del self.found[way]
            self.leave_out(f"{self.model.name}: {way.label} with {way.does} is left out: {error}")

    def _by_server(self, ways: Sequence[ServedWay], said: str, seeds: list[int], say: Say) -> None:
        at_once = self.plan.at_once
        rungs = {step.way: step.rung for step in self.steps}
        with running(self.repositories[ways[0].kind], ways[0].batching) as client:
            for way in ways:
                say(f"{said}: {rungs[way]}")
                # Levels are calibrated for whole runs alone; with random weights there are none, and runs are long.
                first = {"num_inference_steps": _FIRST_STEPS} if self.model.random else {}
                draw_at_once(partial(self._draw, client, {**way.fields, **first}), range(at_once), at_once)
                load = range(max(len(seeds), at_once))
                found = measured(partial(self._draw, client, way.fields), seeds, load, at_once)
                self.found.setdefault(way, Found()).add(found)

    def _draw(self, client: Client, fields: Mapping[str, Any], seed: int) -> NDArray[np.uint8]:
        asked = {**fields, "width": self.model.side, "height": self.model.side, "seed": seed}
        return client.generate_image(self.prompts[seed], timeout=_LONGEST_SECONDS, **asked).pixels[0]


def _served(model: LadderModel, checkpoint: Path, plan: LadderPlan, leave_out: Say) -> tuple[list[Step], dict[Kind, Path]]:
    """The rungs whose checkpoints and repositories are there, or can be made; each other one is said by name."""
    found: dict[Kind, Path] = {}
    failed: set[Kind] = set()
    steps = []
    for step in steps_of(model, checkpoint, plan, tiny_vae_of(model)):
        way = step.way
        try:
            if step.uses_student:
                require_student(step.rung, model)
            if isinstance(way, ServedWay) and way.kind not in found and way.kind not in failed:
                found[way.kind] = repository_of(way.kind, model, checkpoint, plan, leave_out)
        except ExportError as error:
            leave_out(f"{model.name}: {step.rung} is left out: {error}")
            if step.rung == Rung.PRECISION:  # those beyond it can do without
                others = tuple(rung for rung in plan.rungs if rung != step.rung)
                return _served(model, checkpoint, replace(plan, rungs=others), leave_out)
            if isinstance(way, ServedWay):
                failed.add(way.kind)
            continue
        if isinstance(way, ServedWay) and way.kind in failed:
            leave_out(f"{model.name}: {step.rung} is left out: it needs what could not be exported")
            continue
        steps.append(step)
    return steps, found


def _with_peers(
    model: LadderModel, checkpoint: Path, steps: Sequence[Step], plan: LadderPlan, genai: Path, leave_out: Say
) -> list[Step]:
    """The rungs with those of their peers that were asked for and may run here; each other one is said by name, once."""
    asked = {peer for step in steps for peer in step.peers if peer.name in plan.peers}
    refused: set[PeerWay] = set()
    for name, (module, command) in _NEEDED.items():
        if (without := {peer for peer in asked if peer.name is name}) and importlib.util.find_spec(module) is None:
            leave_out(f"{model.name}: {name} is left out: it needs `{command}`")
            refused |= without
    lower = {peer for peer in asked if peer.precision == "bf16"}
    if lower and not computes_bf16():
        labels = " and ".join(sorted({peer.label for peer in lower}))
        leave_out(f"{model.name}: {labels} are left out: this processor has no bfloat16")
        refused |= lower
    converted = {peer for peer in asked - refused if peer.name is PeerName.OPENVINO_GENAI}
    if converted and not images_converted(checkpoint, genai, plan.optimum_cli):
        leave_out(f"{model.name}: {LEFT_OUT}")
        refused |= converted
    return [replace(step, peers=tuple(peer for peer in step.peers if peer in asked - refused)) for step in steps]


def take_turn(turn: Mapping[str, Any]) -> Found:
    """Draw in a process of its own, one picture after the other; raises ServingError with the last thing that it said."""
    with tempfile.TemporaryDirectory() as folder:
        pixels = Path(folder) / "pixels.npz"
        command = [sys.executable, "-m", "nereid_bench.ladder_turn", json.dumps({**turn, "pixels": str(pixels)})]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode < 0:
            raise ServingError(f"its process was ended by {signal.Signals(-done.returncode).name}")
        if done.returncode:
            said = done.stderr.strip().splitlines() or [f"its process ended with {done.returncode}"]
            raise ServingError(said[-1])
        told = json.loads(done.stdout.splitlines()[-1])
        with np.load(pixels) as made:
            pictures = {int(number): made[number] for number in made.files}
    # It draws one after the other however many wait: what a picture takes alone says how many a second it draws.
    rate = 1000 * len(told["ms"]) / sum(told["ms"])
    return Found(ms=told["ms"], images_per_second=[rate], peak_bytes=int(told["peak_bytes"]), pixels=pictures)


def measured(draw: DrawSeed, lone: Sequence[int], load: Sequence[int], at_once: int) -> Found:
    """Pictures by their seeds: `lone` one after the other, then `load` with `at_once` in flight."""
    memory, found = ServerMemory(), Found()
    memory.reset()
    for seed in lone:
        start = time.perf_counter()
        found.pixels[seed] = draw(seed)
        found.ms.append(1000 * (time.perf_counter() - start))
    start = time.perf_counter()
    draw_at_once(draw, load, at_once)
    found.images_per_second.append(len(load) / (time.perf_counter() - start))
    found.peak_bytes = memory.peak_bytes()
    return found


def draw_at_once(draw: DrawSeed, seeds: Sequence[int], at_once: int) -> None:
    with ThreadPoolExecutor(at_once) as pool:
        for _ in pool.map(draw, seeds):
            pass


@contextmanager
def running(repository: Path, batching: bool) -> Iterator[Client]:
    """Nereid; without `batching`, one picture is denoised at a time."""
    with serving(repository) if batching else serving_with(repository, "denoise", max_inflight=1) as (client, _):
        yield client
