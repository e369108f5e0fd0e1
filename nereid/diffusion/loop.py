"""The denoising loop: chooses a lane and its rows, calls the UNet or its outer part, commits what comes; engines are a callable.

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

from nereid.diffusion.loop_task import LoopTask
from nereid.diffusion.phases import waits_for_phase
from nereid.diffusion.plan import EngineCall, commit, engine_rows, pack
from nereid.diffusion.state import ImageRun
from nereid.engines.costs import StepCosts
from nereid.engines.lanes import CallSizes, Candidate, FairClock, in_company, is_late, order, rows_for_the_best
from nereid.flow.errors import EngineError, LostError, PoisonousRequestError, RequestError
from nereid.flow.request_ids import named
from nereid.flow.tickets import aged

log = logging.getLogger(__name__)

Array = NDArray[np.float32]
Lane = tuple[object, ...]
Member = tuple[LoopTask, ImageRun]

Predict = Callable[[EngineCall], Future[Mapping[str, Array]]]
"""The engines: inputs `sample` (rows x C x H x W), `timestep` (rows x 1), `encoder_hidden_states` (rows x tokens x width), the
family's extra ones and a shallow call's `features`; a future of the outputs that the call names. Fails with RequestError."""

_RETRY_SECONDS = 0.1
"""Between two looks whether a dead engine is back."""
_BEHIND = 64
"""How many of those that wait are looked at to see what presses."""
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

    A call of fewer than `min_batch_size` rows is filled up with copies of its last row.
    """

    predict: Predict
    max_batch_size: int
    costs: StepCosts = field(default_factory=StepCosts)
    calls: int = 1
    min_batch_size: int = 1
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
    _sizes: CallSizes[Lane] = field(default_factory=lambda: CallSizes[Lane]())
    _out: list[_Call] = field(default_factory=list)
    _down: dict[StrEnum, float] = field(default_factory=dict)
    """Engines (of a process, the one that it goes by) that have died, and when it is looked next whether they are back."""

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
                lanes[_shape(run)][_lane(run)].append(member)
        if not lanes:
            return False
        # Shapes share the engine's time; those at a whole and those at a shallow step of a shape share its part of it.
        self._clock.forget(lanes)
        shapes = {_shape(run) for _, run in going}
        self._variants = {shape: clock for shape, clock in self._variants.items() if shape in shapes}
        self._sizes.forget(lane for shape in lanes.values() for lane in shape)
        best = min(self._priority(*member) for shape in lanes.values() for members in shape.values() for member in members)
        chosen = _with_priority(lanes, best, self._priority)
        shape = self._clock.next(chosen)
        variants = self._variants.setdefault(shape, FairClock[Lane]())
        lane = variants.next(chosen[shape])
        members = self._choose(lane, lanes[shape][lane])
        call = pack([run for _, run in members])
        probe = self.process_of(call.variant) in self._down
        if probe:  # is it back? nobody's step is risked
            call = replace(call.of(slice(1)), inputs={name: np.zeros_like(value[:1]) for name, value in call.inputs.items()})
        expected = self.costs.predict(_key(lane), call.rows)
        seconds = 1e-3 if math.isnan(expected) else expected
        self._clock.charge(shape, seconds)
        variants.charge(lane, seconds)
        cuts = self._cuts(call.rows)
        parts = [self.predict(self._filled(call, first, last)) for first, last in cuts]
        counts = [last - first for first, last in cuts]
        self._out.append(_Call(lane, members, call, parts, counts, time.perf_counter(), probe))
        now = time.monotonic()
        for task, run in members:
            run.busy = True
            task.started = task.started if task.started is not None else now
        return True

    def _held(self, going: list[Member]) -> set[ImageRun]:
        """Starts that are delayed: for mates of no worse priority, whose engines live, and not where a goal is at stake."""
        free = [(task, run) for task, run in going if run.kept is not None and self.process_of(run.variant) not in self._down]
        classes = {run: self._priority(task, run) for task, run in free}
        held: set[ImageRun] = set()
        for task, run in free:
            if run.busy or run.step != run.row.begin or task.request.deadline_seconds is not None:
                continue
            mates = [mate for mate, priority in classes.items() if priority <= classes[run]]
            if waits_for_phase(run, mates, self._step_cost, time.monotonic()):
                held.add(run)
        return held

    def _step_cost(self, run: ImageRun, variant: StrEnum) -> float:
        """Seconds of a call for this run alone; NaN where nothing is known."""
        return self.costs.predict(cost_key(variant, run.shape), engine_rows(run))

    def _cuts(self, rows: int) -> list[tuple[int, int]]:
        """More than one call where an engine takes fewer rows than one guided image has."""
        return [(first, min(first + self.max_batch_size, rows)) for first in range(0, rows, self.max_batch_size)]

    def _filled(self, call: EngineCall, first: int, last: int) -> EngineCall:
        """The rows of one part, with copies of the last one where they are too few."""
        if first == 0 and last == call.rows and last >= self.min_batch_size:
            return call
        return call.of(np.minimum(np.arange(first, max(last, first + self.min_batch_size)), last - 1))

    def _choose(self, lane: Lane, members: list[Member]) -> list[Member]:
        """As many of the most urgent as is best; where all go that fit, one that does not fit leaves its place to the next."""
        key = _key(lane)
        together = self.costs.predict(key, min(self._most(members), sum(engine_rows(run) for _, run in members)))
        candidates = [self._candidate(task, run, together) for task, run in members]
        ranked = order(candidates)
        behind = [self._candidate(task, run, together) for task in self.waiting() for run in task.runs if _lane(run) == lane]

        def known(rows: int) -> float:
            return self.costs.known(key, rows)

        most = rows_for_the_best([candidates[index] for index in ranked], self._most(members), known)
        count = self._sizes.take(
            lane,
            [candidates[index] for index in ranked],
            behind[:_BEHIND],
            most,
            known,
            time.monotonic(),
        )
        chosen: list[int] = []
        rows = 0
        for index in ranked:
            wanted = candidates[index].rows
            if len(chosen) < count and (not chosen or rows + wanted <= most):
                chosen.append(index)
                rows += wanted
            else:
                members[index][1].passed_over += 1
        return [members[index] for index in chosen]

    def _most(self, members: list[Member]) -> int:
        """Rows of a call that somebody of these may be in."""
        if self.caching_rows is None or all(run.kept is None for _, run in members):
            return self.max_batch_size
        return min(self.max_batch_size, self.caching_rows(members[0][1]))

    def _candidate(self, task: LoopTask, run: ImageRun, together: float) -> Candidate:
        """Its steps left count in calls such as the next one, of which one of all members takes `together` seconds: those of
        other engines, or of more or fewer rows, are dearer or cheaper."""
        alone, rows, steps = self._step_cost(run, run.variant), run.rows_left, 0.0
        for variant, left in run.steps_left.items():
            ratio = self.costs.predict(cost_key(variant, run.shape), rows) / (alone or math.nan) if left else 1.0
            steps += left * (1.0 if math.isnan(ratio) else ratio)
        seconds = in_company(alone, together)
        goal = task.request.deadline_seconds is not None
        in_hand = task.due - time.monotonic()
        pressing = goal and _pressing(in_hand, steps * seconds, seconds)
        late = goal and is_late(in_hand, steps, seconds, run.passed_over)
        return Candidate(steps, engine_rows(run), task.due, run.passed_over, self._priority(task, run), pressing, late)

    @staticmethod
    def _priority(task: LoopTask, run: ImageRun) -> int:
        return aged(task.request.priority, time.monotonic() - run.waits_since)

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
        self.costs.learn(_key(call.lane), call.call.rows, seconds)
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


def _pressing(left: float, needed: float, step: float) -> bool:
    """Whether a goal is missed if one step more is waited for, and is not missed in any case; seconds, NaN where not known."""
    return needed <= left <= needed + 2 * step


def _with_priority(
    lanes: Mapping[Lane, Mapping[Lane, list[Member]]], best: int, priority: Callable[[LoopTask, ImageRun], int]
) -> dict[Lane, dict[Lane, list[Member]]]:
    """The lanes in which somebody has the best priority, by shape."""
    found: dict[Lane, dict[Lane, list[Member]]] = {}
    for shape, its in lanes.items():
        for lane, members in its.items():
            if any(priority(*member) <= best for member in members):
                found.setdefault(shape, {})[lane] = members
    return found


def _shape(run: ImageRun) -> Lane:
    """What can share calls; a suspect has a lane of its own."""
    return (run.shape, id(run) if run.deaths else 0)


def _lane(run: ImageRun) -> Lane:
    """What can share the next call."""
    return (*_shape(run), run.variant)


def _key(lane: Lane) -> str:
    shape, _, variant = lane
    return cost_key(variant, shape)


def cost_key(variant: object, shape: object) -> str:
    """A lane's name in the table of costs."""
    return f"{variant} {shape}"
