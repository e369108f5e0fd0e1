"""The ladder from the plainest way to draw to all that Nereid can do: what each rung gains, and what it costs in quality.

Rungs and peers take turns for several rounds, each in processes of its own: a server, or a process that draws without one. A
noisy minute falls on all of them, and medians are told.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nereid.serving.errors import ServingError
from nereid_bench.compare import Say
from nereid_bench.ladder_choice import served_steps, with_peers
from nereid_bench.ladder_draws import draw_at_once, measured, running, take_turn
from nereid_bench.ladder_kept import KeptTurns, checkpoint_digest, key_of
from nereid_bench.ladder_repositories import checkpoint_name, checkpoint_of, tiny_vae_of
from nereid_bench.ladder_rows import Found, rows_of
from nereid_bench.ladder_rungs import (
    MODELS,
    TINY_VAE,
    Kind,
    LadderModel,
    LadderPlan,
    PeerWay,
    Rung,
    ServedWay,
    Step,
    Way,
    told,
)
from nereid_bench.schedulers import PROMPTS
from nereid_bench.servers import LONGEST_SECONDS
from nereid_bench.turns import turned
from nereid_client import Client, NereidError
from nereid_export.errors import ExportError
from nereid_export.resume import machine
from nereid_export.scorers import Scorer, scorer_for

MEMORY = (
    "peak of resident memory in MB: of diffusers and peers their process's own, of Nereid the sum of each server process's own, "
    "where what processes share counts in each"
)
TURNS = "turns"
"""The folder of `LadderPlan.work` where each turn's figures are kept."""
_FIRST_STEPS = 2
"""Of pictures that warm up a server where a whole one takes minutes."""
_WARM_ROUNDS = 4
"""Small engines are compiled for the numbers of rows that they meet, in the background."""


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
        if self.plan.fresh:
            shutil.rmtree(self.plan.work / TURNS, ignore_errors=True)
        if Rung.PLAIN not in self.plan.rungs:
            self.say(f"{Rung.PLAIN} is measured, too: speed-ups and PSNR are against it")
        failed: list[Exception] = []
        for name in self.plan.models:
            try:
                self._climb(name, kept)
            except (ExportError, ServingError) as error:
                failed.append(error)
                self._leave_out(f"{name} is left out: {str(error).removeprefix(f'{name}: ')}")
        report = self.report()
        if failed and not report["rungs"]:
            raise failed[0]
        return report

    def _climb(self, name: str, kept: Callable[[dict[str, Any]], None]) -> None:
        model = _OneModel.of(MODELS[name], self.plan, self._leave_out)
        self._models.append(model)
        for turn in range(self.plan.rounds):
            for _ in model.round(turn, self.say):
                kept(self.report())
            self.rounds_done[name] = turn + 1

    def report(self) -> dict[str, Any]:
        """Rows, what each rung draws with, and the facts of plan and machine."""
        return {
            "rungs": [row for model in self._models for row in model.rows()],
            "drawn_with": {model.model.name: told(model.steps) for model in self._models},
            "plan": {name: value for name, value in asdict(self.plan).items() if name not in ("work", "optimum_cli", "fresh")},
            "rounds_done": self.rounds_done,
            "turns_of_earlier_runs": sum(model.turns_kept for model in self._models),
            "left_out": self.left_out,
            "memory": MEMORY,
            "machine": machine(),
        }

    def _leave_out(self, sentence: str) -> None:
        if sentence not in self.left_out:
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
    kept: KeptTurns
    found: dict[Way, Found] = field(default_factory=dict)
    failed: set[Way] = field(default_factory=set)
    turns_kept: int = 0
    """Of earlier runs."""

    @classmethod
    def of(cls, model: LadderModel, plan: LadderPlan, leave_out: Say) -> _OneModel:
        """Everything that can be measured here, exported."""
        if model.random:
            leave_out(f"{model.name}: PSNR and score are left out, because its weights are random; students are the same weights")
        checkpoint = checkpoint_of(model, plan.work, leave_out)
        scorer = None if model.random else scorer_for(checkpoint)
        if scorer is None and not model.random:
            leave_out(f"{model.name}: the score is left out, because no scorer knows this checkpoint")
        steps, repositories = served_steps(model, checkpoint, plan, leave_out)
        if any(step.rung == Rung.ALL for step in steps) and tiny_vae_of(model, plan.work) is None:
            leave_out(f"{model.name}: {Rung.ALL} has no tiny decoder, because there is no {TINY_VAE}")
        # By the checkpoint's digest: what was converted from another one is not this peer.
        genai = plan.work / checkpoint_name(model) / f"openvino-genai-{checkpoint_digest(checkpoint)[:12]}"
        steps = with_peers(model, checkpoint, steps, plan, genai, leave_out)
        count = max(plan.pictures, plan.at_once)
        prompts = [PROMPTS[number % len(PROMPTS)] for number in range(count)] if scorer is None else scorer.scored(count)
        return cls(model, plan, checkpoint, steps, repositories, leave_out, scorer, prompts, genai, KeptTurns(plan.work / TURNS))

    def rows(self) -> list[dict[str, Any]]:
        return rows_of(self.model, self.steps, self.found, self.scorer)

    def round(self, turn: int, say: Say) -> Iterator[None]:
        """Every process takes its turn; yields after each."""
        for take in turned(self._turns(), turn):
            take(turn, say)
            yield

    def _turns(self) -> list[Callable[[int, Say], None]]:
        ways = list(dict.fromkeys(way for step in self.steps for way in (step.way, *step.peers)))
        peers = [way for way in ways if isinstance(way, PeerWay)]
        servers: dict[tuple[Kind, bool], list[ServedWay]] = {}
        for way in ways:
            if isinstance(way, ServedWay):
                servers.setdefault((way.kind, way.batching), []).append(way)
        return [*(partial(self._by_peer, way) for way in peers), *(partial(self._by_server, group) for group in servers.values())]

    def _by_peer(self, way: PeerWay, turn: int, say: Say) -> None:
        drawn = self._seeds(turn) if way.rows == 1 else list(range(way.rows))
        if way in self.failed or self._known(way, turn, drawn):
            return
        say(f"{self._said(turn)}: {way.label}, {way.does}")
        asked = {"way": asdict(way), "threads": self.plan.threads, "side": self.model.side, "genai": str(self.genai)}
        asked |= {"prompts": [self.prompts[seed] for seed in drawn], "seeds": drawn}
        try:
            self._keep(way, turn, drawn, take_turn(asked))
        except ServingError as error:
            what = f"{way.label} with {way.does}"
            if way == self.steps[0].way:
                raise ServingError(f"{self.model.name}: {what}, which all are held against, failed: {error}") from None
            self._give_up(way, what, error)

    def _by_server(self, ways: Sequence[ServedWay], turn: int, say: Say) -> None:
        seeds = self._seeds(turn)
        left = [way for way in ways if way not in self.failed and not self._known(way, turn, seeds)]
        if not left:
            return
        rungs = {step.way: step.rung for step in self.steps}
        try:
            with running(self.repositories[left[0].kind], left[0].batching) as client:
                for way in left:
                    say(f"{self._said(turn)}: {rungs[way]}")
                    try:
                        self._keep(way, turn, seeds, self._measured(client, way, seeds))
                    except NereidError as error:
                        self._give_up(way, rungs[way], error)
        except ServingError as error:
            for way in left:
                self._give_up(way, rungs[way], error)

    def _measured(self, client: Client, way: ServedWay, seeds: list[int]) -> Found:
        at_once = self.plan.at_once
        # Levels are calibrated for whole runs alone; with random weights there are none, and runs are long.
        first = {"num_inference_steps": _FIRST_STEPS} if self.model.random else {}
        warm = partial(self._draw, client, {**way.fields, **first})
        draw_at_once(warm, [*range(at_once)] * (1 if self.model.random else _WARM_ROUNDS), at_once)
        warm(0)  # engines know a lone picture's shapes before it is timed
        return measured(partial(self._draw, client, way.fields), seeds, self._load(seeds), at_once)

    def _seeds(self, turn: int) -> list[int]:
        """Of the round's lone pictures."""
        return list(range(self.plan.pictures))[turn :: self.plan.rounds]

    def _load(self, seeds: list[int]) -> range:
        return range(max(len(seeds), self.plan.at_once))

    def _said(self, turn: int) -> str:
        return f"{self.model.name}, round {turn + 1} of {self.plan.rounds}"

    def _key(self, way: Way, turn: int, seeds: list[int]) -> dict[str, Any]:
        drawn: dict[str, Any] = {"turn": turn, "seeds": seeds, "prompts": [self.prompts[seed] for seed in seeds]}
        drawn |= {"side": self.model.side, "threads": self.plan.threads}
        if isinstance(way, PeerWay):
            return key_of(way, None, drawn)
        drawn |= {"at_once": self.plan.at_once, "load": [self.prompts[seed] for seed in self._load(seeds)]}
        return key_of(way, self.repositories[way.kind], drawn)

    def _known(self, way: Way, turn: int, seeds: list[int]) -> bool:
        """Whether an earlier run has taken this turn, whose figures are then added."""
        found = self.kept.read(self._key(way, turn, seeds))
        if found is None:
            return False
        self.found.setdefault(way, Found()).add(found)
        self.turns_kept += 1
        return True

    def _keep(self, way: Way, turn: int, seeds: list[int], found: Found) -> None:
        self.kept.write(self._key(way, turn, seeds), found)
        self.found.setdefault(way, Found()).add(found)

    def _give_up(self, way: Way, what: str, error: Exception) -> None:
        """Take no more turns with it; what earlier rounds have found stays."""
        if way not in self.failed:
            self.failed.add(way)
            later = " of later rounds" if way in self.found else ""
            self.leave_out(f"{self.model.name}: {what} is left out{later}: {error}")

    def _draw(self, client: Client, fields: Mapping[str, Any], seed: int) -> NDArray[np.uint8]:
        asked = {**fields, "width": self.model.side, "height": self.model.side, "seed": seed}
        return client.generate_image(self.prompts[seed], timeout=LONGEST_SECONDS, **asked).pixels[0]
