"""The denoising loop: takes a lane and its rows, calls the UNet or its outer part, commits what comes; engines are a callable.

Every tick plans and sends calls until as many are out as the engine takes at once, then commits the first that comes back. A
call that fails because its engine died is made again once the engine is back, until the request's own deadline: the run has
everything it needs. Those that were inside at a death run alone from then on, so that one which kills engines is found, and
is refused when it was alone at its second death.
"""

from __future__ import annotations

import logging
import math
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, field, replace
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from nereid.diffusion.choosing import Chooser
from nereid.diffusion.loop_task import LoopTask
from nereid.diffusion.phases import waits_for_phase
from nereid.diffusion.plan import EngineCall, commit, pack
from nereid.diffusion.run_lanes import Lane, Member, earliest_due, key_of, lane_of, priority_of, shape_of, with_priority
from nereid.diffusion.state import ImageRun
from nereid.engines.costs import StepCosts
from nereid.engines.lanes import FairClock
from nereid.flow.errors import EngineError, LostError, PoisonousRequestError, RequestError
from nereid.flow.request_ids import named

log = logging.getLogger(__name__)

Array = NDArray[np.float32]
Predict = Callable[[EngineCall], Future[Mapping[str, Array]]]
"""The engines: inputs `sample` (rows x C x H x W), `timestep` (rows x 1), `encoder_hidden_states` (rows x tokens x width), the
family's extra ones and a shallow call's `features`; a future of the outputs that the call names. Fails with RequestError."""

_RETRY_SECONDS = 0.1
"""Between two looks whether a dead engine is back."""
_WAIT_SECONDS = 0.25
"""How long a tick waits for a call: those who are cancelled or overdue leave between ticks."""


@dataclass(slots=True, eq=False)
class _Call:
    """A call that is out; a `probe` has nobody inside."""

    lane: Lane
    members: list[Member]
    call: EngineCall
    parts: list[Future[Mapping[str, Array]]]
    rows: list[int]
    """Of each part, without those that fill it up."""
    sent: float
    probe: bool = False

    @property
    def done(self) -> bool:
        return all(part.done() for part in self.parts)

    def outputs(self) -> dict[str, Array]:
        """Raises what the first failed part failed with."""
        results = [part.result() for part in self.parts]
        made = {
            name: [result[name][:rows] for result, rows in zip(results, self.rows, strict=True)] for name in self.call.outputs
        }
        return {name: parts[0] if len(parts) == 1 else np.concatenate(parts) for name, parts in made.items()}


