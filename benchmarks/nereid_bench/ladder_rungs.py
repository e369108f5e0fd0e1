"""The rungs of `nereid bench ladder`: how each draws, which engines it needs, and which peers do the same. Pure functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

from nereid_bench.workload import GUIDANCE
from nereid_zoo.shapes.score import CHECKPOINT

FEW_SOLVER = "dpmpp_2m"
SHAPES = CHECKPOINT.parent
"""Where the shipped checkpoint, its students and its tiny VAE lie."""
TINY_VAE = SHAPES / "tiny-vae"


class Rung(StrEnum):
    """From the plainest way to all of it."""

    PLAIN = "plain"
    SOLVER = "solver"
    ENGINE = "engine"
    PRECISION = "precision"
    GUIDANCE = "guidance"
    CACHE = "cache"
    BATCHING = "batching"
    STUDENT_4 = "student-4step"
    STUDENT_2 = "student-2step"
    ALL = "all"


STUDENT_STEPS: Mapping[Rung, int] = {Rung.STUDENT_4: 4, Rung.STUDENT_2: 2}
STUDENT_SOLVER = "lcm"
"""Of students with random weights, which are the checkpoint itself: their steps take as long as a trained one's."""


CACHED = (Rung.GUIDANCE, Rung.CACHE, Rung.BATCHING)
"""Rungs whose requests keep something between steps."""


class PeerName(StrEnum):
    """Ways to run the same checkpoint without Nereid."""

    DIFFUSERS = "diffusers"
    BATCHED = "diffusers-batched"
    COMPILED = "torch.compile"
    OPENVINO_GENAI = "openvino-genai"
    DEEPCACHE = "deepcache"
    ATTENTION_BROADCAST = "pyramid-attention-broadcast"
    CACHE_DIT = "cache-dit"


class Kind(StrEnum):
    """The repositories that rungs are served from."""

    FP32 = "fp32"
    AUTO = "auto"
    STUDENT_4 = "student-4step"
    STUDENT_2 = "student-2step"
    ALL = "all"


@dataclass(frozen=True, slots=True, kw_only=True)
class LadderModel:
    """A checkpoint and its pictures' pixels a side; with `random` weights nothing is said of quality."""

    name: str
    side: int
    random: bool = False


MODELS: Mapping[str, LadderModel] = {
    model.name: model
    for model in (
        LadderModel(name="shapes", side=128),
        LadderModel(name="sd15-256", side=256, random=True),
        LadderModel(name="sd15-512", side=512, random=True),
    )
}


@dataclass(frozen=True, slots=True, kw_only=True)
class LadderPlan:
    """What to measure."""

    work: Path = Path("build/bench-ladder")
    models: tuple[str, ...] = ("shapes",)
    rungs: tuple[str, ...] = tuple(Rung)
    rounds: int = 3
    pictures: int = 48
    """Of each rung, drawn one after the other; the rounds share them."""
    at_once: int = 8
    """Requests in flight under load."""
    steps: int = 50
    """Of the plainest way."""
    few_steps: int = 20
    few_solver: str = FEW_SOLVER
    guidance: float = GUIDANCE
    cache_interval: int = 3
    """Of peers that cache, and of rungs where levels have no meaning."""
    peers: tuple[str, ...] = tuple(PeerName)
    engine: str = "auto"
    precision: str = "auto"
    """What the rung `precision` and those beyond it are exported with, as `nereid export diffusion` has it."""
    optimum_cli: Path | None = None
    threads: int = 1
    fresh: bool = False
    """Whether turns that earlier runs have kept are thrown away."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerWay:
    """A process of its own that draws without Nereid; `scheduler` is the checkpoint's where empty."""

    name: PeerName
    checkpoint: str
    steps: int
    precision: str = "fp32"
    scheduler: str = ""
    guidance: float = 1.0
    rows: int = 1
    """Pictures of a call."""
    cache_interval: int = 0
    tiny_vae: str = ""

    @property
    def label(self) -> str:
        """How tables call it."""
        precision = "" if self.precision == "fp32" else f" {self.precision}"
        return f"{self.name}{precision}" + (f" of {self.rows}" if self.rows > 1 else "")

    @property
    def given_noise(self) -> bool:
        """Whether it starts from the noise that is given, and so draws the picture that others draw from it."""
        return self.name is not PeerName.OPENVINO_GENAI

    @property
    def does(self) -> str:
        """Its steps, in words."""
        solver = self.scheduler or "the checkpoint's scheduler"
        return f"{self.steps} steps of {solver}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedWay:
    """Requests to Nereid; without `batching`, the server denoises one picture after the other, as diffusers does."""

    kind: Kind
    fields: Mapping[str, Any] = field(hash=False)
    batching: bool = True


