"""Where one image stands, and the request it belongs to; knows neither engines nor Triton."""

from __future__ import annotations

import math
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from nereid.diffusion.feature_cache import Variant
from nereid.diffusion.guidance_cache import KeptDifference
from nereid.diffusion.inpainting import Source
from nereid.diffusion.keeping import Kept
from nereid.diffusion.requests import ImageRequest, ImageRow
from nereid.diffusion.solvers import LATEST_CLEAN, SolverState
from nereid.flow.errors import RequestError
from nereid.flow.flight_record import Flight
from nereid.flow.request_ids import current

_SNAPSHOTS = 64
"""Steps of a watched run that are kept for watchers who are slower than the run."""


@dataclass(slots=True, eq=False)
class ImageRun:
    """One image being made. `busy` while a call for it is out; `deaths` counts engines that died with it inside.

    `step` counts calls of the network, as its row's table does.
    """

    row: ImageRow
    state: SolverState
    step: int
    passed_over: int = 0
    busy: bool = False
    deaths: int = 0
    waits_since: float = field(default_factory=time.monotonic)
    """When its last step ended, or it came to be."""
    kept: Kept | None = None
    """Where the run keeps something for later steps."""
    reused: KeptDifference | None = None
    """Where it reuses what guidance makes of an earlier step."""
    source: Source | None = None
    """Where a part of a picture is drawn anew: what the rest is."""
    told: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    """Inputs of its network beside sample, timestep and conditioning, the same at every step."""
    ready_since: float | None = None
    """When a run that caches features was first looked at, to know how long its start has been delayed."""
    shape: tuple[object, ...] = field(init=False)
    """What must be equal for two runs to be ever in the same call."""

    def __post_init__(self) -> None:
        self.shape = (self.row.latent_shape, *self.row.positive.shapes)

    @property
    def done(self) -> bool:
        return self.step >= self.row.end

    @property
    def local_step(self) -> int:
        """The step as its table counts (img2img tables begin at the first step taken)."""
        return self.step - self.row.origin

    @property
    def guided(self) -> bool:
        """Whether this step is guided."""
        return self.row.negative is not None and self.step in self.row.guided

    @property
    def variant(self) -> StrEnum:
        """The engine that the next step calls."""
        if self.kept is None:
            return self._sliced(self.step)
        if self.reused is None:
            return self.kept.variant(self.step, both=self.guided)
        lacking = self.guided and self.reused.difference is None
        return self.kept.whole if lacking else self.kept.variant(self.step, both=False)

    @property
    def has_negative_row(self) -> bool:
        """Whether the next step computes the unconditional half; with kept features, whole steps alone do where it is reused."""
        if self.reused is None or not self.guided:
            return self.guided
        return self.variant is Variant.FULL and self.reused.is_due(self.step)

    @property
    def rows_left(self) -> float:
        """Engine rows of the steps left, each on average: guidance may begin or end among them, or be reused."""
        left = range(self.step, self.row.end)
        if self.row.negative is None or not left:
            return 1.0
        guided = range(max(left.start, self.row.guided.start), min(left.stop, self.row.guided.stop))
        if self.reused is None:
            return 1 + len(guided) / len(left)
        due = sum(step in (self.reused.plan.full or ()) for step in guided)
        return 1 + max(due, bool(guided) and self.reused.difference is None) / len(left)

    @property
    def steps_left(self) -> dict[StrEnum, int]:
        """Of each engine, as far as that is planned."""
        if self.kept is not None:
            return self.kept.steps_left(self.step, self.row.end)
        if self.row.widths is None:
            return {Variant.FULL: self.row.end - self.step}
        return dict(Counter(self._sliced(step) for step in range(self.step, self.row.end)))

    def _sliced(self, step: int) -> StrEnum:
        """Of a run that keeps nothing, the engine that the step calls."""
        row = self.row
        return Variant.FULL if row.widths is None else row.widths.engine(float(row.table.timesteps[step - row.origin]))


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A watched run after a step: `step` counts as the request does; `sample` float32 C x H x W, of which a preview is made."""

    step: int
    sample: NDArray[np.float32]


@dataclass(slots=True, eq=False)
class ImageTask:
    """A request in the batcher; `answer` is told the outcome once, with None for success.

    `shows_clean`: watchers are shown what the picture is predicted to be, which a decoder can read, instead of noisy latents.
    """

    request: ImageRequest
    answer: Callable[[ImageTask, RequestError | None], None]
    cancelled: Callable[[], bool]
    flight: Flight = field(default_factory=lambda: Flight(None, b""))
    runs: list[ImageRun] = field(default_factory=list)
    error: RequestError | None = None
    submitted: float = field(default_factory=time.monotonic)
    started: float | None = None
    due: float = math.inf
    watched: bool = False
    shows_clean: bool = False
    request_id: str = field(default_factory=current)
    _snapshots: deque[Snapshot] = field(default_factory=lambda: deque(maxlen=_SNAPSHOTS))
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def rows(self) -> int:
        return len(self.request.rows)

    @property
    def done(self) -> bool:
        return bool(self.runs) and all(run.done for run in self.runs)

    @property
    def step(self) -> int:
        """Steps, as the request counts them, that all of its images are past."""
        return min((run.row.steps_before(run.step) for run in self.runs), default=0)

    @property
    def end(self) -> int:
        return max(row.steps_before(row.end) for row in self.request.rows)

    def is_cancelled(self) -> bool:
        return self.cancelled()

    def finish(self, error: RequestError | None) -> None:
        self.answer(self, error)

    def note_step(self) -> None:
        """After a step: keep it for watchers. Latents are replaced and never written over, so a reference is enough."""
        if self.watched:
            with self._lock:
                if not self._snapshots or self._snapshots[-1].step < self.step:
                    state = self.runs[0].state
                    # A copy of the prediction: a view would keep all that the solver remembers.
                    shown = state.memory[LATEST_CLEAN].copy() if self.shows_clean else state.sample
                    self._snapshots.append(Snapshot(self.step, shown))

    @property
    def snapshot_bytes(self) -> int:
        """What the steps that are kept for watchers hold."""
        return sum(snapshot.sample.nbytes for snapshot in self._snapshots)

    def snapshot_after(self, step: int) -> Snapshot | None:
        """The earliest kept step beyond `step`."""
        self.watched = True
        with self._lock:
            return next((snapshot for snapshot in self._snapshots if snapshot.step > step), None)

    @property
    def timings(self) -> tuple[float, float]:
        """Seconds spent waiting, and seconds spent denoising until now."""
        now = time.monotonic()
        started = self.started if self.started is not None else now
        return started - self.submitted, now - started
