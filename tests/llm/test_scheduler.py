"""The loop over an engine in closed form: whatever happens around a sequence, it gets the tokens that it gets alone."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models

from nereid.flow.tickets import AGING_SECONDS
from nereid.llm.blocks import KvBlocks
from nereid.llm.prefill import Prefill
from nereid.llm.prefix_cache import BLOCK, PrefixCache
from nereid.llm.rows import KvRows
from nereid.llm.sampling import Row, Sampling, sample
from nereid.llm.scheduler import LlmScheduler
from nereid.llm.sequences import Delta, FinishReason, GeneratedSequence
from nereid.llm.speculation import DraftModel, DraftProposer, PromptLookup, SpeculationMeter
from nereid.llm.text import TextStream
from nereid.llm.tick import Tick
from nereid.llm.yielding import Yielding

from closed_form import ClosedFormBlocks, ClosedFormEngine, logits_after

EOS = 49


def tokenizer() -> Tokenizer:
    made = Tokenizer(models.WordLevel({f"w{i}": i for i in range(50)}, unk_token="w0"))
    made.decoder = decoders.Fuse()
    return made


TOKENIZER = tokenizer()


def sequence(
    prompt: list[int], max_tokens: int = 20, *, drafts: int = 0, draft: DraftProposer | None = None, **settings: object
) -> GeneratedSequence:
    deltas: list[Delta] = []
    return GeneratedSequence(
        prompt=prompt,
        sampling=Sampling(**{"temperature": 1.0, **settings}),  # type: ignore[arg-type]
        max_tokens=max_tokens,
        stop_ids=frozenset([EOS]),
        text=TextStream(TOKENIZER),
        emit=deltas.append,
        proposer=(draft or PromptLookup()) if drafts else None,
        meter=SpeculationMeter(drafts) if drafts else None,
    )


def alone(wanted: GeneratedSequence) -> list[int]:
    """What the model in closed form answers, without any scheduler."""
    tokens, written = list(wanted.prompt), []
    while len(written) < wanted.max_tokens:
        token = int(sample(logits_after(tokens, 50)[None], [Row(wanted.sampling, len(written))])[0])
        tokens.append(token)
        written.append(token)
        if token == EOS:
            break
    return written


def run(scheduler: LlmScheduler, arrivals: list[tuple[int, GeneratedSequence]], ticks: int = 3000) -> None:
    """Tick until all are finished; each sequence joins at its tick."""
    for tick in range(ticks):
        active = [s for at, s in arrivals if at <= tick and not s.finished]
        scheduler.advance(active)
        if all(s.finished for _, s in arrivals):
            return
    raise AssertionError("some sequences never ended")


Make = Callable[..., tuple[LlmScheduler, list[Tick]]]
"""A scheduler over `tokens` places of KV memory, and the ticks that it will tell of."""


@pytest.fixture(params=["rows", "blocks"])
def make(request: pytest.FixtureRequest) -> Make:
    """The same loop over either kind of memory."""
    return make_rows if request.param == "rows" else make_blocks


def make_rows(
    tokens: int = 8192, rows: int = 8, *, cache: int = 0, rounds: bool = False, **options: Any
) -> tuple[LlmScheduler, list[Tick]]:
    ticks: list[Tick] = []
    memory = KvRows(ClosedFormEngine(tokens, rounds=rounds), PrefixCache(cache), rows, 4096)
    return LlmScheduler(memory, ticked=ticks.append, **options), ticks


def make_blocks(
    tokens: int = 8192, rows: int = 8, *, cache: int = 0, rounds: bool = False, **options: Any
) -> tuple[LlmScheduler, list[Tick]]:
    ticks: list[Tick] = []
    engine = ClosedFormBlocks(1 + tokens // BLOCK + (64 if cache else 0), BLOCK, rounds=rounds)
    memory = KvBlocks(engine, tokens, rows, 4096, caches=cache > 0)
    return LlmScheduler(memory, ticked=ticks.append, **options), ticks


def prompts(count: int, seed: int, longest: int = 200) -> list[list[int]]:
    rng = random.Random(seed)
    return [[rng.randrange(49) for _ in range(rng.randrange(1, longest))] for _ in range(count)]


def test_prompts_that_begin_alike_are_read_once_also_when_they_come_together(make: Make) -> None:
    scheduler, ticks = make(cache=2**20)
    shared = [*range(40), *range(5, 40)]
    together = [sequence([*shared, own], 5, seed=own) for own in range(4)]
    other = sequence([7, 8, 9], 5)
    run(scheduler, [(0, one) for one in [*together, other]])
    assert [one.cached_tokens for one in together] == [0, 64, 64, 64]
    assert sum(tick.prompt_tokens for tick in ticks) == 76 + 3 * 12 + 3
    assert [one.written for one in [*together, other]] == [alone(one) for one in [*together, other]]
    ticks.clear()
    run(scheduler, [(0, sequence([*shared, own], 5)) for own in range(4, 7)])
    assert ticks[0].prompt_tokens == 3 * 12  # nobody waits for what is known


@pytest.mark.parametrize("drafts", [8, 64, 200])
def test_a_draft_longer_than_the_memory_holds_nobody_up(make: Make, drafts: int) -> None:
    scheduler, ticks = make(tokens=256)
    prompt = [5, 6, 7] * 21
    wanted = sequence(prompt, scheduler.longest - len(prompt), drafts=drafts, temperature=0.0)
    run(scheduler, [(0, wanted)], ticks=300)
    assert wanted.written == alone(wanted)
    assert sum(tick.preempted for tick in ticks) == 0


def test_tokens_alone_and_among_others_are_the_same(make: Make) -> None:
    rng = random.Random(1)
    arrivals = [
        (rng.randrange(60), sequence(prompt, rng.randrange(1, 60), seed=i, top_k=rng.choice([0, 5])))
        for i, prompt in enumerate(prompts(30, 1))
    ]
    scheduler, ticks = make()
    run(scheduler, arrivals)
    assert [s.written for _, s in arrivals] == [alone(s) for _, s in arrivals]
    assert max(tick.decoded_rows for tick in ticks) == 8
    assert scheduler.idle


def test_memory_that_runs_out_delays_but_changes_nothing(make: Make) -> None:
    """Room for two long rows: eight sequences that grow past 256 tokens must give way to one another."""
    arrivals = [(0, sequence(prompt, 500, seed=i)) for i, prompt in enumerate(prompts(8, 2, 100))]
    for _, wanted in arrivals:
        wanted.stop_ids = frozenset()
    scheduler, ticks = make(tokens=1100 * 3, rows=8)
    run(scheduler, arrivals, 20_000)
    for _, wanted in arrivals:
        wanted.stop_ids = frozenset([EOS])
    assert sum(tick.preempted for tick in ticks) > 0
    for _, wanted in arrivals:
        assert len(wanted.written) == 500
        expected = alone(wanted)
        assert wanted.written[: len(expected)] == expected


def test_the_youngest_gives_way_and_the_oldest_never_waits(make: Make) -> None:
    arrivals = [sequence(prompt, 400, seed=i) for i, prompt in enumerate(prompts(6, 2, 100))]
    for wanted in arrivals:
        wanted.stop_ids = frozenset()
    scheduler, ticks = make(tokens=1100 * 2, rows=8)
    lost = 0
    while not arrivals[0].finished:
        before = [s for s in arrivals if s.row >= 0]
        scheduler.advance([s for s in arrivals if not s.finished])
        gone = [s for s in before if s.row < 0 and not s.finished]
        assert len(gone) <= ticks[-1].preempted  # one that had just begun may have gone, too
        assert arrivals[0].finished or arrivals[0].row >= 0
        kept = [s.admission for s in arrivals if s.row >= 0]
        assert all(s.admission > max(kept) for s in gone)
        lost += len(gone)
    assert lost > 0


BATCH = 9
"""A priority behind the usual one."""


def of_a_batch(prompt: list[int], max_tokens: int = 20) -> GeneratedSequence:
    made = sequence(prompt, max_tokens)
    made.priority = BATCH
    return made


def test_a_prompt_of_better_priority_is_read_before_all_that_are_not_begun(make: Make) -> None:
    scheduler, _ = make(prefill_chunk=64, idle_prefill_chunk=64)
    batch = [of_a_batch([number + 1] * 60) for number in range(4)]
    scheduler.advance(batch)
    caller = sequence([9] * 60)
    scheduler.advance([*batch, caller])
    assert caller.written
    assert [len(one.written) > 0 for one in batch] == [True, False, False, False]  # the second was begun, and waits
    run(scheduler, [(0, one) for one in [*batch, caller]])
    assert [one.written for one in [*batch, caller]] == [alone(one) for one in [*batch, caller]]


def test_a_prompt_that_yields_is_read_in_short_ticks_and_holds_up_no_other(make: Make) -> None:
    scheduler, ticks = make(prefill_chunk=32, idle_prefill_chunk=200)
    batch = of_a_batch([5] * 100, 400)
    batch.stop_ids = frozenset()
    while not batch.written:
        scheduler.advance([batch])
    assert [tick.prompt_tokens for tick in ticks] == [32, 32, 32, 4]
    caller, later = sequence([6] * 150, 400), sequence([7] * 150)
    caller.stop_ids = frozenset()
    scheduler.advance([batch, caller])
    assert ticks[-1].prompt_tokens == 150  # only what yields is decoded meanwhile
    scheduler.advance([batch, caller, later])
    assert ticks[-1].prompt_tokens == 32


def test_what_yields_gives_its_place_up_first_and_waits_no_longer_than_for_ever(make: Make) -> None:
    scheduler, _ = make(tokens=1100 * 2, rows=8)
    batch = of_a_batch([3] * 60, 400)
    callers = [sequence([number + 4] * 60, 400) for number in range(5)]
    for one in (batch, *callers):
        one.stop_ids = frozenset()
    while not batch.written:
        scheduler.advance([batch])
    for _ in range(350):
        scheduler.advance([batch, *callers])
        if batch.row < 0:
            break
    assert batch.row < 0  # though it is the oldest
    waiting = prefill_of_rows()
    old, young = of_a_batch([1]), sequence([2])
    waiting.enqueue([old, young])
    assert waiting._first_waiting() is young
    old.arrived -= 10 * AGING_SECONDS
    assert waiting._first_waiting() is old


def test_what_yields_and_has_waited_long_keeps_the_place_that_it_was_given(make: Make) -> None:
    """Else it would be read again and again in front of others, and never come to its end."""
    now = [0.0]
    scheduler, ticks = make(tokens=1100 * 2, rows=8, clock=lambda: now[0])
    batch = of_a_batch([3] * 60, 400)
    batch.arrived -= 10 * AGING_SECONDS
    callers = [sequence([number + 4] * 60, 400) for number in range(5)]
    for one in (batch, *callers):
        one.stop_ids = frozenset()
    while not batch.written:
        scheduler.advance([batch])
    now[0] = AGING_SECONDS
    while not batch.finished:
        scheduler.advance([one for one in (batch, *callers) if not one.finished])
        assert batch.finished or batch.row >= 0
    assert sum(tick.preempted for tick in ticks) > 0


def test_an_answer_that_yields_is_not_read_again_for_a_next_turn(make: Make) -> None:
    scheduler, _ = make(cache=2**20)
    batch, caller = of_a_batch([5] * 60, 80), sequence([6] * 60, 80)
    for one in (batch, caller):
        one.stop_ids = frozenset()
    run(scheduler, [(0, batch)])
    scheduler.advance([])
    assert not scheduler.rest()
    run(scheduler, [(0, caller)])
    scheduler.advance([])
    assert scheduler.rest()


def prefill_of_rows() -> Prefill:
    memory = KvRows(ClosedFormEngine(1024), PrefixCache(0), 4, 512)
    return Prefill(memory, 64, 64, Yielding(memory))


def test_of_several_that_gave_way_together_the_oldest_is_the_next() -> None:
    oldest, older, young = (sequence([number], 5) for number in range(3))
    prefill = prefill_of_rows()
    prefill.enqueue([young])
    prefill.take_back([older, oldest])
    assert list(prefill.waiting) == [oldest, older, young]


@pytest.mark.parametrize(("answer", "together"), [(100, 2), (20, 3)])
def test_admission_leaves_room_for_the_beginning_of_an_answer(answer: int, together: int) -> None:
    """Three prompts of 200 fit beside one another in rows of 256; with answers of 100 they would have to give way at once."""
    arrivals = [(0, sequence([i + 1] * 200, answer, seed=i)) for i in range(3)]
    for _, wanted in arrivals:
        wanted.stop_ids = frozenset()
    scheduler, ticks = make_rows(tokens=512 * 3, rows=8)
    run(scheduler, arrivals)
    assert sum(tick.preempted for tick in ticks) == 0
    assert max(tick.decoded_rows for tick in ticks) == together


@pytest.mark.parametrize("cache", [0, 2**20])
def test_a_preempted_answer_is_computed_again_by_the_calls_that_computed_it_first(make: Make, cache: int) -> None:
    """The engine tells decode from extend: an answer computed again like a prompt would go on with other tokens."""
    made = []
    for tokens, rows in ((800 * 3, 8), (8192 * 4, 8)):
        arrivals = [(0, sequence(prompt, 500, seed=i)) for i, prompt in enumerate(prompts(8, 2, 100))]
        for _, wanted in arrivals:
            wanted.stop_ids = frozenset()
        scheduler, ticks = make(tokens=tokens, rows=rows, rounds=True, cache=cache)
        run(scheduler, arrivals, 20_000)
        made.append(([s.written for _, s in arrivals], sum(tick.preempted for tick in ticks)))
    assert made[0][1] >= 2
    assert made[1][1] == 0
    assert made[0][0] == made[1][0]


def test_a_long_prompt_stalls_the_others_by_one_chunk_at_most(make: Make) -> None:
    short, long = sequence([1, 2, 3], 100, seed=1), sequence(list(np.arange(2000) % 49), 3, seed=2)
    short.stop_ids = frozenset()
    scheduler, ticks = make(prefill_chunk=64)
    run(scheduler, [(0, short), (5, long)])
    during = [tick for tick in ticks if tick.prompt_tokens and tick.decoded_rows]
    assert len(during) >= 2000 // 64
    assert max(tick.prompt_tokens for tick in during) <= 64
    assert all((tick.decode_seconds > 0) == (tick.decoded_rows > 0 and not tick.prompt_tokens) for tick in ticks)


def test_a_known_prefix_is_not_computed_again_and_changes_nothing(make: Make) -> None:
    system = [7, 8, 9] * 40
    arrivals = [(8 * i, sequence([*system, i, i + 1], 10, seed=i)) for i in range(6)]
    scheduler, ticks = make(cache=2**20)
    run(scheduler, arrivals)
    assert [s.written for _, s in arrivals] == [alone(s) for _, s in arrivals]
    assert [s.cached_tokens for _, s in arrivals] == [0, *[len(system) // BLOCK * BLOCK] * 5]
    assert sum(tick.prompt_tokens for tick in ticks) == 122 + 5 * (122 - 112)


class Mistaken(ClosedFormEngine):
    """Agrees with the model in closed form after most tokens."""

    def _append(self, row: int, start: int, tokens: Sequence[int], adapter: int, *, decoded: bool = False) -> list[np.ndarray]:
        made = super()._append(row, start, tokens, adapter, decoded=decoded)
        return [np.roll(logits, 1) if token % 7 == 0 else logits for logits, token in zip(made, tokens, strict=True)]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("kind", ["ngram", "draft"])
def test_speculation_does_not_change_the_answer(make: Make, temperature: float, kind: str) -> None:
    draft = DraftModel(Mistaken(3 * 1024), rows=2, capacity=1024, vocabulary=50, chunk=64)
    accepted = draft_tokens = 0
    for seed in range(12):
        prompt = prompts(1, seed)[0] * 2
        proposer = DraftProposer(draft) if kind == "draft" else None
        plain = sequence(prompt, 80, seed=seed, temperature=temperature)
        speculated = sequence(prompt, 80, seed=seed, temperature=temperature, drafts=5, draft=proposer)
        for wanted in (plain, speculated):
            scheduler, ticks = make()
            run(scheduler, [(0, wanted)])
        assert speculated.written == plain.written == alone(plain)
        accepted += sum(tick.accepted_tokens for tick in ticks)
        draft_tokens += sum(tick.draft_tokens for tick in ticks)
    assert 0 < accepted < draft_tokens


def test_in_blocks_what_speculates_gets_its_own_tokens_in_any_company() -> None:
    """The engine tells decode from extend, and with many rows nobody speculates."""
    draft = DraftModel(Mistaken(3 * 1024), rows=2, capacity=1024, vocabulary=50, chunk=64)
    made = []
    for company in (0, 5):
        wanted = sequence(prompts(1, 2)[0], 80, seed=3, drafts=5, draft=DraftProposer(draft))
        wanted.stop_ids, wanted.meter = frozenset(), SpeculationMeter(5, pause=0)
        scheduler, ticks = make_blocks(rounds=True)
        run(scheduler, [(0, wanted), *((0, sequence([seed], 20, seed=seed)) for seed in range(company))])
        assert sum(tick.draft_tokens for tick in ticks) > 0
        made.append(wanted.written)
    assert made[0] == made[1]


@pytest.mark.parametrize("width", [30, 70])
def test_a_draft_model_of_another_width_changes_nothing(make: Make, width: int) -> None:
    """Biases, penalties and bans may name tokens that the draft model lacks; a token that it lacks ends the speculation."""
    known = dict.fromkeys(range(30, 49), -100.0)
    draft = DraftModel(ClosedFormEngine(3 * 1024, width), rows=2, capacity=1024, vocabulary=50, chunk=64)
    draft_tokens = 0
    for settings in ({}, {"logit_bias": {45: 2.0}}, {"logit_bias": known}, {"logit_bias": known, "frequency_penalty": 0.3}):
        made = []
        for drafts in (0, 5):
            prompt = [token % 30 for token in prompts(1, 3)[0] * 2]
            proposer = DraftProposer(draft) if drafts else None
            wanted = sequence(prompt, 60, seed=7, drafts=drafts, draft=proposer, **settings)
            wanted.min_tokens = 40
            scheduler, ticks = make()
            run(scheduler, [(0, wanted)])
            made.append(wanted.written)
        assert made[0] == made[1]
        draft_tokens += sum(tick.draft_tokens for tick in ticks)
    assert draft_tokens > 0


def test_an_answer_is_read_again_for_the_next_turn_when_nothing_else_waits(make: Make) -> None:
    """A conversation's second prompt holds its first answer; what interrupts the reading loses nothing."""
    first = sequence([3, 1, 4, 1, 5] * 4, 100, seed=3)
    first.stop_ids = frozenset()
    scheduler, ticks = make(cache=2**20)
    run(scheduler, [(0, first)])
    assert scheduler.rest()
    assert scheduler.rest()
    between = sequence([9, 9, 9], 5, seed=4)
    run(scheduler, [(0, between)])
    rests = 0
    while scheduler.rest():
        rests += 1
    assert 0 < rests < 5
    second = sequence([*first.tokens, 8, 8], 20, seed=5)
    ticks.clear()
    run(scheduler, [(0, second)])
    assert second.cached_tokens == len(first.tokens) // BLOCK * BLOCK == 112
    assert second.written == alone(second)
    assert between.written == alone(between)


