"""Of a library's error one line is told."""

from __future__ import annotations

import pytest

from nereid.flow.errors import first_line


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (ValueError("one\ntwo"), "one"),
        (RuntimeError("\n  bad shape\n    at graph.cpp:12"), "bad shape"),
        (MemoryError(), "MemoryError"),
        (RuntimeError("\n"), "RuntimeError"),
    ],
)
def test_what_it_says_first_is_told_and_its_type_where_it_says_nothing(error: Exception, told: str) -> None:
    assert first_line(error) == told
