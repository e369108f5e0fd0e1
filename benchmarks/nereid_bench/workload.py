"""Requests as they arrive: Poisson, mixed steps and schedulers, the same for every peer."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from nereid_zoo.shapes.score import held_out_captions

SCHEDULERS = ("ddim", "euler", "dpmpp_2m", "unipc")
GUIDANCE = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One request: when it arrives (seconds from the start) and what it asks for."""

    number: int
    arrival: float
    prompt: str
    steps: int
    scheduler: str
    seed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a job went: seconds from arrival to its image, and whether it was made with its own settings."""

    job: Job
    latency: float
    finished: float
    as_asked: bool


def make_jobs(count: int, rate: float, steps: tuple[int, ...], seed: int = 0) -> list[Job]:
    """`count` jobs with exponential gaps at `rate` a second."""
    rng = random.Random(seed)
    captions = held_out_captions(count, seed)
    jobs, now = [], 0.0
    for number in range(count):
        now += rng.expovariate(rate)
        jobs.append(
            Job(
                number=number,
                arrival=now,
                prompt=captions[number].text,
                steps=rng.choice(steps),
                scheduler=rng.choice(SCHEDULERS),
                seed=number,
            )
        )
    return jobs


def drive(jobs: list[Job], draw: Callable[[Job], bool], done: Callable[[int], None]) -> list[Outcome]:
    """Send each job at its time, from a thread of its own; `draw` returns whether its own settings were used."""
    outcomes: list[Outcome] = []
    lock = threading.Lock()
    start = time.perf_counter() + 0.2

    def one(job: Job) -> None:
        time.sleep(max(0.0, start + job.arrival - time.perf_counter()))
        as_asked = draw(job)
        finished = time.perf_counter() - start
        with lock:
            outcomes.append(Outcome(job=job, latency=finished - job.arrival, finished=finished, as_asked=as_asked))
            done(len(outcomes))

    threads = [threading.Thread(target=one, args=(job,)) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return outcomes
