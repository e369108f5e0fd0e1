"""Nereid and its peers under the same Poisson load, one after the other, with the same weights and threads."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from nereid_bench.peers import SERVED, LoneEngines, Peer, PeerProcess, PeerSettings, require_onnx_engines
from nereid_bench.servers import serving
from nereid_bench.workload import GUIDANCE, Job, Outcome, Settings, drive, make_jobs

SLACK = 2.0
"""A request is good when it took at most this many times its lone latency."""

Say = Callable[[str], None]
DrawJob = Callable[[Job], Settings]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to compare. Loads are multiples of what diffusers serves one request at a time."""

    settings: PeerSettings
    jobs: int = 64
    steps: tuple[int, ...] = (10, 20, 30)
    loads: tuple[float, ...] = (0.7, 1.2)
    rounds: int = 1
    """How often each load is put on every peer, in turn: medians are told."""
    lone_repeats: int = 3
    overhead_rounds: int = 15


def compare(plan: Plan, say: Say) -> dict[str, Any]:
    """Run everything; returns the report that is printed and written as JSON."""
    require_onnx_engines(plan.settings)
    say("a lone request and its engines, in turn")
    lone_request = overhead(plan.settings, max(plan.steps), plan.overhead_rounds)
    lone: dict[Peer, dict[int, float]] = {}
    for peer in Peer:
        if peer is Peer.NEREID_GOALS:  # alone it is the other one
            continue
        say(f"{peer}: lone latency")
        with running(peer, plan.settings) as draw:
            lone[peer] = {steps: _lone(draw, steps, plan.lone_repeats) for steps in plan.steps}
    lone[Peer.NEREID_GOALS] = lone[Peer.NEREID]
    goals = {steps: SLACK * seconds for steps, seconds in lone[Peer.DIFFUSERS].items()}
    capacity = 1 / statistics.mean(lone[Peer.DIFFUSERS].values())
    rows = []
    for load in plan.loads:
        jobs = make_jobs(plan.jobs, load * capacity, plan.steps)
        figures: dict[Peer, list[dict[str, float]]] = {peer: [] for peer in Peer}
        for number in range(plan.rounds):
            for peer in Peer:
                say(f"{peer}: load {load:g}" + (f", round {number + 1} of {plan.rounds}" if plan.rounds > 1 else ""))
                with running(peer, plan.settings, goals if peer is Peer.NEREID_GOALS else None) as draw:
                    outcomes = drive(jobs, draw, lambda done: None)
                figures[peer].append(summary(outcomes, lone[peer], lone[Peer.DIFFUSERS]))
        rows += [{"peer": str(peer), "load": load, **_medians(figures[peer])} for peer in Peer]
    return {
        "threads": plan.settings.threads,
        "side": plan.settings.side,
        "jobs": plan.jobs,
        "rounds": plan.rounds,
        "capacity_of_diffusers": capacity,
        "lone_seconds": {str(peer): {str(k): v for k, v in times.items()} for peer, times in lone.items()},
        "rows": rows,
        "lone_request": lone_request,
    }


def overhead(settings: PeerSettings, steps: int, rounds: int) -> dict[str, float]:
    """What of a lone request's time is not its engines': both in turn, so that the machine's moods meet both alike."""
    job = Job(number=0, arrival=0, prompt="a red circle", steps=steps, scheduler="dpmpp_2m", seed=0)
    served, bare = [], []
    with running(Peer.NEREID, settings) as draw, LoneEngines(settings) as engines:
        for _ in range(rounds + 1):
            start = time.perf_counter()
            draw(job)
            served.append(time.perf_counter() - start)
            bare.append(engines.seconds(steps))
    whole, part = statistics.median(served[1:]), statistics.median(bare[1:])
    return {"steps": steps, "seconds": whole, "engines": part, "overhead": 1 - part / whole}


def _lone(draw: DrawJob, steps: int, repeats: int) -> float:
    """Median latency of one request with nothing else under way."""
    taken = []
    for number in range(repeats + 1):
        job = Job(number=number, arrival=0, prompt="a red circle", steps=steps, scheduler="dpmpp_2m", seed=number)
        start = time.perf_counter()
        draw(job)
        taken.append(time.perf_counter() - start)
    return statistics.median(taken[1:])


def summary(outcomes: list[Outcome], own: dict[int, float], common: dict[int, float]) -> dict[str, float]:
    """Figures of one peer under one load.

    `goodput` counts requests within twice the lone latency of the same request on plain diffusers, the same bar for every
    peer; `goodput_own` uses the peer's own lone latency; `goodput_as_asked` also wants the request's own settings honoured.
    `steps_per_second` counts the steps that were really computed for images: a batch that runs with its first request's
    settings may skip some or add some.
    """
    latencies = sorted(outcome.latency for outcome in outcomes)
    count = len(outcomes)
    good = [outcome.latency <= SLACK * common[outcome.job.steps] for outcome in outcomes]
    first = min(outcome.job.arrival for outcome in outcomes)
    seconds = max(outcome.finished for outcome in outcomes) - first
    return {
        "throughput": count / seconds,
        "steps_per_second": sum(outcome.made_with[0] for outcome in outcomes) / seconds,
        "p50": latencies[count // 2],
        "p95": latencies[min(count - 1, int(0.95 * count))],
        "goodput": sum(good) / count,
        "goodput_own": sum(o.latency <= SLACK * own[o.job.steps] for o in outcomes) / count,
        "goodput_as_asked": sum(ok and o.as_asked for ok, o in zip(good, outcomes, strict=True)) / count,
    }


def _medians(rounds: list[dict[str, float]]) -> dict[str, float]:
    return {name: statistics.median(figures[name] for figures in rounds) for name in rounds[0]}


@contextmanager
def running(peer: Peer, settings: PeerSettings, goals: Mapping[int, float] | None = None) -> Iterator[DrawJob]:
    """A peer, warmed up, as a callable that draws one job. `goals`: seconds by steps that Nereid is asked to be done within."""
    if peer not in SERVED:
        with PeerProcess(peer, settings) as process:
            yield process.draw
        return
    with serving(settings.repository) as (client, _):

        def draw(job: Job) -> Settings:
            client.generate_image(
                job.prompt,
                num_inference_steps=job.steps,
                scheduler=job.scheduler,
                seed=job.seed,
                guidance_scale=GUIDANCE,
                width=settings.side,
                height=settings.side,
                deadline_seconds=goals[job.steps] if goals and job.steps in goals else None,
            )
            return job.settings

        draw(Job(number=0, arrival=0, prompt="warm up", steps=2, scheduler="ddim", seed=0))
        yield draw
