"""Which measured engine is chosen, by tables whose answer is known; nothing is measured."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")
from nereid_export.choice import Row, contenders, cost, drop_above, pick

STEP_ROWS = (2, 4, 8)


def row(engine: str, per_row: float = 1.0, *, invariant_from: int | None = 1, **rest: object) -> Row:
    """An engine whose calls take `per_row` milliseconds a row, at every size."""
    given = {"milliseconds": {rows: per_row * rows for rows in (1, *STEP_ROWS)}, "error": 1e-6, "precision": "fp32"}
    return Row(engine=engine, invariant_from=invariant_from, compared=True, **{**given, **rest})  # type: ignore[arg-type]


def test_cost_is_the_mean_over_batch_sizes_of_the_time_a_row() -> None:
    assert cost(row("a", milliseconds={2: 4.0, 4: 4.0, 8: 24.0}), STEP_ROWS) == (2 + 1 + 3) / 3


def test_the_cheapest_at_the_sizes_that_the_server_will_see_is_chosen() -> None:
    lone = row("fast alone", milliseconds={1: 0.1, 2: 4.0, 4: 8.0, 8: 16.0})
    many = row("fast together", milliseconds={1: 9.0, 2: 3.0, 4: 6.0, 8: 8.0})
    assert pick([lone, many], STEP_ROWS) is many
    assert pick([lone, many], (1,)) is lone


@pytest.mark.parametrize(("slower", "chosen"), [(1.029, "steady"), (1.031, "fast")])
def test_within_three_percent_rows_of_equal_bits_win(slower: float, chosen: str) -> None:
    rows = [row("fast", 1.0, invariant_from=None), row("steady", slower, invariant_from=2)]
    assert pick(rows, STEP_ROWS).engine == chosen


def test_bits_count_from_one_row_then_from_two_then_never_and_then_the_error() -> None:
    never, two, one = (row("never", invariant_from=None), row("two", invariant_from=2), row("one", error=1e-5))
    closer = row("closer", error=1e-7)
    assert pick([never, two, one, closer], STEP_ROWS) is closer
    assert pick([never, two, one], STEP_ROWS) is one
    assert pick([never, two], STEP_ROWS) is two
    assert pick([row("unknown", error=None), never], STEP_ROWS).engine == "unknown"
    assert pick([row("first"), row("second")], STEP_ROWS).engine == "first"


def test_what_was_dropped_is_never_chosen_however_fast() -> None:
    rows = [row("wrong", 0.1, dropped="its error is too large"), row("right", 5.0)]
    assert contenders(rows, STEP_ROWS) == [rows[1]]
    assert pick(rows, STEP_ROWS).engine == "right"


def test_memory_above_the_bound_drops_an_engine_and_unknown_memory_does_not() -> None:
    rows = [row("large", memory_bytes=5 * 2**20), row("fits", 2.0, memory_bytes=4 * 2**20), row("unknown", 3.0)]
    drop_above(rows, 4 * 2**20)
    assert [item.dropped for item in rows] == ["it needs 5 MiB of memory, and the bound is 4 MiB", "", ""]
    assert pick(rows, STEP_ROWS).engine == "fits"


def test_sizes_that_one_engine_was_too_slow_to_be_measured_at_are_compared_for_none() -> None:
    slow = row("slow", milliseconds={1: 5.0, 2: 10.0})
    other = row("other", milliseconds={1: 6.0, 2: 12.0, 4: 4.0, 8: 4.0})
    assert pick([slow, other], STEP_ROWS) is slow


def test_no_engine_left_names_every_reason_once() -> None:
    rows = [row("a", dropped="too far"), row("a", threads=1, dropped="too far"), row("b", dropped="too large")]
    with pytest.raises(LookupError, match=r"^a-fp32: too far; b-fp32: too large$"):
        pick(rows, STEP_ROWS)


def test_a_manifest_says_of_a_row_what_was_found_and_nothing_else() -> None:
    refused = Row(engine="openvino", precision="bf16", dropped="no such instructions")
    assert refused.written() == {
        "engine": "openvino",
        "precision": "bf16",
        "threads": 0,
        "dropped": "no such instructions",
        "chosen": False,
    }
    assert row("a", invariant_from=None).written()["batch_invariant_from_rows"] is None
    assert "batch_invariant_from_rows" not in Row(engine="a", precision="fp32").written()
