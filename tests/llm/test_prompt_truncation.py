"""A prompt that is longer than wanted is cut to the tokens that are kept, from either side; what is told of it fits."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from nereid.flow.errors import InvalidRequestError
from nereid.llm.prompts import Kept, read_part
from nereid.llm.requests import LlmRequest, parse_llm_request
from nereid.llm.settings import LlmFacts, LlmLimits

FACTS = LlmFacts(
    architecture="LlamaForCausalLM",
    precision="fp32",
    context_length=64,
    vocabulary=52,
    eos_token_ids=(49,),
    head_size=8,
    weight_bytes=1,
    flops_per_token=1,
    kv_bytes_per_token=1,
    embedding_width=8,
)
LIMITS = LlmLimits(max_input_bytes=2_000_000)
SECTIONS = Path(__file__).parents[2] / "zoo" / "sections" / "checkpoint" / "tokenizer.json"
LONG = " ".join(f"w{place % 40}" for place in range(500))


def words(added: str = "[B] $A [E]") -> Tokenizer:
    """A word is a token; the tokenizer adds one before and one behind."""
    made = Tokenizer(models.WordLevel({**{f"w{i}": i for i in range(50)}, "[B]": 50, "[E]": 51}, unk_token="w0"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.post_processor = processors.TemplateProcessing(single=added, special_tokens=[("[B]", 50), ("[E]", 51)])
    return made


def parse(sampling: dict[str, Any], prompt: str | list[int] = LONG, **inputs: np.ndarray) -> LlmRequest:
    given: dict[str, np.ndarray] = {"sampling_parameters": np.array([json.dumps(sampling).encode()], np.object_), **inputs}
    if isinstance(prompt, str):
        given["text_input"] = np.array([prompt.encode()], np.object_)
    else:
        given["input_ids"] = np.array(prompt, np.int32)
    return parse_llm_request(given, words(), FACTS, LIMITS, FACTS.context_length)


EMBED = np.array([b"embed"], np.object_)


@pytest.mark.parametrize(
    ("sampling", "inputs", "prompt"),
    [
        ({"truncate_prompt_tokens": 5}, {}, (50, 17, 18, 19, 51)),
        ({"truncate_prompt_tokens": 5, "truncation_side": "left"}, {}, (50, 17, 18, 19, 51)),
        ({"truncate_prompt_tokens": 5, "truncation_side": "right"}, {}, (50, 0, 1, 2, 51)),
        ({"truncate_prompt_tokens": 5, "add_special_tokens": False}, {}, (15, 16, 17, 18, 19)),
        ({"truncate_prompt_tokens": 5}, {"task": EMBED}, (50, 0, 1, 2, 51)),
        ({"truncate_prompt_tokens": 5, "truncation_side": "left"}, {"task": EMBED}, (50, 17, 18, 19, 51)),
    ],
    ids=str,
)
def test_so_many_tokens_are_kept_those_that_are_added_among_them(
    sampling: dict[str, Any], inputs: dict[str, np.ndarray], prompt: tuple[int, ...]
) -> None:
    """The end of what is continued, the beginning of what is embedded, as vLLM has it, unless a side is named."""
    assert parse(sampling, **inputs).prompt == prompt


def test_minus_one_leaves_room_for_the_answer() -> None:
    assert len(parse({"truncate_prompt_tokens": -1, "max_tokens": 20}).prompt) == 44
    assert len(parse({"truncate_prompt_tokens": -1, "max_tokens": None}).prompt) == 63
    assert len(parse({"truncate_prompt_tokens": -1}, max_tokens=np.array([30], np.int32)).prompt) == 34
    assert len(parse({"truncate_prompt_tokens": -1}, task=EMBED).prompt) == 63


@pytest.mark.parametrize("side", ["left", "right", None])
@pytest.mark.parametrize("tokens", [-1, 6, 63])
def test_what_is_not_longer_is_as_it_was(side: str | None, tokens: int) -> None:
    usual = parse({"prompt_logprobs": 1}, "w1  w2 w3 ")
    cut = parse({"prompt_logprobs": 1, "truncate_prompt_tokens": tokens, "truncation_side": side}, "w1  w2 w3 ")
    assert (cut.prompt, cut.prompt_text, cut.prompt_places) == (usual.prompt, usual.prompt_text, usual.prompt_places)
    assert parse({"truncation_side": side}, "w1 w2").prompt == (50, 1, 2, 51)


def test_token_ids_are_cut_as_they_are() -> None:
    ids = list(range(40)) * 3
    assert parse({"truncate_prompt_tokens": 3}, ids).prompt == (37, 38, 39)
    assert parse({"truncate_prompt_tokens": 3, "truncation_side": "right"}, ids).prompt == (0, 1, 2)


@pytest.mark.parametrize("side", ["left", "right"])
def test_text_and_places_are_those_of_what_is_read(side: str) -> None:
    made = parse({"truncate_prompt_tokens": 5, "truncation_side": side, "prompt_logprobs": 0})
    assert made.prompt_text.split() == [f"w{token}" for token in made.prompt[1:-1]]
    assert [made.prompt_text[place:].lstrip().split(" ")[0] for place in made.prompt_places[1:-1]] == made.prompt_text.split()
    assert (made.prompt_places[0], made.prompt_places[-1]) == (0, len(made.prompt_text))


@pytest.mark.parametrize(
    ("sampling", "message"),
    [
        ({"truncate_prompt_tokens": 0}, "truncate_prompt_tokens: 0 is not allowed; it must be -1, or 1 to 63"),
        ({"truncate_prompt_tokens": 64}, "truncate_prompt_tokens: 64 is not allowed; it must be -1, or 1 to 63"),
        ({"truncate_prompt_tokens": 2}, "truncate_prompt_tokens: 2 is not allowed; it must be at least 3: the tokenizer adds 2"),
        ({"truncate_prompt_tokens": -2}, "truncate_prompt_tokens: -2 is not allowed"),
        ({"truncate_prompt_tokens": True}, "truncate_prompt_tokens: True is not allowed"),
        ({"truncation_side": "middle"}, "truncation_side: 'middle' is not allowed; it must be left or right"),
        ({"truncate_prompt_tokens": -1, "max_tokens": 64}, "max_tokens: 64 is not allowed"),
    ],
    ids=str,
)
def test_what_cannot_be_kept_is_refused_by_name(sampling: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidRequestError, match=message):
        parse(sampling)


def test_an_empty_prompt_stays_one() -> None:
    with pytest.raises(InvalidRequestError, match="text_input: '' is not allowed"):
        parse({"truncate_prompt_tokens": 4, "add_special_tokens": False}, "")


class Counted:
    """A tokenizer that counts the characters it is given."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer, self.characters = tokenizer, 0

    def encode(self, given: str, add_special_tokens: bool) -> Any:
        self.characters += len(given)
        return self.tokenizer.encode(given, add_special_tokens=add_special_tokens)


