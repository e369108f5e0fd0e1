"""What yields waits in its place while others are inside: it is computed once, and who comes pays for nothing of it."""

from __future__ import annotations

import random
from typing import Any

import pytest
from test_scheduler import EOS, Make, alone, make, of_a_batch, prompts, run, sequence

from nereid.flow.tickets import AGING_SECONDS
from nereid.llm.sequences import GeneratedSequence
from nereid.llm.yielding import RAMP_SECONDS

__all__ = ["make"]


class Clock:
    """Stands until it is moved."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def long(made: GeneratedSequence) -> GeneratedSequence:
    """One that no stop token ends."""
    made.stop_ids = frozenset()
    return made


def expected(made: GeneratedSequence) -> list[int]:
    written = alone(made)
    return written if EOS in made.stop_ids else written[: len(made.written)]


def same_as_alone(*made: GeneratedSequence) -> bool:
    """`alone` ends at a stop token."""
    return all(one.written[: len(expected(one))] == expected(one) for one in made)


def test_what_yields_keeps_its_place_while_somebody_else_is_inside_and_is_computed_once(make: Make) -> None:
    scheduler, ticks = make()
    batch = [long(of_a_batch([number + 1] * 40, 60)) for number in range(4)]
    while not all(one.written for one in batch):
        scheduler.advance(batch)
    caller = long(sequence([9] * 30, 25))
    before, since = [list(one.written) for one in batch], len(ticks)
    while not caller.finished:
        scheduler.advance([*batch, caller])
        assert all(one.row >= 0 for one in batch)
    assert [one.written for one in batch] == before
    assert [tick.decoded_rows for tick in ticks[since:]] == [0] + [1] * 24
    run(scheduler, [(0, one) for one in batch])
    assert same_as_alone(*batch, caller)
    assert sum(tick.prompt_tokens for tick in ticks) == 4 * 40 + 30
    assert sum(tick.preempted for tick in ticks) == 0


def test_a_prompt_that_yields_waits_where_it_is_and_is_read_on(make: Make) -> None:
    scheduler, ticks = make(prefill_chunk=32, idle_prefill_chunk=200)
    batch = [of_a_batch([5] * 100), of_a_batch([6] * 50)]
    scheduler.advance(batch)
    caller = sequence([5] * 40, 10)  # begins as the prompt does that is being read, and does not wait for it
    for _ in range(9):
        scheduler.advance([*batch, caller])
    assert (len(caller.written), batch[0].computed, batch[1].row) == (9, 32, -1)
    run(scheduler, [(0, one) for one in [*batch, caller]])
    assert same_as_alone(*batch, caller)
    assert sum(tick.prompt_tokens for tick in ticks) == 190


def test_a_prompt_that_begins_like_one_that_waits_is_read_at_once(make: Make) -> None:
    scheduler, _ = make(cache=2**20, prefill_chunk=64)
    batch = of_a_batch([5] * 300)
    scheduler.advance([batch])
    caller = sequence([5] * 60, 10)
    scheduler.advance([batch, caller])
    assert caller.written


def test_one_of_those_that_yield_goes_on_where_others_are_always_inside(make: Make) -> None:
    clock = Clock()
    scheduler, ticks = make(clock=clock)
    batch = [long(of_a_batch([number + 1] * 20, 6)) for number in range(3)]
    while not all(one.written for one in batch):
        scheduler.advance(batch)
    callers = [long(sequence([9] * 20, 300))]
    for first in (0, 1, 2):
        clock.now += AGING_SECONDS - 0.1
        written = [len(one.written) for one in batch]
        scheduler.advance([*(one for one in batch if not one.finished), *callers])
        assert [len(one.written) for one in batch] == written
        clock.now += 0.1
        while not batch[first].finished:
            scheduler.advance([*(one for one in batch if not one.finished), *callers])
            assert ticks[-1].decoded_rows == 2
        assert [len(one.written) for one in batch[first + 1 :]] == written[first + 1 :]
    assert not callers[0].finished


def test_after_others_have_gone_few_move_on_at_first_and_all_a_little_later(make: Make) -> None:
    clock = Clock()
    scheduler, ticks = make(clock=clock)
    batch = [long(of_a_batch([number + 1] * 20, 60)) for number in range(5)]
    for _ in range(3):  # nobody was there before: all at once
        scheduler.advance(batch)
    assert ticks[-1].decoded_rows == 5
    caller = sequence([9] * 20, 1)
    scheduler.advance([*batch, caller])
    assert caller.finished
    for seconds, together in ((0.0, 1), (RAMP_SECONDS / 2, 2), (0.99 * RAMP_SECONDS, 4), (RAMP_SECONDS, 5)):
        clock.now = seconds
        scheduler.advance(batch)
        assert ticks[-1].decoded_rows == together
    assert len(batch[0].written) == max(len(one.written) for one in batch)  # the oldest is the first
    clock.now = 2 * RAMP_SECONDS
    run(scheduler, [(0, one) for one in batch])
    assert same_as_alone(*batch)


def test_who_finds_no_place_gets_that_of_the_youngest_that_yields(make: Make) -> None:
    scheduler, ticks = make(rows=3)
    batch = [of_a_batch([number + 1] * 20, 30) for number in range(3)]
    while not all(one.written for one in batch):
        scheduler.advance(batch)
    caller = sequence([9] * 20, 5)
    scheduler.advance([*batch, caller])
    assert caller.written
    assert [one.row >= 0 for one in batch] == [True, True, False]
    assert sum(tick.preempted for tick in ticks) == 1
    run(scheduler, [(0, one) for one in [*batch, caller]])
    assert same_as_alone(*batch, caller)


def test_however_long_they_have_waited_somebody_who_comes_finds_a_place_at_once(make: Make) -> None:
    """Another's caller is inside: they would neither move on nor give way."""
    scheduler, _ = make(rows=3, clock=Clock())
    batch = [of_a_batch([number + 1] * 20, 30) for number in range(2)]
    for one in batch:
        one.arrived -= 10 * AGING_SECONDS
    first, second = long(sequence([8] * 20, 100)), sequence([9] * 20, 5)
    while not all(one.written for one in batch):
        scheduler.advance(batch)
    scheduler.advance([*batch, first])
    scheduler.advance([*batch, first, second])
    assert second.written
    run(scheduler, [(0, one) for one in [*batch, first, second]])
    assert same_as_alone(*batch, first, second)


