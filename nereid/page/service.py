"""`page` as plain Python: raw inputs in, answers out, each page made by a thread of its own; the models are calls.

A page more than `max_pages` is refused at once: each holds a thread, and makes some dozen calls. After a death of the process
those that were inside are made one at a time, so that one which kills it is found.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from nereid.flow.call_threads import CallThreads
from nereid.flow.errors import EngineError, QueueFullError, RequestError, StoppingError
from nereid.flow.fields import Inputs
from nereid.flow.flight_record import Flight, FlightRecord
from nereid.flow.metrics import Recorder
from nereid.flow.replies import Reply, take
from nereid.flow.request_ids import NamedThreads
from nereid.flow.runs import Runs
from nereid.flow.turns import Turns
from nereid.page.requests import PageRequest, parse_page_request
from nereid.page.run import PageAnswer, PageRun
from nereid.page.settings import PageModel
from nereid.page.stages import Stage, Stages
from nereid_protocol.metrics import (
    PAGE_ACTIVE_REQUESTS,
    PAGE_CHECKS,
    PAGE_DEGRADED,
    PAGE_FIRST_SECTION_SECONDS,
    PAGE_REQUEST_SECONDS,
    PAGE_REQUESTS,
    PAGE_STAGE_SECONDS,
)

log = logging.getLogger(__name__)

_END_SECONDS = 10.0
"""How long calls that were cancelled are waited for at the end: one to a process that has died may never be answered."""


@dataclass(frozen=True, slots=True)
class PageObserver:
    """What a page tells, as metrics."""

    recorder: Recorder

    def call_ended(self, stage: Stage, seconds: float) -> None:
        self.recorder.record(PAGE_STAGE_SECONDS, seconds, stage=str(stage))

    def degraded(self, stage: Stage) -> None:
        self.recorder.record(PAGE_DEGRADED, 1, stage=str(stage))

    def first_section(self, seconds: float) -> None:
        self.recorder.record(PAGE_FIRST_SECTION_SECONDS, seconds)

    def ended(self, outcome: str, seconds: float) -> None:
        self.recorder.record(PAGE_REQUESTS, 1, outcome=outcome)
        self.recorder.record(PAGE_REQUEST_SECONDS, seconds)

    def checked(self, passed: bool) -> None:
        self.recorder.record(PAGE_CHECKS, 1, passed=str(passed).lower())

    def active(self, count: int) -> None:
        self.recorder.record(PAGE_ACTIVE_REQUESTS, count)


@dataclass(slots=True, eq=False)
class _Run:
    """What is known of a page by its run id."""

    cancelled: bool = False


@dataclass(slots=True)
class PageService:
    """Owns the threads and the answering of one `page` instance. `record` notes who is inside."""

    model: PageModel
    stages: Stages
    recorder: Recorder
    record: FlightRecord | None = None
    _runs: Runs = field(default_factory=Runs)
    _inside: int = 0
    _stopping: bool = False
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _turns: Turns = field(default_factory=Turns)
    """Of pages; one that was inside when the process died has its own alone."""
    _observer: PageObserver = field(init=False)
    _pages: NamedThreads = field(init=False)
    _calls: CallThreads = field(default_factory=lambda: CallThreads("page-call"))

    def __post_init__(self) -> None:
        self._observer = PageObserver(self.recorder)
        self._pages = NamedThreads(self.model.limits.max_pages, thread_name_prefix="page")

    def handle(self, inputs: Inputs, reply: Reply) -> None:
        """Take one request; returns at once, `reply` follows."""
        take(inputs, reply, self._runs, self.model.fingerprint, self._start, self._refuse)

    def stop(self) -> None:
        """End what is in flight, and release the threads."""
        with self._lock:
            self._stopping = True
        self._pages.shutdown(wait=True)
        if not self._calls.join(_END_SECONDS):
            log.warning("calls of other models have not returned %g s after they were cancelled; they are left", _END_SECONDS)
        self.recorder.stop()
        if self.record is not None:
            self.record.close()

    def _start(self, inputs: Inputs, reply: Reply) -> None:
        request = parse_page_request(inputs, self.model.limits)
        flight = Flight.of(self.record, inputs, "page")
        most = self.model.limits.max_pages
        with self._lock:
            if self._stopping:
                raise StoppingError("page: the model is being unloaded")
            if self._inside >= most:
                raise QueueFullError(f"pages: {self._inside} are made already; at most {most} may be (max_pages)")
            self._inside += 1
            self._observer.active(self._inside)
            run = _Run()
            self._runs.begin(request.run_id, run)
            self._pages.submit(self._make, request, reply, run, flight)

    def _make(self, request: PageRequest, reply: Reply, run: _Run, flight: Flight) -> None:
        """One page, from its thread's begin to its last answer."""
        begun, outcome, failed = time.monotonic(), "success", None
        try:
            page = PageRun(request=request, model=self.model, stages=self.stages, threads=self._calls, observer=self._observer)
            ends = partial(self._ends, run, reply)
            with self._turns.take(partial(page.require_wanted, ends), alone=flight.is_suspect):
                self._runs.started(request.run_id, run)
                flight.enter()
                made = page.run(lambda answer: reply.send(self._outputs(answer)), ends)
            self._observer.checked(bool(made.facts["passed"]))
            reply.send(self._outputs(made))
        except RequestError as error:
            failed, outcome = error, error.outcome
        except Exception:
            log.exception("a page could not be made")
            failed, outcome = EngineError("internal error while the page was made; see the server's log"), "error"
        flight.leave()
        self._runs.end(request.run_id, run, failed=failed is not None)
        self._observer.ended(outcome, time.monotonic() - begun)  # who sees that nothing is made sees how it ended
        with self._lock:
            self._inside -= 1
            self._observer.active(self._inside)
        reply.close(failed)

    def _ends(self, run: _Run, reply: Reply) -> bool:
        """Raises StoppingError where it is not the caller who ends it."""
        if self._stopping:
            raise StoppingError("page: the model is being unloaded")
        return run.cancelled or reply.is_cancelled()

    def _refuse(self, error: RequestError, reply: Reply) -> None:
        self.recorder.record(PAGE_REQUESTS, 1, outcome=error.outcome)
        reply.close(error)

    def _outputs(self, answer: PageAnswer) -> dict[str, np.ndarray]:
        made = {"page": _text(json.dumps(answer.facts, allow_nan=False)), "html": _text(answer.html)}
        if answer.done:
            made["passed"] = np.array([bool(answer.facts["passed"])])
            made["page_seed"] = np.array([answer.facts["seed"]], np.int64)
            made["system_fingerprint"] = _text(self.model.fingerprint)
        return made


def _text(value: str) -> np.ndarray:
    return np.array([value.encode()], np.object_)
