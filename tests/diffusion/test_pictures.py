"""Ended runs that are still being decoded: running for those who ask, until nothing was said of them for long."""

from __future__ import annotations

from nereid.diffusion.pictures import HELD_SECONDS, PicturesDecoded
from nereid.flow.runs import RunState

UNKNOWN, DONE, RUNNING, FAILED = RunState.UNKNOWN, RunState.DONE, RunState.RUNNING, RunState.FAILED


def test_a_picture_that_nothing_is_said_of_any_more_has_ended() -> None:
    now = [0.0]
    decoded = PicturesDecoded(frozenset, lambda: now[0])
    assert decoded.state("a", DONE) is DONE
    assert decoded.goes_on("a", DONE) is RUNNING
    now[0] = HELD_SECONDS - 1
    assert decoded.goes_on("a", DONE) is RUNNING
    now[0] += HELD_SECONDS - 1
    assert decoded.state("a", DONE) is RUNNING
    now[0] += 2
    assert decoded.state("a", DONE) is DONE
    assert decoded.cancel("a", DONE) is DONE
    assert decoded.goes_on("a", DONE) is RUNNING  # a slow tile; a cancellation that came too late is none


def test_what_the_batcher_knows_of_a_run_that_has_not_ended_well_stands() -> None:
    decoded = PicturesDecoded(frozenset, lambda: 0.0)
    decoded.begin("a")
    for state in (UNKNOWN, RunState.WAITING, RUNNING, FAILED):
        assert decoded.goes_on("a", state) is state
        assert decoded.cancel("a", state) is state
    assert decoded.goes_on("a", DONE) is RUNNING


def test_a_cancelled_picture_is_failed_until_its_run_begins_anew() -> None:
    decoded = PicturesDecoded(frozenset, lambda: 0.0)
    decoded.goes_on("a", DONE)
    decoded.goes_on("b", DONE)
    assert decoded.cancel("a", DONE) is RUNNING
    assert decoded.goes_on("a", DONE) is FAILED
    assert decoded.goes_on("b", DONE) is RUNNING
    decoded.forget("a")
    assert decoded.goes_on("a", DONE) is RUNNING


def test_pictures_that_were_sent_while_no_process_lived_are_unknown_once_one_does() -> None:
    """Triton may have given them to the dead one, and never answers."""
    lives: set[int] = set()
    decoded = PicturesDecoded(lambda: frozenset(lives), lambda: 0.0)
    decoded.begin("sent")
    decoded.begin("told")
    decoded.goes_on("told", DONE)
    assert [decoded.state(name, DONE) for name in ("sent", "told")] == [DONE, RUNNING]
    lives.add(8)
    assert [decoded.state(name, DONE) for name in ("sent", "told")] == [UNKNOWN, UNKNOWN]
    assert decoded.goes_on("told", DONE) is RUNNING
    assert decoded.state("told", DONE) is RUNNING


def test_pictures_in_a_process_that_died_are_unknown_until_another_begins_them() -> None:
    lives = {7}
    decoded = PicturesDecoded(lambda: frozenset(lives), lambda: 0.0)
    for name in ("small", "large", "again"):
        decoded.begin(name)
    decoded.goes_on("large", DONE)
    assert [decoded.state(name, DONE) for name in ("small", "large", "again")] == [DONE, RUNNING, DONE]
    lives.clear()
    assert [decoded.state(name, DONE) for name in ("small", "large", "again", "")] == [UNKNOWN, UNKNOWN, UNKNOWN, DONE]
    lives.add(8)
    assert decoded.state("small", DONE) is UNKNOWN
    decoded.begin("small")
    assert decoded.goes_on("again", DONE) is RUNNING
    assert [decoded.state(name, DONE) for name in ("small", "large", "again")] == [DONE, UNKNOWN, RUNNING]
