"""KV memory in blocks: what is shared, what is forgotten first, what a row's place is."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from test_requests import WORDS

from nereid.llm import loading
from nereid.llm.block_pool import BlockPool
from nereid.llm.blocks import DraftBlocks, KvBlocks
from nereid.llm.engine import Chunk
from nereid.llm.sampling import Sampling
from nereid.llm.sequences import GeneratedSequence
from nereid.llm.settings import LlmFacts, LlmLimits
from nereid.llm.text import TextStream

from closed_form import ClosedFormBlocks, logits_after


@dataclass(slots=True, eq=False)
class Reader:
    """The least that holds a place."""

    prompt: list[int]
    computed: int = 0
    row: int = -1
    adapter: int = 0
    cache_salt: str = ""


def memory_of(blocks: int = 17, *, rows: int = 4, caches: bool = True) -> KvBlocks:
    engine = ClosedFormBlocks(blocks, 16)
    return KvBlocks(engine, (blocks - 1) * 16, rows, 4096, caches)


def answer(prompt: list[int]) -> GeneratedSequence:
    return GeneratedSequence(
        prompt=prompt,
        sampling=Sampling(),
        max_tokens=50,
        stop_ids=frozenset(),
        text=TextStream(WORDS),
        emit=lambda delta: None,
    )


def read(memory: KvBlocks, prompt: list[int]) -> Reader:
    """A prompt in one chunk, remembered."""
    reader = Reader(prompt)
    assert memory.begin(reader, len(prompt) + 2)
    tokens = prompt[reader.computed :]
    _, (logits,) = memory.run([], [Chunk(reader, tokens)])
    assert np.array_equal(logits[0], logits_after(prompt, 50))
    reader.computed = len(prompt)
    memory.remember(reader)
    return reader


def test_sequences_of_one_prefix_hold_the_same_blocks_and_nothing_is_copied() -> None:
    memory = memory_of()
    first, second = read(memory, [*range(40), 1]), Reader([*range(40), 2, 3])
    before = memory.engine.memory.copy()
    assert memory.begin(second, 44)
    assert second.computed == 32
    assert memory.table(second)[:2] == memory.table(first)[:2]
    assert not set(memory.table(second)[2:]) & set(memory.table(first))
    assert np.array_equal(memory.engine.memory, before)
    memory.release(first)
    _, (logits,) = memory.run([], [Chunk(second, second.prompt[32:])])
    assert np.array_equal(logits[0], logits_after(second.prompt, 50))


def test_a_prompt_never_comes_whole_from_the_cache() -> None:
    memory = memory_of()
    memory.release(read(memory, list(range(32))))
    again = Reader(list(range(32)))
    assert memory.begin(again, 34)
    assert again.computed == 16


def test_blocks_in_use_are_kept_and_of_a_prefix_the_last_is_forgotten_first() -> None:
    memory = memory_of(9)
    held = read(memory, [7] * 17)
    memory.release(read(memory, list(range(33))))
    big = Reader([9] * 40)
    assert memory.begin(big, 5 * 16)  # four that nobody has a name for, and one that is taken from the cache
    memory.release(big)
    assert memory.table(held)[0] == 1
    known = Reader([*range(33)])
    assert memory.begin(known, 35)
    assert known.computed == 16
    same = Reader([7] * 17)
    assert memory.begin(same, 19)
    assert memory.table(same)[0] == memory.table(held)[0]


def test_there_is_no_room_where_blocks_or_rows_are_taken_and_nothing_is_lost_by_asking() -> None:
    memory = memory_of(9, rows=2)
    assert not memory.begin(Reader([1]), 9 * 16)
    first, second = Reader([1] * 20), Reader([2] * 20)
    assert memory.begin(first, 64)
    assert not memory.begin(Reader([3]), 80)
    assert memory.begin(second, 64)
    memory.release(first)
    assert memory.begin(Reader([4]), 64)
    assert not memory.begin(Reader([5]), 1)


def test_without_a_prefix_cache_nothing_is_found() -> None:
    memory = memory_of(caches=False)
    memory.release(read(memory, list(range(40))))
    again = Reader(list(range(40)))
    assert memory.begin(again, 42)
    assert (again.computed, memory.prefix_block, memory.prefix_hits) == (0, 0, (0, 0))


def test_hits_are_counted_but_for_what_is_read_again() -> None:
    memory = memory_of()
    memory.release(read(memory, list(range(40))))
    assert memory.prefix_hits == (40, 0)
    for counted, seen in ((False, (40, 0)), (True, (80, 32))):
        again = Reader(list(range(40)))
        assert memory.begin(again, 42, counted=counted)
        memory.release(again)
        assert memory.prefix_hits == seen


def test_a_block_given_back_by_all_its_users_is_available_again() -> None:
    pool = BlockPool(5, 4)
    table = pool.take((), 2)
    assert table is not None
    pool.remember(list(range(8)), table)
    shared = pool.take(pool.match([*range(8), 1]), 1)
    assert shared is not None
    assert shared[:2] == table
    assert pool.available == 1
    pool.give_back(table)
    assert pool.available == 1
    pool.give_back(shared)
    assert pool.available == 4
    assert pool.take((), 5) is None
    assert len(set(pool.take((), 4) or ())) == 4
    assert pool.match([*range(8), 1]) == []


def test_known_blocks_that_nobody_uses_do_not_count_twice() -> None:
    pool = BlockPool(5, 4)
    table = pool.take((), 2)
    assert table is not None
    pool.remember(list(range(8)), table)
    pool.give_back(table)
    assert pool.available == 4
    assert pool.take(table, 3) is None
    assert pool.available == 4
    assert pool.take(table, 2) is not None


def test_a_sequence_gets_room_for_its_draft_and_for_padding() -> None:
    memory = memory_of()
    sequence = answer([3] * 27)
    assert memory.begin(sequence, 29)
    memory.run([], [Chunk(sequence, sequence.prompt)])
    sequence.computed = 27
    memory.join(sequence)
    for lookahead, blocks in ((3, 2), (4, 3)):
        sequence.lookahead = lookahead
        assert memory.grow() == []
        assert len(memory.table(sequence)) == blocks


def test_what_is_decoded_is_told_apart_from_what_is_read() -> None:
    memory = memory_of()
    sequence = answer([3, 4])
    memory.begin(sequence, 20)
    memory.run([], [Chunk(sequence, [3, 4])])
    sequence.computed = 2
    memory.join(sequence)
    sequence.take(9)
    reader = Reader([5])
    memory.begin(reader, 3)
    logits, (read_logits,) = memory.run([sequence], [Chunk(reader, [5])])
    assert logits is not None
    assert np.array_equal(logits[0], logits_after([3, 4, 9], 50))
    assert np.array_equal(read_logits[0], logits_after([5], 50))
    assert [piece.decoded for piece in memory.engine.calls[-1]] == [True, False]


def test_a_draft_models_rows_have_blocks_of_their_own() -> None:
    draft = DraftBlocks(ClosedFormBlocks(1 + 2 * 3, 16))
    draft.arrange(2, 40)
    prompts = [[5, 6, 7], [8, 9]]
    for row, prompt in enumerate(prompts):
        assert np.array_equal(draft.extend(row, 0, prompt)[0], logits_after(prompt, 50))
    assert np.array_equal(draft.extend(0, 3, [1, 2], keep=2)[1], logits_after([5, 6, 7, 1, 2], 50))
    assert draft.tokens == 96
    with pytest.raises(ValueError, match="3 rows of 3 blocks are more than the 6 there are"):
        draft.arrange(3, 40)


@pytest.mark.parametrize("rows", [1, 2, 6, 45])
@pytest.mark.parametrize("context", [100, 200, 1000, 1024])
def test_a_draft_models_memory_has_whole_blocks_for_every_row(rows: int, context: int) -> None:
    facts = LlmFacts(
        architecture="", precision="", context_length=context, vocabulary=50, eos_token_ids=(), head_size=1,
        weight_bytes=1, flops_per_token=1, kv_bytes_per_token=1,
    )  # fmt: skip
    tokens = LlmLimits(speculation_rows=rows).draft_tokens(facts, block=32)
    draft = DraftBlocks(ClosedFormBlocks(1 + tokens // 32, 32))
    capacity = draft.tokens // (rows + 1)
    assert capacity >= context
    draft.arrange(rows, capacity)


def test_a_cache_larger_than_the_memory_is_refused_by_its_parameter(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def full(*_: object) -> object:
        raise MemoryError

    monkeypatch.setattr(loading, "_load_onnx", full)
    facts = SimpleNamespace(kv_bytes_per_token=2048)
    with pytest.raises(ValueError, match=r"^parameter kv_tokens: 1000000000 with .* is not allowed; .* it must be fewer$"):
        loading.load_model(tmp_path, facts, LlmLimits(kv_tokens=10**9), None)  # type: ignore[arg-type]
