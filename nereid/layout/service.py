"""`layout` as plain Python: raw inputs in, answers out, many requests in flight; the engine is in a process of its own.

The loop is that of images (nereid.diffusion.loop), over rows that are layouts. An answer may be worse than was asked for, and
then says so: of fewer steps where its goal would be missed, by rules where the engine is gone.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

import numpy as np

from nereid.diffusion.branch_cache import BranchEngine
from nereid.diffusion.dynamic_width import TokenEngine, WidthEngine
from nereid.diffusion.feature_cache import Variant
from nereid.diffusion.goals import goal_of
from nereid.diffusion.loop import DenoisingLoop
from nereid.diffusion.plan import EngineCall
from nereid.diffusion.run_lanes import cost_key
from nereid.diffusion.state import ImageRun
from nereid.engines.costs import StepCosts
from nereid.flow.batcher import InFlightBatcher
from nereid.flow.errors import EngineError, LostError, PoisonousRequestError, RequestError
from nereid.flow.fields import Inputs
from nereid.flow.flight_record import Flight, FlightRecord
from nereid.flow.metrics import LoopObserver, Recorder
from nereid.flow.replies import Reply, take
from nereid.flow.request_ids import NamedThreads
from nereid.flow.tickets import Ticket
from nereid.layout.answers import Layout, Reason
from nereid.layout.checks import has_errors
from nereid.layout.fewer_steps import round_seconds, steps_that_fit
from nereid.layout.requests import parse_layout_request
from nereid.layout.rows import end_sooner, layout_runs
from nereid.layout.settings import KEPT, LayoutModel, outputs_of
from nereid.layout.task import LayoutTask
from nereid_protocol.metrics import (
    LAYOUT_BRANCHES,
    LAYOUT_CHECKS,
    LAYOUT_DEGRADED,
    LAYOUT_LOOP,
    LAYOUT_TOKENS,
    LAYOUT_WIDTHS,
)

log = logging.getLogger(__name__)

_SAVE_SECONDS = 30.0


class Engine(Protocol):
    """What draws: nereid.engines.engine_process, or a test's."""

    @property
    def down_since(self) -> float | None:
        """On the monotonic clock, since when it has been gone; None while it is there."""
        ...

    def call(self, inputs: Mapping[str, np.ndarray], outputs: Sequence[str], graph: str = "") -> Future[Mapping[str, np.ndarray]]:
        """Of the transformer, or of a `graph` that gives and takes its branches, is a slice of it or passes over tokens.

        Fails with RequestError; with LostError where it is gone.
        """
        ...

    def stop(self) -> None: ...