def test_who_needs_more_memory_gets_that_of_what_yields_however_long_it_has_waited(make: Make) -> None:
    scheduler, ticks = make(tokens=3100, clock=Clock())
    batch = [long(of_a_batch([number + 1] * 480, 20)) for number in range(3)]
    for one in batch:
        one.arrived -= 10 * AGING_SECONDS
    while not all(one.written for one in batch):
        scheduler.advance(batch)
    callers = [long(sequence([number + 8] * 60, 840)) for number in range(2)]
    while not all(one.written for one in callers):
        scheduler.advance([*batch, *callers])
    assert sum(tick.preempted for tick in ticks) == 0
    while not all(one.finished for one in callers):
        scheduler.advance([*batch, *(one for one in callers if not one.finished)])
        assert all(one.finished or one.row >= 0 for one in callers)
    assert 0 < sum(tick.preempted for tick in ticks) <= 3
    run(scheduler, [(0, one) for one in batch])
    assert same_as_alone(*batch, *callers)


@pytest.mark.parametrize("options", [{}, {"cache": 2**20}, {"tokens": 300 * 3}, {"rounds": True}], ids=str)
def test_in_any_company_everybody_gets_the_tokens_that_he_gets_alone(make: Make, options: dict[str, Any]) -> None:
    made = []
    for tokens in (options.get("tokens", 8192), 8192 * 4):
        rng, clock = random.Random(3), Clock()
        scheduler, _ = make(**{**options, "tokens": tokens}, prefill_chunk=32, clock=clock)
        arrivals = []
        for number, prompt in enumerate(prompts(12, 5, 90)):
            wanted = sequence(prompt, rng.randrange(1, 40), seed=number, drafts=3 if number % 5 == 0 else 0)
            wanted.priority = rng.choice([5, 9])
            arrivals.append((rng.randrange(60), wanted))
        run(scheduler, arrivals)
        assert scheduler.idle
        made.append([wanted.written for _, wanted in arrivals])
        if "rounds" not in options:
            assert made[-1] == [alone(wanted) for _, wanted in arrivals]
    assert made[0] == made[1]
