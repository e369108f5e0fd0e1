"""`denoise` as plain Python: raw inputs in, named output arrays (or an error) out, many requests in flight."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from nereid.diffusion.answers import outputs_of, with_time_left
from nereid.diffusion.goals import Goal, goal_of
from nereid.diffusion.kept import KeptResults
from nereid.diffusion.lane_report import LaneReport
from nereid.diffusion.loop import DenoisingLoop, Predict
from nereid.diffusion.options import parse_reservation, read_id
from nereid.diffusion.pictures import PicturesDecoded
from nereid.diffusion.requests import parse_image_request
from nereid.diffusion.settings import Limits, Pipeline
from nereid.diffusion.start import start_runs
from nereid.diffusion.state import ImageRun, ImageTask
from nereid.diffusion.vae_tiles import Encode
from nereid.diffusion.watching import PreviewDecode, Watchers, state_outputs
from nereid.engines.costs import StepCosts
from nereid.engines.memory import available_bytes, shared_bytes
from nereid.flow.batcher import InFlightBatcher
from nereid.flow.errors import EngineError, RequestError
from nereid.flow.fields import FieldReader, Inputs
from nereid.flow.flight_record import Flight, FlightRecord
from nereid.flow.metrics import LoopObserver, Recorder
from nereid.flow.request_ids import NamedThreads
from nereid.flow.runs import RunState
from nereid.flow.tickets import Ticket
from nereid_protocol.metrics import IMAGE_LOOP

log = logging.getLogger(__name__)

Reply = Callable[[Mapping[str, np.ndarray] | None, RequestError | None], None]
"""Called once for every request, with its outputs or its error, from any thread."""

_SAVE_SECONDS = 30.0
_CACHING = frozenset({"cache", "cache_interval"})
_KEPT_FREE_BYTES = 16 * 2**20
"""Of shared memory: what a process of Triton's needs that is started again."""


