"""A field of another API that nothing here reads: where it may stand and which of its values change nothing; knows no field."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

CHAT, COMPLETIONS, MESSAGE, RESPONSES, EMBEDDINGS = "chat", "completions", "message", "responses", "embeddings"
PART, TOOL, CALL = "part of a message", "tool", "call of a tool"
IMAGES, EDITS, VARIATIONS = "images", "image edits", "image variations"
TXT2IMG, IMG2IMG, MASKED, SETTINGS = "txt2img", "img2img", "img2img with a mask", "override_settings"

WHO = "Says who asks, or why."
WHERE = "Says where, or how soon, it is to be computed."


@dataclass(frozen=True, slots=True, kw_only=True)
class UnusedField:
    """`values` change nothing; None: no value does. `within` are the bodies that it may stand in."""

    name: str
    within: tuple[str, ...]
    values: tuple[Any, ...] | None
    help: str

    def allows(self, value: Any) -> bool:
        """Whether the value changes nothing; true is not 1 here, as it is not in JSON."""
        if self.values is None:
            return True
        return any(isinstance(value, bool) == isinstance(known, bool) and value == known for known in self.values)

    @property
    def allowed(self) -> str:
        """What may be sent, in words."""
        if self.values is None:
            return "anything"
        return " or ".join([*(_shown(value) for value in self.values), "absent"])


def _shown(value: Any) -> str:
    return value if isinstance(value, str) and value else json.dumps(value)


def rows(within: tuple[str, ...], *fields: tuple[str, tuple[Any, ...] | None, str]) -> tuple[UnusedField, ...]:
    """The same rows of each of these bodies: name, values that change nothing, help."""
    return tuple(UnusedField(name=name, within=within, values=values, help=text) for name, values, text in fields)
