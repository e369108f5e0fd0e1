"""Log probabilities in the forms of /v1/completions and of vLLM, and the bytes of tokens that are no text by themselves."""

from __future__ import annotations

import codecs
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Entry = Mapping[str, Any]
"""A token as `llm` tells it."""
NO_LOGPROBS = "logprob_token_ids: it is not allowed where no log probabilities are asked for"


@dataclass(slots=True)
class Offsets:
    """Where tokens begin in a choice's text, in characters; `at` is where the next one does."""

    at: int
    _decoder: codecs.IncrementalDecoder = field(default_factory=lambda: codecs.getincrementaldecoder("utf-8")("replace"))

    def next(self, token: bytes) -> int:
        """This token's; one that goes on with a character begins where that does."""
        here = self.at
        self.at += len(self._decoder.decode(token))
        return here


def token_bytes(item: Entry) -> bytes:
    """As `llm` tells a token: with its bytes where its text does not say them."""
    return bytes(item["bytes"]) if "bytes" in item else str(item["token"]).encode()


def completion_logprobs(
    found: Sequence[Entry] | None, offsets: Offsets, prompt: Sequence[Entry] = (), top: int = 0
) -> dict[str, Any] | None:
    """OpenAI's form of completions; `offsets` goes on from chunk to chunk of one choice.

    `prompt` are the tokens of a prompt that is given back before the answer, with `top` of the likeliest at each place. The first
    has none, for nothing stands before it.
    """
    if found is None:
        return None
    entries = [*prompt, *found]
    tops: list[dict[str, float] | None] = [
        None if item["logprob"] is None else _top(item, item["top"][:top] if place < len(prompt) else item["top"])
        for place, item in enumerate(entries)
    ]
    return {
        "tokens": [_shown(item) for item in entries],
        "token_logprobs": [item["logprob"] for item in entries],
        "top_logprobs": tops,
        "text_offset": [*(item["text_offset"] for item in prompt), *(offsets.next(token_bytes(item)) for item in found)],
    }


def prompt_logprobs(prompt: Sequence[Entry], top: int) -> list[dict[str, Any] | None]:
    """vLLM's form: for each token of the prompt those that are told at its place, by id; null for the first."""
    told: list[dict[str, Any] | None] = []
    for item in prompt:
        if item["logprob"] is None:
            told.append(None)
            continue
        likeliest = {str(other["token_id"]): _ranked(other, rank) for rank, other in enumerate(item["top"][:top], 1)}
        told.append({str(item["token_id"]): _ranked(item, item["rank"]), **likeliest})
    return told


def _ranked(item: Entry, rank: int) -> dict[str, Any]:
    return {"logprob": item["logprob"], "rank": rank, "decoded_token": item["token"]}


def _top(item: Entry, likeliest: Sequence[Entry]) -> dict[str, float]:
    """The likeliest tokens, the likeliest first, and the token itself, which may be one more."""
    made: dict[str, float] = {}
    for other in (*likeliest, item):
        made.setdefault(_shown(other), other["logprob"])
    return made


def by_ids(found: Sequence[Entry]) -> list[dict[str, Any]]:
    """The same tokens with vLLM's names of their ids, which differ also where texts do not."""
    return [{**item, "name": f"token_id:{item['token_id']}", "top": by_ids(item.get("top", ()))} for item in found]


def _shown(item: Entry) -> str:
    """A token's text, or its bytes as OpenAI writes them: two parts of characters are not to become one name."""
    if "name" in item:
        return str(item["name"])
    if "bytes" not in item:
        return str(item["token"])
    return "bytes:" + "".join(f"\\x{byte:02x}" for byte in item["bytes"])