@dataclass(slots=True)
class DenoiseService:
    """Owns the batcher and the loop of one `denoise` instance. `record` notes who is inside, `costs` what steps take.

    `decoders` are the processes that live of the model that decodes what is denoised here. `decode_preview` calls the tiny
    decoder, where the pipeline has one.
    """

    pipeline: Pipeline
    limits: Limits
    predict: Predict
    encode: Encode
    recorder: Recorder
    costs: StepCosts = field(default_factory=StepCosts)
    record: FlightRecord | None = None
    fingerprint: str = ""
    decoders: Callable[[], frozenset[int]] = frozenset
    decode_preview: PreviewDecode | None = None
    _observer: LoopObserver = field(init=False)
    _loop: DenoisingLoop = field(init=False)
    _lanes: LaneReport = field(init=False)
    _batcher: InFlightBatcher[ImageTask] = field(init=False)
    _preparing: NamedThreads = field(init=False)
    _watchers: Watchers = field(init=False)
    _decoded: PicturesDecoded = field(init=False)
    _reserved: dict[str, Ticket[ImageTask]] = field(default_factory=dict)
    _kept: KeptResults = field(default_factory=KeptResults)
    _saved: float = field(default_factory=time.monotonic)
    _looks_at_shared_memory: bool = field(init=False)

    def __post_init__(self) -> None:
        budget = self.limits.memory_budget_bytes or available_bytes() // 2
        self._looks_at_shared_memory = not self.limits.features_shared_bytes
        shared = self.limits.features_shared_bytes or _shared_for_features()
        self.limits = replace(self.limits, memory_budget_bytes=budget, features_shared_bytes=shared)
        self.limits.tiling(self.pipeline.vae_scale_factor)  # a mistake is told when the model loads
        _ = self.limits.feature_type
        self.pipeline.require_shared_memory(self.limits)
        self._decoded = PicturesDecoded(self.decoders)
        self._observer = LoopObserver(self.recorder, IMAGE_LOOP)
        self._loop = DenoisingLoop(
            self.predict,
            self.limits.unet_max_batch_size,
            self.costs,
            self.limits.concurrent_calls,
            min_batch_size=min(self.limits.unet_min_batch_size, self.limits.unet_max_batch_size),
            caching_rows=None if self.limits.on_gpu else self._caching_rows,
            stepped=self._observer.stepped,
            died=self._observer.engine_died,
        )
        self._lanes = LaneReport(self.recorder, self.costs, self.pipeline.vae_scale_factor, budget)
        self._batcher = InFlightBatcher(
            self._advance,
            self._observer,
            max_inflight=self.limits.max_inflight,
            max_queue=self.limits.max_queue,
            max_weight=budget,
            name="denoise",
            rest=self._rest,
        )
        self._loop.waiting = self._batcher.waiting
        self._preparing = NamedThreads(max_workers=2, thread_name_prefix="denoise-prepare")
        decode = self.decode_preview if self.pipeline.tiny_decoder else None
        self._watchers = Watchers(self._state, self._find, self.pipeline.latents_to_rgb, self.pipeline.vae_scale_factor, decode)

    def handle(self, inputs: Inputs, reply: Reply, is_cancelled: Callable[[], bool]) -> None:
        """Take one request; returns at once, `reply` follows when it is done or refused."""
        try:
            if self._looks_at_shared_memory and not _CACHING.isdisjoint(inputs):
                # Models that load after this one have taken their share by now.
                self._looks_at_shared_memory = False
                self.limits = replace(self.limits, features_shared_bytes=_shared_for_features())
            if "watch" in inputs:
                self._watch(inputs, reply)
            elif "cancel" in inputs:
                run_id = read_id(FieldReader(inputs, 1), "cancel")
                reply(state_outputs(self._decoded.cancel(run_id, self._batcher.cancel(run_id))), None)
            elif "decoding" in inputs:
                run_id = read_id(FieldReader(inputs, 1), "decoding")
                reply(state_outputs(self._decoded.goes_on(run_id, self._batcher.state(run_id))), None)
            elif "ticket" in inputs and "prompt_embeds" not in inputs:
                self._reserve(inputs, reply)
            else:
                self._start(inputs, reply, is_cancelled)
        except RequestError as error:
            self._refuse(error, reply)
        except Exception:
            log.exception("a request could not be read")
            self._refuse(EngineError("internal error while reading the request; see the server's log"), reply)

    def stop(self) -> None:
        """Fail what is in flight and release the threads."""
        self._preparing.shutdown(wait=True)
        self._batcher.stop()
        self._watchers.stop()
        self.costs.save()
        self.recorder.stop()

    # --- those who ask about a run ---

    def _watch(self, inputs: Inputs, reply: Reply) -> None:
        fields = FieldReader(inputs, 1)
        run_id, after = read_id(fields, "watch"), fields.value("after_step", None)
        self._watchers.ask(run_id, after, lambda outputs: reply(outputs, None))

    def _state(self, run_id: str) -> RunState:
        return self._decoded.state(run_id, self._batcher.state(run_id))

    def _find(self, run_id: str) -> ImageTask | None:
        ticket = self._batcher.find(run_id)
        return None if ticket is None else ticket.task

    # --- requests ---

    def _reserve(self, inputs: Inputs, reply: Reply) -> None:
        """A place in the queue before anything is encoded: refused at once, or kept for a while."""
        asked = parse_reservation(inputs, self.pipeline, self.limits)
        ticket = self._batcher.take_ticket(
            asked.rows,
            timeout_seconds=asked.timeout_seconds,
            run_id=asked.run_id,
            weight=asked.memory_bytes,
            priority=asked.priority,
        )
        ticket.watched = asked.watched
        self._decoded.forget(asked.run_id)
        now = time.monotonic()
        self._reserved = {name: kept for name, kept in self._reserved.items() if kept.lost(now) is None}
        self._reserved[asked.ticket] = ticket
        reply(state_outputs(self._state(asked.run_id)), None)

    def _start(self, inputs: Inputs, reply: Reply, is_cancelled: Callable[[], bool]) -> None:
        request = parse_image_request(inputs, self.pipeline, self.limits)
        flight = Flight.of(self.record, inputs, "denoise")
        self._decoded.forget(request.run_id)  # its picture is asked for anew
        if (known := self._kept.find(request.run_id, flight.digest)) is not None:
            if (taken := self._reserved.pop(request.ticket, None)) is not None:
                self._batcher.give_back(taken)  # nothing will be drawn in its place
            self._decoded.begin(request.run_id)
            reply(with_time_left(known, request.timeout_seconds, len(request.rows)), None)
            return
        task = ImageTask(request, self._answer_with(reply), is_cancelled, flight, shows_clean=self._watchers.decodes)
        ticket = self._ticket(task)
        if any(row.image is not None for row in request.rows):
            self._preparing.submit(self._prepare, task, ticket)
        else:
            self._prepare(task, ticket)

    def _ticket(self, task: ImageTask) -> Ticket[ImageTask]:
        """The one that was taken in advance, or a new one."""
        request = task.request
        taken = self._reserved.pop(request.ticket, None) if request.ticket else None
        # What was asked for in advance includes what watching it needs.
        weight = request.memory_bytes if taken is None else max(taken.weight, request.memory_bytes)
        if taken is not None and self._batcher.attach(taken, task, weight, priority=request.priority):
            task.submitted, task.watched = taken.submitted, taken.watched
            return taken
        return self._batcher.take_ticket(
            task.rows,
            timeout_seconds=request.timeout_seconds,
            task=task,
            run_id=request.run_id,
            weight=weight,
            priority=request.priority,
        )

    def _prepare(self, task: ImageTask, ticket: Ticket[ImageTask]) -> None:
        """Fill in the starting latents, which may call the VAE encoder; then the ticket may join."""
        try:
            task.runs = start_runs(task.request, self.encode, lambda: ticket.finished)
            goal = self._goal(task)
            task.due, ticket.start_by, ticket.late_from = goal.due, goal.start_by, goal.late_from
            if task.flight.is_suspect:
                ticket.alone = True
            self._batcher.redeem(ticket)
        except RequestError as error:
            self._batcher.give_back(ticket, error)
        except Exception:
            log.exception("a request could not be started")
            self._batcher.give_back(ticket, EngineError("internal error before the first step; see the server's log"))

    def _caching_rows(self, run: ImageRun) -> int:
        """Rows of a call whose features go through shared memory."""
        height, width = (side * self.pipeline.vae_scale_factor for side in run.row.latent_shape[-2:])
        return self.limits.features_shared_bytes // (self.limits.concurrent_calls * self.pipeline.shared_bytes(height * width, 1))

    def _goal(self, task: ImageTask) -> Goal:
        calls = [(run, run.rows_left) for run in task.runs]
        most = min(self.limits.unet_max_batch_size, max(math.ceil(rows) for _, rows in calls) * self.limits.max_inflight)
        target = self.limits.latency_target
        return goal_of(calls, most, self.costs, task.submitted, task.request.deadline_seconds, target)

    def _advance(self, tasks: Sequence[ImageTask]) -> None:
        for task in tasks:
            task.flight.enter()
        self._loop.advance(tasks)
        for task in tasks:
            if task.done:
                self._watchers.ended(task)  # before the batcher forgets it
        self._watchers.notice()
        self._lanes.tick(tasks, self._batcher.waiting())
        if time.monotonic() - self._saved > _SAVE_SECONDS:
            self._saved = time.monotonic()
            self._preparing.submit(self.costs.save)

    def _rest(self) -> bool:
        """Nothing is in flight any more."""
        self._lanes.tell([], [])
        return False

    def _answer_with(self, reply: Reply) -> Callable[[ImageTask, RequestError | None], None]:
        def answer(task: ImageTask, error: RequestError | None) -> None:
            task.flight.leave()
            outputs = None
            if error is None:
                outputs = outputs_of(task, self.fingerprint)
                self._decoded.begin(task.request.run_id)
                self._kept.keep(task.request.run_id, task.flight.digest, outputs)
                self._observer.made(sum(run.row.end == run.row.origin + len(run.row.table) for run in task.runs))
            reply(outputs, error)
            self._watchers.notice()

        return answer

    def _refuse(self, error: RequestError, reply: Reply) -> None:
        self._observer.refused(error.outcome)
        reply(None, error)


def _shared_for_features() -> int:
    """What features may take in shared memory, so that pictures still fit, and a process that is started again."""
    free = shared_bytes()
    return max(min(int(0.8 * free), free - _KEPT_FREE_BYTES), 1)
