"""Prefix cache, text of tokens, drafts, structured answers: each alone."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random

import numpy as np
import pytest
from test_requests import FACTS, WORDS
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from nereid.llm import prefix_cache
from nereid.llm.loading import check_widths
from nereid.llm.prefix_cache import BLOCK, PrefixCache
from nereid.llm.sampling import Row, Sampling
from nereid.llm.speculation import DraftModel, DraftProposer, PromptLookup, SpeculationMeter
from nereid.llm.structure import StructureFactory
from nereid.llm.text import TextStream, TokenTexts

from closed_form import ClosedFormEngine, logits_after


def values(start: int, end: int) -> np.ndarray:
    return np.arange(start, end, dtype=np.float32).reshape(1, 1, -1, 1)


def test_cache_finds_the_longest_known_prefix_but_leaves_one_token() -> None:
    cache = PrefixCache(10_000)
    tokens = list(range(3 * BLOCK))
    cache.insert(tokens, values)
    assert len(cache.match([*tokens, 7])) == 3
    assert len(cache.match(tokens)) == 2
    assert len(cache.match([*tokens[: 2 * BLOCK], *[9] * BLOCK, 1])) == 2
    assert len(cache.match([5, *tokens])) == 0
    assert cache.hit_tokens == (3 + 2 + 2) * BLOCK


def test_cache_drops_what_was_used_longest_ago_and_stays_within_its_budget() -> None:
    size = values(0, BLOCK).nbytes
    cache = PrefixCache(3 * size)
    sequences = [[n] * (BLOCK + 1) for n in range(4)]
    for tokens in sequences[:3]:
        cache.insert(tokens, values)
    assert cache.match(sequences[0])
    cache.insert(sequences[3], values)
    assert cache.used == 3 * size
    assert [bool(cache.match(tokens)) for tokens in sequences] == [True, False, True, True]


def test_cache_survives_a_hash_collision(monkeypatch: pytest.MonkeyPatch) -> None:
    class Constant:
        def digest(self) -> bytes:
            return b"same"

    monkeypatch.setattr(prefix_cache.hashlib, "sha256", lambda data: Constant())
    cache = PrefixCache(10_000)
    cache.insert([1] * BLOCK, values)
    assert cache.match([2] * (BLOCK + 1)) == []


def byte_level() -> Tokenizer:
    """One token a byte, and <eos>."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE({letter: i for i, letter in enumerate(alphabet)}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(["<eos>"])
    return made


BYTES = byte_level()


@pytest.mark.parametrize("together", [1, 2, 3, 50])
def test_text_never_shows_half_a_character(together: int) -> None:
    text = "naïve 🦊 fox, 中文, e\u0301 and 👩‍👩‍👧 end"
    stream = TextStream(BYTES)
    ids = BYTES.encode(text).ids
    pieces = [stream.push(ids[start : start + together]) for start in range(0, len(ids), together)]
    assert all("\ufffd" not in piece for piece in pieces)
    assert "".join(pieces) + stream.finish() == text


