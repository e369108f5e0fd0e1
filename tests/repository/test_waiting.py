"""A test that waits in vain says for what."""

from __future__ import annotations

import asyncio

import pytest

from waiting import reach, until


def test_what_was_waited_for_is_named_with_its_values() -> None:
    come = ["a"]
    with pytest.raises(AssertionError, match=r"not so within 0.02 s: until\(lambda: len\(come\) > 1, .*, with come = \['a'\]"):
        until(lambda: len(come) > 1, seconds=0.02)
    with pytest.raises(AssertionError, match=r"built-in method isdigit of str object"):
        until("one".isdigit, seconds=0.02)
    with pytest.raises(AssertionError, match=r"not so within 0.02 s: until\(lambda: come == \[\] and later, seconds=0.02\)$"):
        until(lambda: come == [] and later, seconds=0.02)
    with pytest.raises(AssertionError, match=r"asyncio.run\(reach\(lambda: come == \[\], .*, with come = \['a'\]"):
        asyncio.run(reach(lambda: come == [], seconds=0.02))
    later = True
    assert later


def test_it_returns_as_soon_as_the_condition_holds() -> None:
    asked: list[int] = []
    until(lambda: asked.append(len(asked)) or asked[-1] == 3, seconds=60)  # type: ignore[func-returns-value]
    assert asked == [0, 1, 2, 3]