Way = PeerWay | ServedWay


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One rung of one model, and the peers that do the same with equal steps."""

    rung: Rung
    way: Way
    peers: tuple[PeerWay, ...] = ()

    @property
    def uses_student(self) -> bool:
        return self.rung in (*STUDENT_STEPS, Rung.ALL)


def base_kind(plan: LadderPlan) -> Kind:
    """What the rungs beyond `precision` are served from: each adds to those below it that were asked for."""
    return Kind.AUTO if Rung.PRECISION in plan.rungs else Kind.FP32


def steps_of(
    model: LadderModel, checkpoint: Path, plan: LadderPlan, tiny_vae: Path | None, fewest: Rung = Rung.STUDENT_2
) -> list[Step]:
    """The rungs that were asked for, in their order; the plainest is always among them, for others are compared with it.

    `fewest` is the student of the rung `all`.
    """
    plain = PeerWay(name=PeerName.DIFFUSERS, checkpoint=str(checkpoint), steps=plan.steps, guidance=plan.guidance)
    few = replace(plain, steps=plan.few_steps, scheduler=plan.few_solver)
    asked = {"num_inference_steps": plan.few_steps, "scheduler": plan.few_solver, "guidance_scale": plan.guidance}
    halves, features = _kept(model, plan)
    base = base_kind(plan)
    cached = {**asked, **halves, **features}

    def peer(name: PeerName, **changes: Any) -> PeerWay:
        return replace(few, name=name, **changes)

    compiled, genai = peer(PeerName.COMPILED), peer(PeerName.OPENVINO_GENAI)
    caching = (PeerName.DEEPCACHE, PeerName.ATTENTION_BROADCAST, PeerName.CACHE_DIT)
    made = [
        Step(rung=Rung.PLAIN, way=plain),
        Step(rung=Rung.SOLVER, way=few),
        Step(rung=Rung.ENGINE, way=ServedWay(kind=Kind.FP32, fields=asked, batching=False), peers=(compiled, genai)),
        Step(
            rung=Rung.PRECISION,
            way=ServedWay(kind=Kind.AUTO, fields=asked, batching=False),
            peers=tuple(replace(way, precision="bf16") for way in (compiled, genai)),
        ),
        Step(rung=Rung.GUIDANCE, way=ServedWay(kind=base, fields={**asked, **halves}, batching=False)),
        Step(
            rung=Rung.CACHE,
            way=ServedWay(kind=base, fields=cached, batching=False),
            peers=tuple(peer(name, cache_interval=plan.cache_interval) for name in caching),
        ),
        Step(
            rung=Rung.BATCHING,
            way=ServedWay(kind=base, fields=cached),
            peers=(peer(PeerName.BATCHED, rows=plan.at_once),),
        ),
        *(_student(rung, rung, None) for rung in STUDENT_STEPS),
        _student(Rung.ALL, fewest, tiny_vae),
    ]
    if model.random:
        made = [_random_student(step, checkpoint, base) if step.uses_student else step for step in made]
    return [step for step in made if step.rung == Rung.PLAIN or step.rung in plan.rungs]


def _kept(model: LadderModel, plan: LadderPlan) -> tuple[dict[str, Any], dict[str, Any]]:
    """What of guidance and of features is kept: by calibrated levels where weights mean something, else at a fixed pace."""
    if model.random:
        return {"guidance_cache_interval": plan.cache_interval}, {"cache_interval": plan.cache_interval}
    return {"guidance_cache": "balanced"}, {"cache": "balanced"}


def _student(rung: Rung, student: Rung, tiny_vae: Path | None) -> Step:
    """A student at its own number of steps, with its own scheduler and no guidance."""
    steps = STUDENT_STEPS[student]
    peer = PeerWay(name=PeerName.DIFFUSERS, checkpoint=str(SHAPES / student), steps=steps)
    fields: dict[str, Any] = {"num_inference_steps": steps}
    if tiny_vae is not None:
        fields, peer = {**fields, "decoder": "tiny"}, replace(peer, tiny_vae=str(tiny_vae))
    return Step(rung=rung, way=ServedWay(kind=Kind(rung), fields=fields), peers=(peer,))


def _random_student(step: Step, checkpoint: Path, base: Kind) -> Step:
    """The same rung by the checkpoint's own random weights, from the repositories that other rungs have, too."""
    assert isinstance(step.way, ServedWay)
    fields = {**step.way.fields, "scheduler": STUDENT_SOLVER, "guidance_scale": 1.0}
    way = replace(step.way, kind=base if step.rung == Rung.ALL else Kind.FP32, fields=fields)
    peers = tuple(replace(peer, checkpoint=str(checkpoint), scheduler=STUDENT_SOLVER) for peer in step.peers)
    return replace(step, way=way, peers=peers)


def told(steps: Sequence[Step]) -> dict[str, str]:
    """What each rung draws with, in words."""
    return {step.rung: _words(step.way) for step in steps}


def _words(way: Way) -> str:
    if isinstance(way, PeerWay):
        return f"{way.name} {way.precision}, {way.does}, guidance {way.guidance:g}"
    asked = ", ".join(f"{name}={value}" for name, value in way.fields.items())
    return f"Nereid, repository {way.kind}, {'in-flight batching' if way.batching else 'one picture at a time'}: {asked}"
