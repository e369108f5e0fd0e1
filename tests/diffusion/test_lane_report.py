"""What the lanes hold, cost and need, as metrics."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from nereid.diffusion.feature_cache import Variant
from nereid.diffusion.lane_report import SIZES, LaneReport
from nereid.diffusion.run_lanes import cost_key
from nereid.engines.costs import StepCosts
from nereid_protocol.metric import Metric
from nereid_protocol.metrics import IMAGE_LANE_IMAGES, IMAGE_MEMORY_BUDGET, IMAGE_MEMORY_USED, IMAGE_STEP_COST


@dataclass
class Written:
    """A recorder that keeps the latest value of each series."""

    values: dict[tuple[str, ...], float] = field(default_factory=dict)
    count: int = 0

    def record(self, metric: Metric, value: float, **labels: str) -> None:
        assert set(labels) == set(metric.labels)
        self.values[(metric.name, *labels.values())] = value
        self.count += 1

    def of(self, metric: Metric) -> Mapping[tuple[str, ...], float]:
        return {key[1:]: value for key, value in self.values.items() if key[0] == metric.name}


def task(*sides: tuple[int, int], memory: float = 0.0) -> Any:
    runs = [
        SimpleNamespace(row=SimpleNamespace(latent_shape=(4, height, width)), shape=((4, height, width),), done=False, kept=None)
        for width, height in sides
    ]
    return SimpleNamespace(runs=runs, request=SimpleNamespace(memory_bytes=memory))


def report(costs: StepCosts | None = None) -> tuple[LaneReport, Written]:
    written = Written()
    return LaneReport(written, costs or StepCosts(), 8, 1000.0), written  # type: ignore[arg-type]


def test_images_are_counted_by_size_and_state_and_stand_at_zero_once_they_have_left() -> None:
    lanes, written = report()
    lanes.tell([task((64, 32), (64, 32)), task((8, 8))], [task((8, 8))])
    assert written.of(IMAGE_LANE_IMAGES) == {("512x256", "running"): 2, ("64x64", "running"): 1, ("64x64", "waiting"): 1}
    lanes.tell([], [])
    assert set(written.of(IMAGE_LANE_IMAGES).values()) == {0}


def test_what_has_not_changed_is_not_told_again() -> None:
    lanes, written = report()
    lanes.tell([task((8, 8), memory=5)], [])
    told = written.count
    lanes.tell([task((8, 8), memory=5)], [])
    assert written.count == told


def test_callers_cannot_make_ever_more_series() -> None:
    lanes, written = report()
    for side in range(1, 4 * SIZES):
        lanes.tell([task((side, side))], [])
    sizes = {size for size, _ in written.of(IMAGE_LANE_IMAGES)}
    assert len(sizes) == SIZES + 1
    assert written.of(IMAGE_LANE_IMAGES)["other", "running"] == 1


def test_memory_and_learned_costs_are_told() -> None:
    costs = StepCosts()
    lanes, written = report(costs)
    drawn = task((8, 8), memory=300.0)
    for _ in range(20):
        costs.learn(cost_key(Variant.FULL, drawn.runs[0].shape), 1, 0.3)
        costs.learn(cost_key(Variant.FULL, drawn.runs[0].shape), 2, 0.5)
    lanes.tell([drawn], [])
    assert written.of(IMAGE_MEMORY_BUDGET) == {(): 1000.0}
    assert written.of(IMAGE_MEMORY_USED) == {(): 300.0}
    found = written.of(IMAGE_STEP_COST)
    assert abs(found["64x64", "unet", "call"] - 0.1) < 0.01
    assert abs(found["64x64", "unet", "row"] - 0.2) < 0.01
