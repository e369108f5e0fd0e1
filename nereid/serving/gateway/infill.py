"""Fill in the middle: what stands between a prompt and its suffix, asked for as a model's tokenizer writes it; knows no HTTP.

The forms are those of the models' own cards: a model learns one order of its marks. Bavarian et al., "Efficient Training of
Language Models to Fill in the Middle" (2022), has both orders.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

PREFIX, SUFFIX = "prefix", "suffix"
"""What stands for the texts in a form."""

_FORMS: tuple[tuple[str, ...], ...] = (
    ("<|fim_prefix|>", PREFIX, "<|fim_suffix|>", SUFFIX, "<|fim_middle|>"),  # Qwen2.5-Coder, CodeGemma, Granite 4
    ("<fim_prefix>", PREFIX, "<fim_suffix>", SUFFIX, "<fim_middle>"),  # StarCoder, StarCoder2, Granite Code
    ("<fim-prefix>", PREFIX, "<fim-suffix>", SUFFIX, "<fim-middle>"),  # SantaCoder
    ("<｜fim▁begin｜>", PREFIX, "<｜fim▁hole｜>", SUFFIX, "<｜fim▁end｜>"),  # DeepSeek-Coder
    ("[SUFFIX]", SUFFIX, "[PREFIX]", PREFIX),  # Codestral
)
_ENDS = ("<|endoftext|>", "<|file_sep|>", "<|file_separator|>", "<file_sep>", "<|fim_pad|>", "<fim_pad>", "<fim-pad>")
"""Marks with which such models go on to another file: the text between is complete."""


class InfillTokenizer(Protocol):
    """What of a tokenizer this needs."""

    def id_of(self, token: str) -> int | None: ...

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]: ...

    def leading(self) -> list[int]: ...


@dataclass(frozen=True, slots=True)
class Infill:
    """One model's form: marks as token ids, and `ends`, which are no part of the text between."""

    tokenizer: InfillTokenizer
    form: tuple[int | str, ...]
    ends: tuple[int, ...]

    @classmethod
    def of(cls, tokenizer: InfillTokenizer) -> Infill | None:
        """None where the tokenizer has no form's marks."""
        for form in _FORMS:
            made = tuple(part if part in (PREFIX, SUFFIX) else tokenizer.id_of(part) for part in form)
            if None not in made:
                marks = {part for part in made if isinstance(part, int)}
                ends = marks | {found for end in _ENDS if (found := tokenizer.id_of(end)) is not None}
                return cls(tokenizer, tuple(part for part in made if part is not None), tuple(sorted(ends)))
        return None

    def prompt(self, prefix: str, suffix: str, add_special_tokens: bool) -> list[int]:
        """The marks and both texts, behind what the tokenizer begins a text with."""
        made = self.tokenizer.leading() if add_special_tokens else []
        for part in self.form:
            if isinstance(part, int):
                made.append(part)
            else:
                made += self.tokenizer.encode(prefix if part == PREFIX else suffix, add_special_tokens=False)
        return made
