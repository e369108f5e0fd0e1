"""Pictures of a page: what they are asked for with, in the language of the checkpoint that draws them, and their files."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from string import Formatter
from typing import Any

import numpy as np
from PIL import Image

PLAIN = "{alt}, {topic}"
_OWN = ("alt", "topic")


@dataclass(frozen=True, slots=True)
class PictureLanguage:
    """Prompts of one checkpoint: a text with `{alt}` (what the slot shows), `{topic}` (of the page) and `{name}`s of word lists.

    Of each list one word is taken, always the same for the same page and picture; lists in `by_topic` give all pictures of a page
    the same word. So a painter that knows few words is asked in those.
    """

    template: str = PLAIN
    words: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    by_topic: frozenset[str] = frozenset()

    @classmethod
    def read(cls, raw: object) -> PictureLanguage:
        """Of JSON: {"template": "...", "words": {"color": [...]}, "by_topic": ["color"]}; raises ValueError."""
        if not isinstance(raw, dict) or not set(raw) <= {"template", "words", "by_topic"}:
            raise ValueError("it must be an object of template, words and by_topic")
        template, words, by_topic = raw.get("template", PLAIN), raw.get("words", {}), raw.get("by_topic", [])
        if not isinstance(words, dict) or not all(_is_words(item) for item in words.values()):
            raise ValueError("words: it must be an object of lists of texts, none empty")
        if not isinstance(by_topic, list) or not all(isinstance(name, str) and name in words for name in by_topic):
            raise ValueError("by_topic: it must be a list of names in words")
        if not isinstance(template, str) or not template.strip() or not _names(template) <= {*words, *_OWN}:
            raise ValueError(f"template: it must be a text, not empty, whose names are of {', '.join((*_OWN, *words))}")
        return cls(template, {name: tuple(item) for name, item in words.items()}, frozenset(by_topic))

    def as_json(self) -> dict[str, Any]:
        words = {name: list(item) for name, item in self.words.items()}
        return {"template": self.template, "words": words, "by_topic": sorted(self.by_topic)}

    def prompt(self, alt: str, topic: str, number: int) -> str:
        """For picture `number` of a page."""
        chosen = {}
        for name, words in self.words.items():
            key = f"{name}/{topic}" if name in self.by_topic else f"{name}/{topic}/{alt}/{number}"
            chosen[name] = words[int.from_bytes(hashlib.sha256(key.encode()).digest()[:8]) % len(words)]
        return self.template.format(alt=alt or topic, topic=topic, **chosen)


def _is_words(item: object) -> bool:
    return isinstance(item, list) and bool(item) and all(isinstance(word, str) and word for word in item)


def _names(template: str) -> set[str]:
    """Names that a template asks for; one that is no plain name, like `{alt.x}`, is not among any list's."""
    return {name for _, name, form, conversion in Formatter().parse(template) if name is not None} | {
        "a format" for _, name, form, conversion in Formatter().parse(template) if name is not None and (form or conversion)
    }


def png(pixels: np.ndarray) -> bytes:
    """A picture, uint8 height x width x 3, as a file."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()
