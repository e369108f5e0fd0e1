"""Marks around an answer's text that are no text, taken out of it as it comes; knows no calls."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from nereid.serving.gateway.said import held_back


def without_begun(text: str, marks: Sequence[str]) -> str:
    """An answer's text that ends, without a mark that it has cut: one of which at least the first token has come."""
    begun = text[len(text) - held_back(text, *marks) :]
    return text.removesuffix(begun) if ">" in begun else text


@dataclass(slots=True, eq=False)
class Silence:
    """Text without marks, wherever they stand."""

    marks: tuple[str, ...]
    _text: str = ""

    def feed(self, text: str) -> str:
        self._text += text
        told = ""
        while found := [(at, mark) for mark in self.marks if (at := self._text.find(mark)) >= 0]:
            at, mark = min(found)
            told, self._text = told + self._text[:at], self._text[at + len(mark) :]
        sure = len(self._text) - held_back(self._text, *self.marks)
        told, self._text = told + self._text[:sure], self._text[sure:]
        return told

    def finish(self) -> str:
        rest, self._text = self._text, ""
        return without_begun(rest, self.marks)
