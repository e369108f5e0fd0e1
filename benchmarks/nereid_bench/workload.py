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
Settings = tuple[int, str]
"""Steps and scheduler."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One request: when it arrives (seconds from the start) and what it asks for."""

    number: int
    arrival: float
    prompt: str
    steps: int
    scheduler: str
    seed: int

    @property
    def settings(self) -> Settings:
        return self.steps, self.scheduler


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a job went: seconds from arrival to its image, and the steps and scheduler that it was made with."""

    job: Job
    latency: float
    finished: float
    made_with: Settings

    @property
    def as_asked(self) -> bool:
        return self.made_with == self.job.settings


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


def drive(jobs: list[Job], draw: Callable[[Job], Settings], done: Callable[[int], None]) -> list[Outcome]:
    """Send each job at its time, from a thread of its own; `draw` returns the settings that were used."""
    outcomes: list[Outcome] = []
    lock = threading.Lock()
    start = time.perf_counter() + 0.2

    def one(job: Job) -> None:
        time.sleep(max(0.0, start + job.arrival - time.perf_counter()))
        made_with = draw(job)
        finished = time.perf_counter() - start
        with lock:
            outcomes.append(Outcome(job=job, latency=finished - job.arrival, finished=finished, made_with=made_with))
            done(len(outcomes))

    threads = [threading.Thread(target=one, args=(job,)) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return outcomes