def fallback() -> Tokenizer:
    """Words, and bytes as SentencePiece writes them."""
    words = {"▁": 0, "a": 1} | {f"<0x{byte:02X}>": 2 + byte for byte in range(256)}
    tokenizer = Tokenizer(models.BPE(words, [], byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return tokenizer


@pytest.mark.parametrize("tokenizer", [BYTES, fallback()], ids=["byte-level", "byte fallback"])
def test_a_tokens_bytes_are_its_own_where_it_is_a_part_of_a_character(tokenizer: Tokenizer) -> None:
    texts, fox = TokenTexts(tokenizer), "a🦊é"
    shown = [(token, texts.of(token)) for token in tokenizer.encode(fox).ids]
    assert b"".join(texts.bytes_of(token, text) for token, text in shown).decode().strip() == fox
    assert [text for _, text in shown].count("\ufffd") == 6  # four bytes and two


def test_bytes_that_never_become_a_character_are_shown_at_the_end() -> None:
    stream = TextStream(BYTES)
    shown = "".join(stream.push([token]) for token in BYTES.encode("ab🦊").ids[:-1]) + stream.finish()
    assert shown.startswith("ab")
    assert "\ufffd" in shown


def test_a_decoder_that_loses_its_way_begins_anew() -> None:
    class Lost:
        def step(self, *_: object) -> str:
            raise ValueError("Invalid prefix encountered while decoding stream")

    stream = TextStream(BYTES)
    first = stream.push(BYTES.encode("one ").ids)
    stream._stream = Lost()  # type: ignore[assignment]
    assert first + stream.push(BYTES.encode("two").ids) + stream.finish() == "one two"


@pytest.mark.parametrize("pushed", [0, 3, 10])
def test_the_last_tokens_may_come_with_the_end(pushed: int) -> None:
    stream, ids = TextStream(BYTES), BYTES.encode("naïve 🦊 fox").ids
    shown = "".join(stream.push([token]) for token in ids[:pushed])
    assert shown + stream.finish(ids[pushed:]) == stream.text == "naïve 🦊 fox"


@pytest.mark.parametrize(("include", "expected"), [(False, "one two "), (True, "one two three")])
def test_stop_strings_are_found_across_tokens_and_never_shown_in_part(include: bool, expected: str) -> None:
    stream = TextStream(BYTES, ("three", "thrall"), include)
    shown = ""
    for token in BYTES.encode("one two three four").ids:
        shown += stream.push([token])
        assert expected.startswith(shown)
        if stream.stopped_by:
            break
    assert stream.stopped_by == "three"
    assert shown + stream.finish() == stream.text == expected


def test_a_beginning_that_is_no_stop_string_is_shown_after_all() -> None:
    stream = TextStream(BYTES, ("three",))
    shown = "".join(stream.push([token]) for token in BYTES.encode("thrift th").ids)
    assert shown == "thrift "
    assert shown + stream.finish() == "thrift th"


ROW = Row(Sampling(temperature=0), 0)


def test_lookup_proposes_what_followed_the_last_occurrence() -> None:
    lookup = PromptLookup()
    lookup.extend([1, 2, 3, 4, 5, 9, 1, 2, 3])
    assert lookup.propose(4, ROW) == [4, 5, 9, 1]
    lookup.extend([4, 6, 1, 2, 3])
    assert lookup.propose(2, ROW) == [4, 6]
    lookup.extend([40])
    assert lookup.propose(2, ROW) == []


def greedy_after(tokens: list[int], count: int) -> list[int]:
    made = list(tokens)
    for _ in range(count):
        made.append(int(logits_after(made, 50).argmax()))
    return made[len(tokens) :]


def test_a_draft_model_proposes_what_it_would_write() -> None:
    """Over wrong drafts, over a prompt longer than a chunk, and over the loss of its row to another sequence."""
    model = DraftModel(ClosedFormEngine(3 * 256), rows=2, capacity=256, vocabulary=50, chunk=16)
    one, two, three = (DraftProposer(model) for _ in range(3))
    one.extend(list(range(40)))
    assert [one.propose(4, ROW) for _ in range(3)] == [[], [], greedy_after(one.tokens, 4)]
    right = greedy_after(one.tokens, 4)
    one.extend([*right[:2], (right[2] + 1) % 50])
    for proposer, start in ((two, 3), (three, 7)):
        proposer.extend([start, start + 1])
        assert proposer.propose(5, ROW) == greedy_after(proposer.tokens, 5)
    assert [one.propose(3, ROW) for _ in range(3)] == [[], [], greedy_after(one.tokens, 3)]
    model.engine.calls.clear()  # type: ignore[attr-defined]
    one.extend(greedy_after(one.tokens, 3))
    one.propose(1, ROW)
    assert model.engine.calls == [("extend", 1)]  # type: ignore[attr-defined]


def test_a_draft_model_forgets_its_rejected_tokens() -> None:
    proposer = DraftProposer(DraftModel(ClosedFormEngine(2 * 256), rows=1, capacity=256, vocabulary=50, chunk=16))
    proposer.extend([3, 4])
    draft = proposer.propose(5, ROW)
    proposer.extend([*draft[:2], (draft[2] + 1) % 50])
    assert proposer.propose(5, ROW) == greedy_after(proposer.tokens, 5)


def test_a_draft_model_never_proposes_past_its_kv_cache_or_the_vocabulary() -> None:
    model = DraftModel(ClosedFormEngine(2 * 32), rows=1, capacity=32, vocabulary=20, chunk=64)
    proposer = DraftProposer(model)
    proposer.extend(list(range(20)))
    draft = proposer.propose(50, ROW)
    assert len(draft) == 10
    assert max(draft) < 20
    proposer.extend([*draft, 1, 1])
    assert proposer.propose(1, ROW) == []


def test_a_draft_model_of_another_width_proposes_what_both_models_know() -> None:
    for width, known in ((30, 30), (70, 50)):
        engine = ClosedFormEngine(2 * 256, width)
        proposer = DraftProposer(DraftModel(engine, rows=1, capacity=256, vocabulary=50, chunk=64))
        proposer.extend([3, 4])
        high = Row(Sampling(temperature=0, logit_bias={known: 100.0, known - 1: 50.0, 49: 40.0}), 0, banned=(48,))
        assert proposer.propose(3, high) == [known - 1] * 3
        proposer.extend([known - 1, 49])
        assert bool(proposer.propose(3, high)) == (width > 49)


@pytest.mark.parametrize(
    ("engine", "draft", "words"),
    [
        (50, 50, None),
        (50, 64, None),
        (50, None, None),
        (48, None, "the engine has logits for 48 tokens, and the model has 50"),
        (50, 49, "the draft model has logits for 49 tokens, and the tokenizer has 50"),
    ],
)
def test_logits_that_are_not_for_the_models_tokens_are_refused_at_load(engine: int, draft: int | None, words: str | None) -> None:
    engines = engine, None if draft is None else ClosedFormEngine(256, draft)
    if words is None:
        check_widths(FACTS, WORDS, *engines)
    else:
        with pytest.raises(ValueError, match=words):
            check_widths(FACTS, WORDS, *engines)


def test_speculating_pauses_where_it_is_slower() -> None:
    meter = SpeculationMeter(4, pause=2)
    for _ in range(4):
        assert meter.allowed() == 0
        meter.plain(0.010)
    assert meter.allowed() == 4
    for pause in (2, 4):
        meter.checked(1, 0.030)
        for _ in range(pause):
            assert meter.allowed() == 0
            meter.plain(0.010)
    for _ in range(3):
        assert meter.allowed() == 4
        meter.checked(5, 0.012)


@pytest.fixture(scope="module")
def structures(tmp_path_factory: pytest.TempPathFactory) -> StructureFactory:
    file: Path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    BYTES.save(str(file))
    return StructureFactory.of(file, BYTES.get_vocab_size(), (BYTES.token_to_id("<eos>"),))


SCHEMA = {
    "type": "object",
    "properties": {"name": {"enum": ["a", "bc"]}, "n": {"type": "integer", "minimum": 1, "maximum": 12}},
    "required": ["name", "n"],
    "additionalProperties": False,
}


def test_random_answers_to_a_schema_are_valid(structures: StructureFactory) -> None:
    rng, eos = Random(0), BYTES.token_to_id("<eos>")
    for _ in range(20):
        structure, written = structures.compile("json", SCHEMA), []
        for _ in range(300):
            token = rng.choice(np.flatnonzero(structure.allowed()).tolist())
            if token == eos:
                break
            written.append(token)
            if structure.take(token):
                break
        made = json.loads(BYTES.decode(written))
        assert made["name"] in ("a", "bc")
        assert 1 <= made["n"] <= 12


def test_choices_and_expressions_end_by_themselves(structures: StructureFactory) -> None:
    for kind, value, allowed in (("choice", ["red", 'a "b"'], {"red", 'a "b"'}), ("regex", "x[ab]y", {"xay", "xby"})):
        structure, written = structures.compile(kind, value), []
        while True:
            token = int(np.flatnonzero(structure.allowed())[-1])
            if token == BYTES.token_to_id("<eos>"):
                break
            written.append(token)
            if structure.take(token):
                break
        assert BYTES.decode(written) in allowed


@pytest.mark.parametrize(
    ("grammar", "first"), [('root ::= "yes" | "no"', {"y", "n"}), ('root ::= a b\na ::= "y"\nb ::= "es" | [o]', {"y"})]
)
def test_a_grammar_may_be_gbnf(structures: StructureFactory, grammar: str, first: set[str]) -> None:
    structure = structures.compile("grammar", grammar)
    assert {BYTES.decode([int(token)]) for token in np.flatnonzero(structure.allowed())} == first


@pytest.mark.parametrize("grammar", ['root ::= "a', "root ::= " + "(" * 5000 + '"a"' + ")" * 5000, "root ::= nobody", "::="])
def test_a_gbnf_grammar_that_is_none_is_a_value_error(structures: StructureFactory, grammar: str) -> None:
    with pytest.raises(ValueError, match=r"\S"):
        structures.compile("grammar", grammar)


@pytest.mark.parametrize(("kind", "value"), [("json", {"type": "nonsense"}), ("regex", "[a"), ("grammar", "start: nobody")])
def test_a_bad_grammar_is_a_value_error(structures: StructureFactory, kind: str, value: object) -> None:
    with pytest.raises(ValueError, match=r"\w+"):
        structures.compile(kind, value)
