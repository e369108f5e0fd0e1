"""Who is inside the worker: hands requests to it, takes their tokens, and gives them to its successor when it has died.

After a death those that were inside are divided into four, and each part runs without anybody else; a part whose worker dies is
divided again. So a request that ends workers is alone after a few deaths, is known by that, and takes no others along; and after
a death that was nobody's fault nobody waits for all others. Knows neither text nor Triton.
"""

from __future__ import annotations

import itertools
import logging
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from nereid.engines.channel import Message
from nereid.engines.worker import Worker, WorkerOptions
from nereid.flow.errors import PoisonousRequestError, RequestError
from nereid.flow.request_ids import named
from nereid.flow.runs import Runs
from nereid.flow.state_folder import set_worker_down
from nereid.llm.observer import LlmObserver
from nereid.llm.orders import METRIC, REFUSED, TOKENS, Order, drop, read_deltas
from nereid.llm.sequences import Delta
from nereid.llm.tasks import LlmTask
from nereid_protocol.errors import WireError
from nereid_protocol.metrics import LLM_KV_USAGE, LLM_METRICS, LLM_REPLAYS, LLM_WORKER_DEATHS

log = logging.getLogger(__name__)

_PARTS = 4
_WAIT_SECONDS = 0.02
"""A tick of the batcher lasts no longer, though nothing happens: deadlines and cancellations are looked at between two."""

_METRICS = {metric.name: metric for metric in LLM_METRICS}


@dataclass(slots=True, eq=False)
class Crew:
    """One worker and the tasks inside it. `advance` and `rest` are the batcher's; the other methods are the worker's keeper's."""

    options: WorkerOptions
    observer: LlmObserver
    runs: Runs
    worker: Worker = field(init=False)
    _inside: dict[int, LlmTask] = field(default_factory=dict)
    _up: bool = False
    _news: bool = False
    _blamed: bool = False
    _parts: Iterator[int] = field(default_factory=lambda: itertools.count(1))
    _changed: threading.Condition = field(default_factory=threading.Condition)

    def __post_init__(self) -> None:
        self.worker = Worker(self.options, self)

    def advance(self, tasks: Sequence[LlmTask]) -> None:
        """Send those that may go in, call back those that were let go of, and wait until something has happened."""
        with self._changed:
            self._call_back({task.number for task in tasks})
            if self._up:
                for task in self._admitted(tasks):
                    self._send(task)
            self._changed.wait_for(lambda: self._news, _WAIT_SECONDS)
            self._news = False

    def rest(self) -> bool:
        """Nobody is in flight any more: those that were let go of are called back, and nothing is left to do."""
        with self._changed:
            self._call_back(set())
        return False

    def poke(self) -> None:
        """Something new is to be looked at."""
        with self._changed:
            self._news = True
            self._changed.notify_all()

    def stop(self) -> None:
        self.worker.stop()

    def _call_back(self, alive: set[int]) -> None:
        """Have the worker drop those that are not among `alive`; one that has only lost its place may come again."""
        for number in [number for number in self._inside if number not in alive]:
            self._inside.pop(number).called_back = True
            self.worker.send(drop(number))

    def _admitted(self, tasks: Sequence[LlmTask]) -> list[LlmTask]:
        waiting = [task for task in tasks if task.number not in self._inside and not task.done and task.error is None]
        suspects = [task for task in waiting if task.suspect]
        if any(task.suspect for task in self._inside.values()):
            return []  # its part is there already, and nobody joins it
        if not suspects:
            return waiting
        first = suspects[0]
        return [] if self._inside else [task for task in suspects if task is first or (task.part and task.part == first.part)]

    def _send(self, task: LlmTask) -> None:
        task.entered()
        if task.called_back:
            task.begin_again()
        self._inside[task.number] = task
        self.worker.send(Order.of(task.request, task.request_id).message(task.number))
        if task.request.run_id is not None:
            self.runs.started(task.request.run_id, task)
        if task.deaths:
            self.observer.recorder.record(LLM_REPLAYS, 1)

    # --- the worker's keeper tells ---

    def ready(self, facts: Mapping[str, Any]) -> None:
        with self._changed:
            self._up = True
        set_worker_down(self.options.name, False)
        self.poke()

    def died(self, reason: str) -> None:
        set_worker_down(self.options.name, True)
        self.observer.recorder.record(LLM_WORKER_DEATHS, 1)
        self.observer.recorder.record(LLM_KV_USAGE, 0)
        with self._changed:
            self._up = False
            lost, self._inside = list(self._inside.values()), {}
            blamed, self._blamed = self._blamed, False
            if lost and not blamed:
                log.warning("%s: %s were running; they are computed again", reason, named([task.request_id for task in lost]))
            size = -(-len(lost) // _PARTS)
            for place, task in enumerate(lost):
                if not blamed:
                    task.deaths += 1
                    task.part = next(self._parts) if place % size == 0 else lost[place - 1].part
                task.rewind()
            if not blamed and len(lost) == 1 and lost[0].deaths >= 2:
                lost[0].error = PoisonousRequestError(
                    f"the request has ended its worker process twice, the last time alone ({reason}); it is not tried again"
                )
        self.poke()

    def message(self, message: Message) -> None:
        body = message.body
        if message.kind == TOKENS:
            looked_at = [self._take(*entry) for entry in read_deltas(message)]
            if True in looked_at:
                self.poke()
        elif message.kind == REFUSED:
            wire = WireError.parse(body["error"])
            self._blamed = self._blamed or bool(body["ends"])
            with self._changed:
                task = None if wire is None else self._inside.pop(int(body["task"]), None)
                if task is not None and wire is not None:
                    task.error = RequestError.of_wire(wire)
                    self.poke()
        elif message.kind == METRIC:
            self.observer.recorder.record(_METRICS[body["name"]], body["value"], **body["labels"])

    def _take(self, number: int, index: int, cached_tokens: int, delta: Delta) -> bool:
        """Give a delta to its task; True where the batcher should look at the task."""
        with self._changed:  # else it may begin again between the look and the taking, and these be its former tokens
            task = self._inside.get(number)
            if task is None or task.error is not None:
                return False
            task.receive(index, delta, cached_tokens)
            if task.done and task.error is None:
                self._inside.pop(number, None)
            return task.done or task.error is not None
