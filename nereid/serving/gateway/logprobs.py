"""Log probabilities in the form of /v1/completions, and the bytes of tokens that are no text by themselves."""

from __future__ import annotations

import codecs
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


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


def token_bytes(item: Mapping[str, Any]) -> bytes:
    """As `llm` tells a token: with its bytes where its text does not say them."""
    return bytes(item["bytes"]) if "bytes" in item else str(item["token"]).encode()


def completion_logprobs(found: list[dict[str, Any]] | None, offsets: Offsets) -> dict[str, Any] | None:
    """OpenAI's form of completions; `offsets` goes on from chunk to chunk of one choice."""
    if found is None:
        return None
    return {
        "tokens": [_shown(item) for item in found],
        "token_logprobs": [item["logprob"] for item in found],
        "top_logprobs": [{_shown(other): other["logprob"] for other in item["top"]} for item in found],
        "text_offset": [offsets.next(token_bytes(item)) for item in found],
    }


def _shown(item: Mapping[str, Any]) -> str:
    """A token's text, or its bytes as OpenAI writes them: two parts of characters are not to become one name."""
    if "bytes" not in item:
        return str(item["token"])
    return "bytes:" + "".join(f"\\x{byte:02x}" for byte in item["bytes"])
