"""Tokens to text as they come: whole characters only, and stop strings found across token borders."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream


@dataclass(slots=True, eq=False)
class TextStream:
    """One sequence's text. `push` gives what may be shown: never half a character, never a part of a stop string."""

    tokenizer: Tokenizer
    stops: tuple[str, ...] = ()
    include_stop: bool = False
    skip_special_tokens: bool = True
    text: str = ""
    stopped_by: str | None = None
    _shown: int = 0
    _ids: list[int] = field(default_factory=list)
    _stream: DecodeStream = field(init=False)

    def __post_init__(self) -> None:
        self._stream = DecodeStream(skip_special_tokens=self.skip_special_tokens)

    def push(self, tokens: Sequence[int]) -> str:
        """Take tokens: one at a time where there are stop strings, for all text that comes with a stop string is cut.

        `stopped_by` is set once a stop string is complete, and `text` ends there.
        """
        self._ids.extend(tokens)
        try:
            piece = self._stream.step(self.tokenizer, list(tokens))
        except Exception:  # some decoders change, by what follows, text that they have given before
            self._stream = DecodeStream(skip_special_tokens=self.skip_special_tokens)
            piece = self._stream.step(self.tokenizer, list(tokens))
        if not piece:
            return ""
        before = len(self.text)
        self.text += piece
        if self.stops and self._cut(before):
            return self._show(len(self.text))
        return self._show(len(self.text) - self._held_back())

    def finish(self, unread: Sequence[int] = ()) -> str:
        """The rest, the `unread` last tokens with it: what was held back, and bytes that never became a character as U+FFFD."""
        if not (self._ids or self.stops):
            self._ids.extend(unread)  # a whole answer is decoded at once
            unread = ()
        shown = self.push(unread) if unread else ""
        if self.stopped_by is None:
            whole = self.tokenizer.decode(self._ids, skip_special_tokens=self.skip_special_tokens)
            if whole.startswith(self.text):
                self.text = whole
        return shown + self._show(len(self.text))

    def _cut(self, before: int) -> bool:
        """Look for the earliest stop string that ends in the new piece."""
        longest = max(map(len, self.stops))
        start = max(0, before - longest + 1)
        found = [(at, stop) for stop in self.stops if (at := self.text.find(stop, start)) >= 0]
        if not found:
            return False
        at, self.stopped_by = min(found)
        self.text = self.text[: at + (len(self.stopped_by) if self.include_stop else 0)]
        return True

    def _held_back(self) -> int:
        """Length of the longest end of the text that could be the beginning of a stop string."""
        most = max((len(stop) - 1 for stop in self.stops), default=0)
        for length in range(min(most, len(self.text)), 0, -1):
            tail = self.text[-length:]
            if any(stop.startswith(tail) for stop in self.stops):
                return length
        return 0

    def _show(self, end: int) -> str:
        shown, self._shown = self.text[self._shown : end], max(self._shown, end)
        return shown
