"""What the lanes of a loop hold, cost and need in memory, as metrics; looks at tasks and changes nothing.

Sizes come from requests, and a metric's series stay for ever: the first SIZES sizes have series of their own, the others share
one. A size whose images have left stands at zero.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from nereid.diffusion.feature_cache import Variant
from nereid.diffusion.run_lanes import cost_key
from nereid.diffusion.state import ImageRun, ImageTask
from nereid.engines.costs import StepCosts
from nereid.flow.metrics import Recorder
from nereid_protocol.metrics import (
    IMAGE_FEATURE_MEMORY,
    IMAGE_LANE_IMAGES,
    IMAGE_MEMORY_BUDGET,
    IMAGE_MEMORY_USED,
    IMAGE_STEP_COST,
)

SIZES = 16
OTHER = "other"
EVERY_SECONDS = 0.25


@dataclass(slots=True, eq=False)
class LaneReport:
    """`pixels` are those of a latent's side; told by the tick thread alone."""

    recorder: Recorder
    costs: StepCosts
    pixels: int
    memory_budget: float
    _told: dict[tuple[str, str], int] = field(default_factory=dict)
    _memory: float = -1.0
    _features: int = -1
    _costs: dict[str, tuple[str, str]] = field(default_factory=dict)
    _sizes: set[str] = field(default_factory=set)
    _keys: dict[str, tuple[str, Variant]] = field(default_factory=dict)
    _next: float = 0.0

    def __post_init__(self) -> None:
        self.recorder.record(IMAGE_MEMORY_BUDGET, self.memory_budget)

    def tick(self, active: Sequence[ImageTask], waiting: Sequence[ImageTask]) -> None:
        """Tell how it stands, a few times a second at most."""
        now = time.monotonic()
        if now >= self._next:
            self._next = now + EVERY_SECONDS
            self.tell(active, waiting)

    def tell(self, active: Sequence[ImageTask], waiting: Sequence[ImageTask]) -> None:
        """What has changed since it was told last."""
        found: Counter[tuple[str, str]] = Counter()
        for state, tasks in (("running", active), ("waiting", waiting)):
            found.update((self._size(run), state) for task in tasks for run in task.runs if not run.done)
        for (size, state), count in {**dict.fromkeys(self._told, 0), **found}.items():
            if self._told.get((size, state)) != count:
                self.recorder.record(IMAGE_LANE_IMAGES, count, size=size, state=state)
                self._told[size, state] = count
        memory = float(sum(task.request.memory_bytes for task in active))
        if memory != self._memory:
            self._memory = memory
            self.recorder.record(IMAGE_MEMORY_USED, memory)
        features = sum(run.kept.nbytes for task in active for run in task.runs if run.kept is not None)
        if features != self._features:
            self._features = features
            self.recorder.record(IMAGE_FEATURE_MEMORY, features)
        for key, (call, row) in self.costs.coefficients().items():
            shown = f"{call:.2g}", f"{row:.2g}"  # each call moves them a little
            if key in self._keys and self._costs.get(key) != shown:
                self._costs[key] = shown
                size, variant = self._keys[key]
                self.recorder.record(IMAGE_STEP_COST, call, size=size, engine=variant, per="call")
                self.recorder.record(IMAGE_STEP_COST, row, size=size, engine=variant, per="row")

    def _size(self, run: ImageRun) -> str:
        height, width = (self.pixels * side for side in run.row.latent_shape[-2:])
        size = f"{width}x{height}"
        if size not in self._sizes:
            if len(self._sizes) >= SIZES:
                return OTHER
            self._sizes.add(size)
        for variant in Variant:
            self._keys[cost_key(variant, run.shape)] = size, variant
        return size