@pytest.mark.parametrize("last", [True, False])
@pytest.mark.parametrize(
    "text",
    [
        '<section class="pricing"><h2>Golden Lane</h2><p>Three tiers, from 9 EUR.</p></section>\n' * 2000,
        "Größe für Häuser, 東京の天気は晴れ。🙂🙃 " * 4000,
        "abc" * 40_000,
        " " * 3000 + "\n\n\n" * 3000 + "x y " * 20_000,
        " subscriptions testimonials integrations conversation" * 2000,
    ],
    ids=["markup", "other scripts", "one word", "white space", "long tokens"],
)
def test_of_a_long_text_as_many_tokens_as_are_kept_are_those_of_the_whole_and_little_is_cut_into_tokens(
    text: str, last: bool
) -> None:
    tokenizer = Tokenizer.from_file(str(SECTIONS))
    facts = replace(FACTS, vocabulary=tokenizer.get_vocab_size())
    whole, counted = tokenizer.encode(text, add_special_tokens=False).ids, Counted(tokenizer)
    asked: Any = counted
    for tokens in (1, 50, 1000):
        made = read_part(text, asked, facts, 2048, Kept(tokens, last), add_special_tokens=False)
        assert made.tokens == tuple(whole[-tokens:] if last else whole[:tokens])
        assert made.text in text
    assert counted.characters < 60_000
