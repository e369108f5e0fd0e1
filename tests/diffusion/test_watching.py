"""Ended runs are kept for their watchers, a while and within bounds."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from nereid.diffusion import watching
from nereid.diffusion.watching import Watchers
from nereid.flow.runs import RunState

from waiting import until


@dataclass
class Run:
    """An ended task as watchers see it."""

    name: str
    snapshot_bytes: int
    watched: bool = True
    request: Any = field(init=False)

    def __post_init__(self) -> None:
        self.request = SimpleNamespace(run_id=self.name)


@pytest.fixture
def watchers() -> Any:
    made = Watchers(lambda run_id: RunState.DONE, lambda run_id: None, [])
    yield made
    made.stop()


def kept(watchers: Watchers) -> list[str]:
    with watchers._lock:
        return list(watchers._ended)


def test_the_oldest_go_where_ended_runs_hold_too_much(watchers: Watchers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "_ENDED_BYTES", 100)
    for name, size in (("a", 60), ("b", 60), ("c", 30), ("d", 500)):
        watchers.ended(Run(name, size))  # type: ignore[arg-type]
        if name == "c":
            assert kept(watchers) == ["b", "c"]
    assert kept(watchers) == ["d"]


def test_they_go_when_their_time_is_over_though_nothing_else_happens(watchers: Watchers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "_ENDED_SECONDS", 0.2)
    watchers.ended(Run("a", 10))  # type: ignore[arg-type]
    until(lambda: not kept(watchers))