def known(scheduler: LlmScheduler, tokens: list[int]) -> int:
    """How much of a prompt that begins with `tokens` would come from the prefix cache."""
    asked = sequence([*tokens, 1], 1)
    assert scheduler.memory.begin(asked, len(asked.prompt) + 2, counted=False)
    scheduler.memory.release(asked)
    return asked.computed


def test_the_newest_answer_is_read_again_first(make: Make) -> None:
    answers = [sequence([3 + number], 63, seed=number) for number in range(2)]
    scheduler, _ = make(cache=2**20)
    for answer in answers:
        answer.stop_ids = frozenset()
        run(scheduler, [(0, answer)])
    assert scheduler.rest()
    assert scheduler.rest()  # two chunks are one answer
    assert [known(scheduler, answer.tokens) for answer in answers] == [0, 64]
    while scheduler.rest():
        pass
    assert [known(scheduler, answer.tokens) for answer in answers] == [64, 64]


def test_nothing_is_read_again_without_a_prefix_cache(make: Make) -> None:
    wanted = sequence([3, 1, 4], 60, seed=3)
    scheduler, _ = make()
    run(scheduler, [(0, wanted)])
    assert not scheduler.rest()


def test_speculating_ends_where_there_are_many_rows(make: Make) -> None:
    arrivals = [(0, sequence(prompt * 2, 30, drafts=4, seed=i)) for i, prompt in enumerate(prompts(6, 9))]
    scheduler, ticks = make(speculation_rows=2)
    run(scheduler, arrivals)
    assert [s.written for _, s in arrivals] == [alone(s) for _, s in arrivals]
    assert all(not tick.draft_tokens for tick in ticks if tick.decoded_rows > 2)


