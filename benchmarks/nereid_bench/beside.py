"""Small pictures beside a large one: what a neighbour's step costs those whose own steps are short."""

from __future__ import annotations

import statistics
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nereid_bench.compare import Say
from nereid_bench.servers import serving
from nereid_client import Client

_PROMPT = "a red circle"


@dataclass(frozen=True, slots=True, kw_only=True)
class BesidePlan:
    """`count` small pictures one after the other, first alone, then while large ones are drawn without a pause."""

    repository: Path
    small: int = 128
    large: int = 1024
    small_steps: int = 20
    large_steps: int = 10
    count: int = 20


def beside(plan: BesidePlan, say: Say) -> dict[str, Any]:
    """Seconds of a small picture alone and beside a large one, against 1.5 x alone plus one large step."""
    with serving(plan.repository) as (client, _):
        say(f"{plan.small} x {plan.small} alone")
        _draw(client, plan.small, plan.small_steps)
        alone = [_draw(client, plan.small, plan.small_steps) for _ in range(plan.count)]
        say(f"{plan.large} x {plan.large} alone")
        one = _draw(client, plan.large, 1)
        step = (_draw(client, plan.large, plan.large_steps) - one) / (plan.large_steps - 1)
        say(f"{plan.small} x {plan.small} beside {plan.large} x {plan.large}")
        with _Neighbour(client, plan) as neighbour:
            time.sleep(one)
            together = [_draw(client, plan.small, plan.small_steps) for _ in range(plan.count)]
        bound = 1.5 * statistics.median(alone) + step
    return {
        "alone_p50": statistics.median(alone),
        "beside_p50": statistics.median(together),
        "beside_worst": max(together),
        "large_step": step,
        "bound": bound,
        "within_bound": sum(taken <= bound for taken in together) / len(together),
        "ratio": statistics.median(together) / statistics.median(alone),
        "large_pictures_drawn": neighbour.drawn,
    }


def _draw(client: Client, side: int, steps: int) -> float:
    start = time.perf_counter()
    client.generate_image(_PROMPT, num_inference_steps=steps, width=side, height=side, seed=0)
    return time.perf_counter() - start


class _Neighbour:
    """Draws large pictures until it is left."""

    def __init__(self, client: Client, plan: BesidePlan) -> None:
        self._client, self._plan = client, plan
        self._enough = threading.Event()
        self._thread = threading.Thread(target=self._work)
        self.drawn = 0

    def __enter__(self) -> _Neighbour:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._enough.set()
        self._thread.join()

    def _work(self) -> None:
        while not self._enough.is_set():
            _draw(self._client, self._plan.large, self._plan.large_steps)
            self.drawn += 1
