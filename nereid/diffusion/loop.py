"""The denoising loop: chooses a lane and its rows, calls the UNet, commits what comes; knows an engine only as a callable.

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
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from nereid.diffusion.plan import commit, engine_rows, pack
from nereid.diffusion.state import ImageRun, ImageTask
from nereid.engines.costs import StepCosts
from nereid.engines.lanes import CallSizes, Candidate, FairClock, order
from nereid.flow.errors import EngineError, LostError, PoisonousRequestError, RequestError
from nereid.flow.request_ids import named

log = logging.getLogger(__name__)

Array = NDArray[np.float32]
Lane = tuple[object, ...]
Member = tuple[ImageTask, ImageRun]

Predict = Callable[[Mapping[str, Array]], Future[Array]]
"""The UNet: inputs `sample` (rows x C x H x W), `timestep` (rows x 1), `encoder_hidden_states` (rows x tokens x width) and the
family's extra ones, all float32; a future of the model output, shaped as `sample`. Fails with RequestError."""

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
    inputs: dict[str, Array]
    parts: list[Future[Array]]
    rows: list[int]
    """Of each part, without those that fill it up."""
    sent: float
    probe: bool = False

    @property
    def done(self) -> bool:
        return all(part.done() for part in self.parts)

    def outputs(self) -> Array:
        """Raises what the first failed part failed with."""
        made = [part.result()[:rows] for part, rows in zip(self.parts, self.rows, strict=True)]
        return made[0] if len(made) == 1 else np.concatenate(made)


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
    waiting: Callable[[], Sequence[ImageTask]] = tuple
    stepped: Callable[[Sequence[ImageTask], int, float], None] = lambda tasks, rows, seconds: None
    died: Callable[[], None] = lambda: None
    _clock: FairClock[Lane] = field(default_factory=lambda: FairClock[Lane]())
    _sizes: CallSizes[Lane] = field(default_factory=lambda: CallSizes[Lane]())
    _out: list[_Call] = field(default_factory=list)
    _down: bool = False
    _retry_at: float = 0.0

    def advance(self, tasks: Sequence[ImageTask]) -> None:
        """One tick: send what can be sent, commit what has come."""
        ready = [(task, run) for task in tasks for run in task.runs if not run.done and not run.busy and task.error is None]
        while ready and len(self._out) < self.calls and self._may_send():
            ready = self._send(ready)
        if not self._out:
            time.sleep(_RETRY_SECONDS / 2)  # the engine is down
            return
        wait([part for call in self._out for part in call.parts if not part.done()], _WAIT_SECONDS, FIRST_COMPLETED)
        for call in [call for call in self._out if call.done]:
            self._out.remove(call)
            self._receive(call)

    # --- sending ---

    def _may_send(self) -> bool:
        return not self._down or (not self._out and time.monotonic() >= self._retry_at)

    def _send(self, ready: list[Member]) -> list[Member]:
        """Plan and send one call; who is left."""
        lanes: dict[Lane, list[Member]] = defaultdict(list)
        for member in ready:
            lanes[_lane(member[1])].append(member)
        self._clock.forget(lanes)
        self._sizes.forget(lanes)
        lane = self._clock.next(lanes)
        members = self._choose(lane, lanes[lane])
        inputs = pack([run for _, run in members])
        if self._down:
            inputs = {name: np.zeros_like(value[:1]) for name, value in inputs.items()}  # is it back? nobody's step is risked
        rows = len(inputs["sample"])
        expected = self.costs.predict(_key(lane), rows)
        self._clock.charge(lane, 1e-3 if math.isnan(expected) else expected)
        cuts = self._cuts(rows)
        parts = [self.predict(self._filled(inputs, first, last)) for first, last in cuts]
        counts = [last - first for first, last in cuts]
        self._out.append(_Call(lane, members, inputs, parts, counts, time.perf_counter(), self._down))
        now = time.monotonic()
        for task, run in members:
            run.busy = True
            task.started = task.started if task.started is not None else now
        return [member for member in ready if not member[1].busy]

    def _cuts(self, rows: int) -> list[tuple[int, int]]:
        """More than one call where an engine takes fewer rows than one guided image has."""
        return [(first, min(first + self.max_batch_size, rows)) for first in range(0, rows, self.max_batch_size)]

    def _filled(self, inputs: dict[str, Array], first: int, last: int) -> dict[str, Array]:
        """The rows of one part, with copies of the last one where they are too few."""
        if first == 0 and last == len(inputs["sample"]) and last >= self.min_batch_size:
            return inputs
        rows = np.minimum(np.arange(first, max(last, first + self.min_batch_size)), last - 1)
        return {name: value[rows] for name, value in inputs.items()}

    def _choose(self, lane: Lane, members: list[Member]) -> list[Member]:
        """As many of the most urgent as is best; where all go that fit, one that does not fit leaves its place to the next."""
        candidates = [_candidate(task, run) for task, run in members]
        ranked = order(candidates)
        behind = [_candidate(task, run) for task in self.waiting() for run in task.runs if _lane(run) == lane]
        key = _key(lane)
        count = self._sizes.take(
            lane,
            [candidates[index] for index in ranked],
            behind[:_BEHIND],
            self.max_batch_size,
            lambda rows: self.costs.known(key, rows),
            time.monotonic(),
        )
        chosen: list[int] = []
        rows = 0
        for index in ranked:
            wanted = candidates[index].rows
            if len(chosen) < count and (not chosen or rows + wanted <= self.max_batch_size):
                chosen.append(index)
                rows += wanted
            else:
                members[index][1].passed_over += 1
        return [members[index] for index in chosen]

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
            self._down = self._down and not call.probe
            _fail(call.members, error)
            return
        self._down = False
        if call.probe:
            return
        seconds = time.perf_counter() - call.sent
        self.costs.learn(_key(call.lane), len(call.inputs["sample"]), seconds)
        self._commit(call, outputs)
        self.stepped([task for task, _ in call.members], len(call.members), seconds)

    @staticmethod
    def _commit(call: _Call, outputs: Array) -> None:
        try:
            errors = commit([run for _, run in call.members], call.inputs, outputs)
        except EngineError as error:
            _fail(call.members, error)
            return
        for (task, _), wrong in zip(call.members, errors, strict=True):
            task.error = wrong or task.error
            task.note_step()

    def _lost(self, call: _Call, error: LostError) -> None:
        """The engine is down. Only the first failure is somebody's death inside; later ones find it still down."""
        self._retry_at = time.monotonic() + _RETRY_SECONDS
        if self._down or call.probe:
            return
        self._down = True
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


def _lane(run: ImageRun) -> Lane:
    """What can share a call; a suspect has a lane of its own."""
    return (run.lane, id(run) if run.deaths else 0)


def _key(lane: Lane) -> str:
    return cost_key(lane[0])


def cost_key(shapes: object) -> str:
    """A lane's name in the table of costs."""
    return f"unet {shapes}"


def _candidate(task: ImageTask, run: ImageRun) -> Candidate:
    return Candidate(run.row.end - run.step, engine_rows(run), task.due, run.passed_over)