@dataclass(slots=True)
class LayoutService:
    """Owns the queue, the loop and the answering of one `layout` instance.

    `record` notes who is inside, `costs` what steps take.
    """

    model: LayoutModel
    engine: Engine
    recorder: Recorder
    costs: StepCosts = field(default_factory=StepCosts)
    record: FlightRecord | None = None
    _observer: LoopObserver = field(init=False)
    _loop: DenoisingLoop = field(init=False)
    _batcher: InFlightBatcher[LayoutTask] = field(init=False)
    _senders: NamedThreads = field(init=False)
    _saved: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        limits = self.model.limits
        self._observer = LoopObserver(self.recorder, LAYOUT_LOOP)
        self._loop = DenoisingLoop(
            self._predict,
            limits.engine_max_batch_size,
            self.costs,
            min_batch_size=limits.engine_min_batch_size,
            earliest_due_first=True,
            stepped=self._stepped,
            process_of=lambda _: Variant.FULL,
            died=self._observer.engine_died,
        )
        self._senders = NamedThreads(max_workers=8, thread_name_prefix="layout-send")
        self._batcher = InFlightBatcher(
            self._advance,
            self._observer,
            max_inflight=limits.max_inflight,
            max_queue=limits.max_queue,
            name="layout",
            rows_name="candidates in one request",
        )
        self._loop.waiting = self._batcher.waiting

    def handle(self, inputs: Inputs, reply: Reply) -> None:
        """Take one request; returns at once, `reply` follows."""
        take(inputs, reply, self._batcher, self.model.fingerprint, self._start, self._refuse)

    def stop(self) -> None:
        """Fail what is in flight, end the engine, and release the threads."""
        self._batcher.stop()
        self.engine.stop()
        self._senders.shutdown(wait=True)
        self.costs.save()
        self.recorder.stop()
        if self.record is not None:
            self.record.close()

    # --- requests ---

    def _start(self, inputs: Inputs, reply: Reply) -> None:
        request = parse_layout_request(inputs, self.model.facts, self.model.limits)
        flight = Flight.of(self.record, inputs, "layout")
        task = LayoutTask(
            request,
            reply,
            self._senders,
            layout_runs(request.drawn, request.drafts, request.seeds, request.table, request.cache, request.widths),
            flight,
            self.model.fingerprint,
            self._told,
        )
        ticket = self._batcher.take_ticket(
            task.rows, timeout_seconds=request.timeout_seconds, task=task, run_id=request.run_id, priority=request.priority
        )
        self._plan(task, ticket)
        self._batcher.redeem(ticket)

    def _plan(self, task: LayoutTask, ticket: Ticket[LayoutTask]) -> None:
        """When it should be done, and from when on that is at stake while it waits; its candidates share calls."""
        limits, asked = self.model.limits, task.request.deadline_seconds
        calls, most = [(task.runs[0], task.rows)], limits.engine_max_batch_size
        goal = goal_of(calls, most, self.costs, task.submitted, asked, limits.latency_target)
        # Not when it is lost: fewer steps may still meet it.
        task.due, ticket.start_by = goal.due, goal.start_by
        ticket.alone = task.flight.is_suspect

    def _refuse(self, error: RequestError, reply: Reply) -> None:
        self._observer.refused(error.outcome)
        reply.close(error)

    # --- the loop ---

    def _predict(self, call: EngineCall) -> Future[Mapping[str, np.ndarray]]:
        outputs = outputs_of(call.variant, call.outputs)
        made = self.engine.call(call.inputs, outputs, "" if call.variant is Variant.FULL else call.variant)
        if KEPT in outputs:
            made.add_done_callback(lambda done: self._passed_over(call, done))
        return made

    def _passed_over(self, call: EngineCall, done: Future[Mapping[str, np.ndarray]]) -> None:
        """Count the tokens of a call by whether MLPs were computed for them: padded ones are none; rows that fill it up count."""
        if done.exception() is None:
            kept = done.result()[KEPT]
            computed, every = float(kept.sum()), float(kept.shape[1] * (call.inputs["valid"].sum() + call.rows))
            self.recorder.record(LAYOUT_TOKENS, computed, how="computed")
            self.recorder.record(LAYOUT_TOKENS, every - computed, how="skipped")

    def _stepped(self, variant: StrEnum, rows: int, seconds: float) -> None:
        self._observer.stepped(self.model.limits.engine, rows, seconds)
        if isinstance(variant, BranchEngine):
            for how, branches in (("computed", variant.computed), ("reused", variant.reused)):
                for branch in branches:
                    self.recorder.record(LAYOUT_BRANCHES, rows, branch=str(branch), how=how)
        width = variant.width if isinstance(variant, TokenEngine) else variant
        if isinstance(width, WidthEngine):
            self.recorder.record(LAYOUT_WIDTHS, rows, width=str(width))

    def _call_seconds(self, run: ImageRun, rows: int) -> float:
        return self.costs.predict(cost_key(run.variant, run.shape), min(rows, self.model.limits.engine_max_batch_size))

    def _advance(self, tasks: Sequence[LayoutTask]) -> None:
        now = time.monotonic()
        for task in tasks:
            task.flight.enter()
        self._do_without(tasks, now)
        going = [task for task in tasks if not task.done]
        self._hurry(going, now)
        if going:
            self._loop.advance(going)
        for task in going:
            if isinstance(task.error, EngineError | LostError | PoisonousRequestError):
                log.warning("request %s: its layout is made by rules: %s", task.request_id, task.error)
                task.fall_back(f"the boxes are placed by rules, because the engine has failed: {task.error}")
        if now - self._saved > _SAVE_SECONDS:
            self._saved = now
            self._senders.submit(self.costs.save)

    def _do_without(self, tasks: Sequence[LayoutTask], now: float) -> None:
        """Who has waited long enough for an engine that is gone is answered by rules."""
        gone, patience = self.engine.down_since, self.model.limits.engine_patience_seconds
        for task in tasks if gone is not None else ():
            if not task.done and now - max(gone or now, task.submitted) >= patience:
                task.fall_back("the boxes are placed by rules, because the engine's process is being replaced")

    def _hurry(self, tasks: Sequence[LayoutTask], now: float) -> None:
        """Runs whose goal would be missed take fewer steps."""
        if all(task.request.deadline_seconds is None for task in tasks):
            return
        most = self.model.limits.engine_max_batch_size
        everybody = round_seconds([run for task in tasks for run in task.runs], most, self._call_seconds)
        for task in tasks:
            if task.request.deadline_seconds is None:
                continue
            for run in task.runs:
                left = run.row.end - run.step
                fits = steps_that_fit(run, everybody, task.started, task.due, now)
                if not run.busy and 0 < fits < left:
                    end_sooner(run, fits, self.model.facts.scheduler, self.model.facts.schedule)
                    asked = len(task.request.table)
                    goal = task.request.deadline_seconds
                    task.degrade(Reason.DEADLINE, f"fewer than the {asked} steps asked for were taken, to meet {goal:g} s")

    def _told(self, task: LayoutTask, layout: Layout | None) -> None:
        """An answer is ready, or an error."""
        if layout is None:
            return
        for one in task.degraded:
            self.recorder.record(LAYOUT_DEGRADED, 1, reason=str(one.reason))
        self._observer.made(sum(run.done for run in task.runs))
        self.recorder.record(LAYOUT_CHECKS, 1, passed=str(not has_errors(layout.findings)).lower())