@dataclass(slots=True, eq=False)
class DenoisingLoop:
    """`advance` is the batcher's tick. `calls` may be out at once; `waiting` tells who is queued, to know what presses.

    A call of fewer than `min_batch_size` rows is filled up with copies of its last row. Lanes share the engine's time, or, with
    `earliest_due_first`, the one with the run that is due first is called: where all runs are over soon.
    """

    predict: Predict
    max_batch_size: int
    costs: StepCosts = field(default_factory=StepCosts)
    calls: int = 1
    min_batch_size: int = 1
    earliest_due_first: bool = False
    waiting: Callable[[], Sequence[LoopTask]] = tuple
    caching_rows: Callable[[ImageRun], int] | None = None
    """Rows that a call may have where features go with it; as many as others where None."""
    stepped: Callable[[StrEnum, int, float], None] = lambda variant, images, seconds: None
    process_of: Callable[[StrEnum], StrEnum] = lambda variant: variant
    """What engines die together with."""
    died: Callable[[], None] = lambda: None
    _clock: FairClock[Lane] = field(default_factory=lambda: FairClock[Lane]())
    _variants: dict[Lane, FairClock[Lane]] = field(default_factory=dict)
    """Of each shape: on one clock for all, another shape's calls would make a shape's two lanes level again and again."""
    _chooser: Chooser = field(init=False)
    _out: list[_Call] = field(default_factory=list)
    _down: dict[StrEnum, float] = field(default_factory=dict)
    """Engines (of a process, the one that it goes by) that have died, and when it is looked next whether they are back."""

    def __post_init__(self) -> None:
        self._chooser = Chooser(self.costs, self.max_batch_size, self.caching_rows)

    def advance(self, tasks: Sequence[LoopTask]) -> None:
        """One tick: send what can be sent, commit what has come."""
        going = [(task, run) for task in tasks for run in task.runs if not run.done and task.error is None]
        while len(self._out) < self.calls and self._send(going):
            pass
        if not self._out:
            time.sleep(_RETRY_SECONDS / 2)  # the engine is down
            return
        wait([part for call in self._out for part in call.parts if not part.done()], _WAIT_SECONDS, FIRST_COMPLETED)
        for call in [call for call in self._out if call.done]:
            self._out.remove(call)
            self._receive(call)

    # --- sending ---

    def _may_call(self, variant: StrEnum) -> bool:
        process = self.process_of(variant)
        if process not in self._down:
            return True
        return time.monotonic() >= self._down[process] and all(
            self.process_of(call.call.variant) is not process for call in self._out
        )

    def _send(self, going: list[Member]) -> bool:
        """Plan and send one call; False where there is none to send."""
        lanes: dict[Lane, dict[Lane, list[Member]]] = defaultdict(lambda: defaultdict(list))
        held = self._held(going)
        for member in going:
            run = member[1]
            if not run.busy and run not in held and self._may_call(run.variant):
                lanes[shape_of(run)][lane_of(run)].append(member)
        if not lanes:
            return False
        # Shapes share the engine's time; those at a whole and those at a shallow step of a shape share its part of it.
        self._clock.forget(lanes)
        shapes = {shape_of(run) for _, run in going}
        self._variants = {shape: clock for shape, clock in self._variants.items() if shape in shapes}
        self._chooser.forget(lane for shape in lanes.values() for lane in shape)
        best = min(priority_of(*member) for shape in lanes.values() for members in shape.values() for member in members)
        shape, lane = self._next(with_priority(lanes, best), best)
        members = self._chooser.choose(lane, lanes[shape][lane], self.waiting())
        call = pack([run for _, run in members])
        probe = self.process_of(call.variant) in self._down
        if probe:  # is it back? nobody's step is risked
            call = replace(call.of(slice(1)), inputs={name: np.zeros_like(value[:1]) for name, value in call.inputs.items()})
        expected = self.costs.predict(key_of(lane), call.rows)
        seconds = 1e-3 if math.isnan(expected) else expected
        self._clock.charge(shape, seconds)
        self._variants[shape].charge(lane, seconds)
        cuts = self._cuts(call.rows)
        parts = [self.predict(self._filled(call, first, last)) for first, last in cuts]
        counts = [last - first for first, last in cuts]
        self._out.append(_Call(lane, members, call, parts, counts, time.perf_counter(), probe))
        now = time.monotonic()
        for task, run in members:
            run.busy = True
            task.started = task.started if task.started is not None else now
        return True

    def _next(self, lanes: Mapping[Lane, Mapping[Lane, list[Member]]], best: int) -> tuple[Lane, Lane]:
        """The shape whose turn it is, and its lane; `best` is the best priority in them."""
        shape, lane = earliest_due(lanes, best) if self.earliest_due_first else (self._clock.next(lanes), None)
        variants = self._variants.setdefault(shape, FairClock[Lane]())
        return shape, variants.next(lanes[shape]) if lane is None else lane

    def _held(self, going: list[Member]) -> set[ImageRun]:
        """Starts that are delayed: for mates of no worse priority, whose engines live, and not where a goal is at stake."""
        free = [(task, run) for task, run in going if run.kept is not None and self.process_of(run.variant) not in self._down]
        classes = {run: priority_of(task, run) for task, run in free}
        held: set[ImageRun] = set()
        for task, run in free:
            if run.busy or run.step != run.row.begin or task.request.deadline_seconds is not None:
                continue
            mates = [mate for mate, priority in classes.items() if priority <= classes[run]]
            if waits_for_phase(run, mates, self._chooser.step_cost, time.monotonic()):
                held.add(run)
        return held

    def _cuts(self, rows: int) -> list[tuple[int, int]]:
        """More than one call where an engine takes fewer rows than one guided image has."""
        return [(first, min(first + self.max_batch_size, rows)) for first in range(0, rows, self.max_batch_size)]

    def _filled(self, call: EngineCall, first: int, last: int) -> EngineCall:
        """The rows of one part, with copies of the last one where they are too few."""
        if first == 0 and last == call.rows and last >= self.min_batch_size:
            return call
        return call.of(np.minimum(np.arange(first, max(last, first + self.min_batch_size)), last - 1))

    # --- receiving ---

    def _receive(self, call: _Call) -> None:
        for _, run in call.members:
            run.busy = False
        try:
            outputs = call.outputs()
        except LostError as error:
            self._lost(call, error)
            return
        except RequestError as error:
            if call.probe:  # it is back; what it says of zeros is nobody's error
                self._down.pop(self.process_of(call.call.variant), None)
            else:
                _fail(call.members, error)
            return
        self._down.pop(self.process_of(call.call.variant), None)
        if call.probe:
            return
        seconds = time.perf_counter() - call.sent
        self.costs.learn(key_of(call.lane), call.call.rows, seconds)
        self._commit(call, outputs)
        self.stepped(call.call.variant, len(call.members), seconds)

    @staticmethod
    def _commit(call: _Call, outputs: Mapping[str, Array]) -> None:
        try:
            errors = commit([run for _, run in call.members], call.call, outputs)
        except EngineError as error:
            _fail(call.members, error)
            return
        for (task, _), wrong in zip(call.members, errors, strict=True):
            task.error = wrong or task.error
            task.note_step()
        now = time.monotonic()
        for _, run in call.members:
            run.waits_since = now

    def _lost(self, call: _Call, error: LostError) -> None:
        """The engine is down. Only the first failure is somebody's death inside; later ones find it still down."""
        process = self.process_of(call.call.variant)
        known = process in self._down
        self._down[process] = time.monotonic() + _RETRY_SECONDS
        if known or call.probe:
            return
        self.died()
        inside = named(list(dict.fromkeys(task.request_id for task, _ in call.members)))
        log.warning("an engine call for %s failed (%s); it is repeated when the engine is back", inside, error)
        for task, run in call.members:
            run.deaths += 1
            if run.deaths > 1 and len(call.members) == 1:
                task.error = PoisonousRequestError(
                    "the request was alone in an engine that died, twice; it is not tried a third time"
                )


def _fail(members: list[Member], error: RequestError) -> None:
    for task, _ in members:
        task.error = task.error or error
