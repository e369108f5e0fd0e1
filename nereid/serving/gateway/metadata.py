"""`metadata`: what a caller writes to an object that is kept for it, within OpenAI's bounds; knows no route."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, WithJsonSchema

MOST_PAIRS, LONGEST_KEY, LONGEST_VALUE = 16, 64, 512
"""OpenAI's bounds, the last two in characters."""


def _bounded(pairs: dict[str, str]) -> dict[str, str]:
    if len(pairs) > MOST_PAIRS:
        raise ValueError(f"must have at most {MOST_PAIRS} pairs, and has {len(pairs)}")
    for key, value in pairs.items():
        if len(key) > LONGEST_KEY:
            raise ValueError(f"must have keys of at most {LONGEST_KEY} characters, and one has {len(key)}: {key[:20]!r}...")
        if len(value) > LONGEST_VALUE:
            raise ValueError(f"must have values of at most {LONGEST_VALUE} characters, and that of {key!r} has {len(value)}")
    return pairs


_SCHEMA = {
    "type": "object",
    "maxProperties": MOST_PAIRS,
    "propertyNames": {"maxLength": LONGEST_KEY},
    "additionalProperties": {"type": "string", "maxLength": LONGEST_VALUE},
}
Metadata = Annotated[dict[str, str], AfterValidator(_bounded), WithJsonSchema(_SCHEMA)]
