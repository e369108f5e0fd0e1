"""Places taken before the work is there: they count, they keep their order, they expire, and they can be cancelled by id."""

from __future__ import annotations

import math
import time

import pytest

from nereid.flow.errors import CancelledError, DeadlineError, InvalidRequestError, QueueFullError
from nereid.flow.runs import RunState
from nereid.flow.tickets import AGING_SECONDS, Tickets


def admitted(tickets: Tickets, **_: object) -> list[str]:
    tickets.admit(lambda seconds: None)
    return [ticket.run_id for ticket in tickets.active]


def take(tickets: Tickets, name: str, *, ready: bool = True, rows: int = 1, weight: float = 0.0) -> object:
    ticket = tickets.take(rows, 60.0, run_id=name, weight=weight)
    ticket.ready = ready
    return ticket


def test_an_unready_ticket_keeps_its_place_and_holds_nobody_up() -> None:
    tickets: Tickets = Tickets(max_inflight=1, max_queue=5)
    first = take(tickets, "first", ready=False)
    take(tickets, "second")
    take(tickets, "third")
    assert admitted(tickets) == ["second"]
    first.ready = True
    tickets.remove(tickets.active[0], None)
    assert admitted(tickets) == ["first"]


def test_tickets_without_work_count_against_the_queue() -> None:
    """One joins, two wait: places that nobody has used yet are places all the same."""
    tickets: Tickets = Tickets(max_inflight=1, max_queue=2)
    for name in ("joins", "a", "b"):
        take(tickets, name, ready=False)
    with pytest.raises(QueueFullError):
        take(tickets, "c")


def test_an_unused_ticket_expires_and_a_cancelled_or_overdue_one_is_let_go() -> None:
    tickets: Tickets = Tickets(max_inflight=1, max_queue=5)
    unused, _cancelled, overdue = (take(tickets, name, ready=False) for name in "abc")
    unused.expires, overdue.deadline = time.monotonic(), time.monotonic()
    tickets.runs.cancel("b")
    errors = {ticket.run_id: type(error) for ticket, error in tickets.drop_lost()}
    assert errors == {"a": DeadlineError, "b": CancelledError, "c": DeadlineError}
    assert not tickets.queue


def test_states_of_a_run() -> None:
    tickets: Tickets = Tickets(max_inflight=1, max_queue=5)
    assert tickets.runs.state("a") is RunState.UNKNOWN
    ticket = take(tickets, "a")
    assert tickets.runs.state("a") is RunState.WAITING
    admitted(tickets)
    assert tickets.runs.state("a") is RunState.RUNNING
    tickets.remove(ticket, None)
    assert tickets.runs.state("a") is RunState.DONE
    again = take(tickets, "a")
    assert tickets.runs.state("a") is RunState.WAITING
    tickets.remove(again, CancelledError("gone"))
    assert tickets.runs.state("a") is RunState.FAILED


def test_asking_again_under_an_id_gives_the_older_run_up() -> None:
    tickets: Tickets = Tickets(max_inflight=4, max_queue=5)
    first = take(tickets, "a")
    take(tickets, "a")
    assert first.cancelled
    assert [ticket for ticket, _ in tickets.drop_lost()] == [first]
    assert tickets.runs.state("a") is RunState.WAITING


def test_the_sum_of_weights_is_bounded_and_what_can_never_fit_is_refused() -> None:
    tickets: Tickets = Tickets(max_inflight=8, max_queue=5, max_weight=10.0)
    take(tickets, "a", weight=6.0)
    take(tickets, "b", weight=6.0)
    assert admitted(tickets) == ["a"]
    tickets.remove(tickets.active[0], None)
    assert admitted(tickets) == ["b"]
    with pytest.raises(InvalidRequestError):
        take(tickets, "c", weight=11.0)


def test_a_suspect_runs_with_nobody_beside_it() -> None:
    tickets: Tickets = Tickets(max_inflight=8, max_queue=9)
    take(tickets, "a")
    take(tickets, "suspect").alone = True
    take(tickets, "b")
    assert admitted(tickets) == ["a"]
    tickets.remove(tickets.active[0], None)
    assert admitted(tickets) == ["suspect"]
    tickets.remove(tickets.active[0], None)
    assert admitted(tickets) == ["b"]


def test_the_best_priority_is_admitted_first_and_equal_ones_as_they_came() -> None:
    tickets: Tickets = Tickets(max_inflight=10, max_queue=10)
    for name, priority in (("a", 5), ("b", 7), ("c", 2), ("d", 5), ("e", 2)):
        tickets.take(1, 60.0, run_id=name, priority=priority).ready = True
    assert admitted(tickets) == ["c", "e", "a", "d", "b"]


def test_waiting_raises_a_priority_so_that_nobody_starves() -> None:
    tickets: Tickets = Tickets(max_inflight=1, max_queue=10)
    patient = tickets.take(1, 60.0, run_id="patient", priority=9)
    patient.ready, patient.submitted = True, time.monotonic() - 5 * AGING_SECONDS
    tickets.take(1, 60.0, run_id="newcomer", priority=5).ready = True
    assert admitted(tickets) == ["patient"]


def test_of_equal_priority_one_whose_goal_is_at_stake_goes_first() -> None:
    tickets: Tickets = Tickets(max_inflight=10, max_queue=10)
    for name, priority, start_by in (
        ("a", 5, math.inf),
        ("late", 5, 0.0),
        ("calm", 5, time.monotonic() + 60),
        ("best", 4, math.inf),
    ):
        ticket = tickets.take(1, 60.0, run_id=name, priority=priority)
        ticket.ready, ticket.start_by = True, start_by
    assert admitted(tickets) == ["best", "late", "a", "calm"]