def test_a_sequence_that_is_let_go_frees_its_row_at_the_next_tick(make: Make) -> None:
    kept, lost = sequence([1, 2], 50, seed=1), sequence([3, 4], 50, seed=2)
    kept.stop_ids = lost.stop_ids = frozenset()
    scheduler, ticks = make()
    for _ in range(5):
        scheduler.advance([lost, kept])
    scheduler.advance([kept])
    assert ticks[-1].decoded_rows == 1
    while not kept.finished:
        scheduler.advance([kept])
    expected = sequence([1, 2], 50, seed=1)
    reference = alone(expected)
    assert kept.written[: len(reference)] == reference


def test_an_answer_ends_at_its_stop_token_or_its_length(make: Make) -> None:
    ended = sequence([5], 5, logit_bias={EOS: 100.0})
    long = sequence([5], 5, logit_bias={EOS: -100.0})
    scheduler, _ = make()
    run(scheduler, [(0, ended), (0, long)])
    assert (ended.finish_reason, ended.written) == (FinishReason.STOP, [EOS])
    assert (long.finish_reason, len(long.written)) == (FinishReason.LENGTH, 5)


def test_a_sequence_may_fill_the_context_but_for_two_places() -> None:
    scheduler, _ = make_rows(tokens=1024)
    assert scheduler.longest == 510
    wanted = sequence([1, 2, 3], scheduler.longest - 3, seed=8)
    wanted.stop_ids = frozenset()
    run(scheduler, [(0, wanted)])
    assert len(wanted.tokens) == 510
    assert scheduler.memory.engine.capacity == 512


def test_min_tokens_keeps_the_stop_token_away(make: Make) -> None:
    wanted = sequence([5], 12, logit_bias={EOS: 100.0})
    wanted.min_tokens = 7
    scheduler, _ = make()
    run(scheduler, [(0, wanted)])
    assert len(wanted.written) == 8
    assert wanted.written[-1] == EOS
    assert EOS not in wanted.written[:-1]
