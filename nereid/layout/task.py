"""One layout request in flight: its runs, what has become of it, and its answers, sent in order from threads of their own."""

from __future__ import annotations

import json
import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from nereid.diffusion.state import ImageRun
from nereid.flow.errors import EngineError, RequestError
from nereid.flow.flight_record import Flight
from nereid.flow.replies import Outputs, Reply
from nereid.flow.request_ids import current
from nereid.layout.answers import Degraded, DrawnBy, Layout, Reason, answered, best_of, by_rules, placed
from nereid.layout.elements import Box
from nereid.layout.known_widths import stretched
from nereid.layout.requests import LayoutRequest
from nereid.layout.rows import boxes_drawn, boxes_predicted
from nereid_protocol.layout_fields import WIDTHS

log = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class LayoutTask:
    """A request in the batcher, and in the loop. `answered` is told of the answer, or with None of an error."""

    request: LayoutRequest
    reply: Reply
    senders: Executor
    runs: list[ImageRun]
    flight: Flight = field(default_factory=lambda: Flight(None, b""))
    fingerprint: str = ""
    told: Callable[[LayoutTask, Layout | None], None] = lambda task, layout: None
    error: RequestError | None = None
    submitted: float = field(default_factory=time.monotonic)
    started: float | None = None
    due: float = math.inf
    degraded: list[Degraded] = field(default_factory=list)
    request_id: str = field(default_factory=current)
    _by_rules: bool = False
    _shown: int = 0
    _outbox: deque[Callable[[], None]] = field(default_factory=deque)
    _sending: bool = False
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def rows(self) -> int:
        return len(self.request.seeds)

    @property
    def done(self) -> bool:
        return self._by_rules or all(run.done for run in self.runs)

    @property
    def step(self) -> int:
        """Steps that all candidates are past."""
        return min(run.step for run in self.runs)

    @property
    def end(self) -> int:
        """Steps that are planned."""
        return max(run.row.end for run in self.runs)

    def is_cancelled(self) -> bool:
        return self.reply.is_cancelled()

    def degrade(self, reason: Reason, said: str) -> None:
        """Note once for each reason why the answer is worse than was asked for."""
        if all(one.reason is not reason for one in self.degraded):
            self.degraded.append(Degraded(reason, said))

    def fall_back(self, said: str) -> None:
        """Answer by rules: the engine draws nothing."""
        self.degrade(Reason.ENGINE, said)
        self.error, self._by_rules = None, True

    # --- answers ---

    def note_step(self) -> None:
        """After a step: tell a stream what the first candidate's boxes are predicted to be."""
        interval, step = self.request.stream_interval, self.step
        if interval is None or step < self._shown + interval or step >= self.end:
            return
        self._shown = step
        boxes, end = boxes_predicted(self.request.drawn, self.runs[0]), self.end
        self._put(lambda: self.reply.send(self._progress(boxes, step, end)))

    def finish(self, error: RequestError | None) -> None:
        self.flight.leave()
        layout, outputs = None, None
        if error is None:
            try:
                layout = self._layout()
                outputs = self._answer(layout)
            except Exception:
                log.exception("an answer could not be made")
                layout, error = None, EngineError("internal error while the answer was made; see the server's log")
        self.told(self, layout)
        self._put(lambda: self._close(outputs, error))

    def _layout(self) -> Layout:
        section, drawn = self.request.section, self.request.drawn
        if self._by_rules:
            return by_rules(section, self.request.seeds[0])
        return best_of(section, [(run.row.seed, stretched(drawn, boxes_drawn(drawn, run), section)) for run in self.runs])

    def _close(self, outputs: Outputs | None, error: RequestError | None) -> None:
        try:
            if outputs is not None:
                self.reply.send(outputs)
        finally:
            self.reply.close(error)  # also for a caller that has gone: what is not closed counts as owed

    def _progress(self, drawn: list[Box], step: int, end: int) -> Outputs:
        boxes = stretched(self.request.drawn, drawn, self.request.section)
        answer = {"step": step, "num_inference_steps": end, **placed(self.request.section, boxes)}
        return {**_written(answer, boxes), "step": _int32(step), "num_inference_steps": _int32(end)}

    def _answer(self, layout: Layout) -> Outputs:
        request, steps, width = self.request, 0, None
        if layout.drawn_by is DrawnBy.TRANSFORMER:
            steps, width = self.step, WIDTHS[request.widths is not None and request.widths.is_dynamic]
        answer = answered(request.section, layout, steps=steps, width=width, degraded=self.degraded, form=request.format)
        return {
            **_written(answer, layout.boxes),
            "score": np.array([layout.score], np.float32),
            "layout_seed": np.array([layout.seed], np.int64),
            "step": _int32(steps),
            "num_inference_steps": _int32(len(self.request.table)),
            "system_fingerprint": np.array([self.fingerprint.encode()], np.object_),
        }

    def _put(self, item: Callable[[], None]) -> None:
        """Have something sent after what was put before it."""
        with self._lock:
            self._outbox.append(item)
            if self._sending:
                return
            self._sending = True
        self.senders.submit(self._send_all)

    def _send_all(self) -> None:
        while True:
            with self._lock:
                if not self._outbox:
                    self._sending = False
                    return
                item = self._outbox.popleft()
            try:
                item()
            except Exception:
                log.exception("an answer could not be sent")


def _written(answer: Mapping[str, Any], boxes: list[Box]) -> dict[str, np.ndarray]:
    text = json.dumps(answer, allow_nan=False).encode()
    return {"layout": np.array([text], np.object_), "boxes": np.array(boxes, np.float32).reshape(-1, 4)}


def _int32(value: int) -> np.ndarray:
    return np.array([value], np.int32)
