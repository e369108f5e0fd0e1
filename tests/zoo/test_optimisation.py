"""Learning rates: warm-up, cosine and floor, by the clock and by a count of steps."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from types import SimpleNamespace

import pytest

pytest.importorskip("torch")

from nereid_zoo import optimisation
from nereid_zoo.optimisation import cosine_rate, schedule

pytestmark = pytest.mark.torch


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Sets the time, in seconds."""
    now = [0.0]
    monkeypatch.setattr(optimisation, "time", SimpleNamespace(monotonic=lambda: now[0], strftime=time.strftime))
    return lambda seconds: now.__setitem__(0, seconds)


def test_the_rate_falls_from_the_peak_to_the_floor_and_rises_before_that() -> None:
    assert cosine_rate(1e-3, 0.0, rise=1.0) == 1e-3
    assert cosine_rate(1e-3, 1.0, rise=7.0) == pytest.approx(2e-5)
    assert cosine_rate(1e-3, 1.0, rise=1.0, floor=0.01) == pytest.approx(1e-5)
    assert cosine_rate(1e-3, 0.5, rise=1.0) == pytest.approx(0.51e-3)
    assert cosine_rate(1e-3, 0.0, rise=0.1) == 1e-4


@pytest.mark.parametrize(("start", "floor"), [(0.01, 0.02), (0.02, 0.01)])
def test_a_schedule_goes_by_the_clock_and_ends_with_the_time(
    clock: Callable[[float], None], capsys: pytest.CaptureFixture[str], start: float, floor: float
) -> None:
    """The bits of the formula that the shipped checkpoints were trained by."""
    rates = []
    for step, rate in schedule("stage", 2.0, peak=2.5e-3, start=start, floor=floor):
        rates.append(rate)
        clock(1.0 + 13.0 * step)
    done = [0.0, *((1.0 + 13.0 * step) / 120.0 for step in range(10))]
    half = {0.02: 0.49, 0.01: 0.495}[floor]
    assert rates == [2.5e-3 * min(1.0, its / 0.02 + start) * (floor + half * (1 + math.cos(math.pi * its))) for its in done]
    assert rates[0] == pytest.approx(start * 2.5e-3)
    assert "stage 11 minutes=2" in capsys.readouterr().out
