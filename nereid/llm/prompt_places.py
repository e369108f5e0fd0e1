"""Where a prompt's tokens begin in its text, in characters; knows no model."""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import Encoding, Tokenizer
from tokenizers.decoders import DecodeStream


def places_in_text(encoding: Encoding) -> tuple[int, ...]:
    """Of a text that was cut into tokens: each begins where those before it end, whitespace between them included.

    A token that goes on with a character begins where that does; one that the tokenizer has added begins where the next does.
    """
    places, end = [], 0
    for (start, stop), added in zip(encoding.offsets, encoding.special_tokens_mask, strict=True):
        places.append(end if added else min(start, end))
        end = end if added else max(end, stop)
    return tuple(places)


def places_of_ids(ids: Sequence[int], tokenizer: Tokenizer) -> tuple[int, ...]:
    """Of token ids in the text that they are decoded to, special tokens included."""
    places, end = [], 0
    stream = DecodeStream(skip_special_tokens=False)
    for token in ids:
        places.append(end)
        end += len(stream.step(tokenizer, token) or "")
    return tuple(places)
