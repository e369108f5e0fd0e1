"""Marks around an answer's text that are no text, taken out of it as it comes; knows no calls."""

from __future__ import annotations

from dataclasses import dataclass

from nereid.serving.gateway.said import held_back


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
        """What was held back, unless it is a mark that was cut: one of which at least the first token has come."""
        rest, self._text = self._text, ""
        return "" if ">" in rest else rest