def test_one_whose_goal_is_lost_goes_behind_its_equals() -> None:
    tickets: Tickets = Tickets(max_inflight=10, max_queue=10)
    now = time.monotonic()
    for name, priority, start_by, late_from in (
        ("lost", 5, now - 2, now - 1),
        ("plain", 5, math.inf, math.inf),
        ("at stake", 5, now - 1, now + 60),
        ("worse", 6, math.inf, math.inf),
    ):
        ticket = tickets.take(1, 60.0, run_id=name, priority=priority)
        ticket.ready, ticket.start_by, ticket.late_from = True, start_by, late_from
    assert admitted(tickets) == ["at stake", "plain", "lost", "worse"]


def displacing(max_inflight: int, max_queue: int = 9) -> Tickets:
    return Tickets(max_inflight=max_inflight, max_queue=max_queue, displaces=True)


def come(tickets: Tickets, name: str, priority: int, rows: int = 1) -> None:
    """As a request does whose priority is read once it has its place in the queue."""
    ticket = tickets.take(rows, 60.0, run_id=name)
    ticket.priority, ticket.ready = priority, True


def test_who_does_not_yield_gets_the_places_of_the_newest_that_do_and_they_come_again() -> None:
    tickets, told = displacing(3), list[float]()
    for name in ("a", "b", "c"):
        come(tickets, name, 9)
    tickets.admit(told.append)
    come(tickets, "caller", 5, rows=2)
    tickets.admit(told.append)
    assert [ticket.run_id for ticket in tickets.active] == ["a", "caller"]
    come(tickets, "late", 9)
    tickets.remove(tickets.active[1], None)
    tickets.admit(told.append)
    assert sorted(ticket.run_id for ticket in tickets.active) == ["a", "b", "c"]
    assert len(told) == 4  # of each request once: what was displaced has told how long it had waited


def test_what_was_displaced_comes_again_before_its_equals_that_came_later() -> None:
    tickets = displacing(2)
    for name in ("a", "b"):
        come(tickets, name, 9)
    admitted(tickets)
    come(tickets, "caller", 5, rows=2)
    come(tickets, "late", 9)
    assert admitted(tickets) == ["caller"]
    tickets.remove(tickets.active[0], None)
    assert admitted(tickets) == ["a", "b"]


@pytest.mark.parametrize("ended", [{"done": True, "error": None}, {"done": False, "error": CancelledError("gone")}], ids=str)
def test_what_is_over_is_not_displaced(ended: dict[str, object]) -> None:
    """It would wait in the queue with its answer."""
    tickets = displacing(2)
    for name in ("a", "b"):
        come(tickets, name, 9)
    admitted(tickets)
    tickets.active[1].task = type("Task", (), ended)()
    come(tickets, "caller", 5)
    assert admitted(tickets) == ["b", "caller"]
    come(tickets, "next", 5)
    assert admitted(tickets) == ["b", "caller"]
    tickets.remove(tickets.active[0], None)
    assert admitted(tickets) == ["caller", "next"]


def test_what_ends_in_the_moment_in_which_it_is_displaced_does_not_wait_with_its_answer() -> None:
    tickets = displacing(1)
    come(tickets, "batch", 9)
    admitted(tickets)
    come(tickets, "caller", 5)
    come(tickets, "next", 5)
    assert admitted(tickets) == ["caller"]
    (batch,) = (ticket for ticket in tickets.queue if ticket.displaced)
    batch.task = type("Task", (), {"done": True, "error": None})()
    assert admitted(tickets) == ["caller", "batch"]


def test_who_would_not_fit_even_so_displaces_nobody() -> None:
    tickets = displacing(3)
    come(tickets, "batch", 9)
    come(tickets, "caller", 5, rows=2)
    assert sorted(admitted(tickets)) == ["batch", "caller"]
    come(tickets, "large", 5, rows=2)
    assert sorted(admitted(tickets)) == ["batch", "caller"]


def test_what_yields_holds_nobody_up_however_long_it_has_waited() -> None:
    tickets = displacing(2)
    for name in ("a", "b"):
        come(tickets, name, 9)
    admitted(tickets)
    for ticket in tickets.active:
        ticket.submitted -= 10 * AGING_SECONDS
    for name in ("first", "second"):
        come(tickets, name, 5)
        admitted(tickets)
    assert admitted(tickets) == ["first", "second"]
    come(tickets, "third", 5)
    tickets.remove(tickets.active[0], None)
    admitted(tickets)
    assert "third" in admitted(tickets)


def test_what_yields_takes_nobodys_place_in_the_queue() -> None:
    tickets = displacing(2, max_queue=0)
    for name in ("a", "b"):
        come(tickets, name, 9)
    admitted(tickets)
    for name in ("first", "second"):
        come(tickets, name, 5)
        assert name in admitted(tickets)
    with pytest.raises(QueueFullError):
        come(tickets, "third", 5)


def test_without_displacing_who_runs_keeps_the_place() -> None:
    tickets: Tickets = Tickets(max_inflight=1, max_queue=9)
    come(tickets, "batch", 9)
    admitted(tickets)
    come(tickets, "caller", 5)
    assert admitted(tickets) == ["batch"]
