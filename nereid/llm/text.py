"""Tokens to text as they come: whole characters only, and stop strings found across token borders."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

_REPLACEMENT = "\ufffd"
_CONTEXT = (6, 24)
"""Tokens of context that are tried before all are."""

_BYTE_TOKEN = re.compile("<0x([0-9A-Fa-f]{2})>")
"""How vocabularies with byte fallback (SentencePiece's) write the token of one byte."""


def _byte_alphabet() -> dict[str, int]:
    """How byte-level vocabularies (GPT-2's) write bytes: those that print as themselves, the others from U+0100 on."""
    printing = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(0x100) if byte not in printing]
    return {chr(byte): byte for byte in printing} | {chr(0x100 + place): byte for place, byte in enumerate(others)}


_BYTES = _byte_alphabet()


@dataclass(slots=True, eq=False)
class TokenTexts:
    """The text of single tokens, as it stands in the middle of a text: with its space."""

    tokenizer: Tokenizer
    _before: list[int] = field(init=False)
    _length: int = field(init=False)

    def __post_init__(self) -> None:
        self._before = self.tokenizer.encode("a", add_special_tokens=False).ids[-1:]
        self._length = len(self.tokenizer.decode(self._before, skip_special_tokens=False))

    def of(self, token: int) -> str:
        """Bytes that are no character by themselves come as U+FFFD."""
        return self.tokenizer.decode([*self._before, token], skip_special_tokens=False)[self._length :]

    def bytes_of(self, token: int, text: str) -> bytes:
        """What the token, whose text is `text`, adds in UTF-8, also where that is a part of a character."""
        if _REPLACEMENT not in text:
            return text.encode()
        piece = self.tokenizer.id_to_token(token) or ""
        if found := _BYTE_TOKEN.fullmatch(piece):
            return bytes.fromhex(found[1])
        return bytes(map(_BYTES.__getitem__, piece)) if _BYTES.keys() >= set(piece) else text.encode()


@dataclass(slots=True, eq=False)
class TextStream:
    """One sequence's text. `push` gives what may be shown: never half a character, never a part of a stop string.

    The text is what its tokens add to that of `context`, the tokens before them: some decoders (SentencePiece's) drop the first
    token's space, and here the first token stands in the middle of a text.
    """

    tokenizer: Tokenizer
    stops: tuple[str, ...] = ()
    include_stop: bool = False
    skip_special_tokens: bool = True
    context: Sequence[int] = ()
    text: str = ""
    stopped_by: str | None = None
    _shown: int = 0
    _ids: list[int] = field(default_factory=list)
    _stream: DecodeStream = field(init=False)

    def __post_init__(self) -> None:
        self.context = self._shortened(self.context)
        self._stream = DecodeStream(ids=list(self.context), skip_special_tokens=self.skip_special_tokens)

    def push(self, tokens: Sequence[int], *, may_stop: bool = True) -> str:
        """Take tokens: one at a time where there are stop strings, for all text that comes with a stop string is cut.

        `stopped_by` is set once a stop string is complete, and `text` ends there; one that is completed where it may not stop
        is text like any other.
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
        if self.stops and may_stop and self._cut(before):
            return self._show(len(self.text))
        return self._show(len(self.text) - self._held_back())

    def finish(self, unread: Sequence[int] = ()) -> str:
        """The rest, the `unread` last tokens with it: what was held back, and bytes that never became a character as U+FFFD."""
        if not (self._ids or self.stops):
            self._ids.extend(unread)  # a whole answer is decoded at once
            unread = ()
        shown = self.push(unread) if unread else ""
        if self.stopped_by is None:
            whole = self._added(self._ids)
            if whole.startswith(self.text):
                self.text = whole
        return shown + self._show(len(self.text))

    def _shortened(self, context: Sequence[int]) -> list[int]:
        """As many of the last tokens before as a decoder needs to know that it is not at the beginning of a text."""
        for length in sorted({min(length, len(context)) for length in (*_CONTEXT, len(context))} - {0}):
            tail = list(context[-length:])
            text = self.tokenizer.decode(tail, skip_special_tokens=self.skip_special_tokens)
            if text.endswith(_REPLACEMENT):  # it ends within a character
                return []
            if text:
                return tail
        return []

    def _added(self, tokens: Sequence[int]) -> str:
        """What tokens add to the context's text."""
        whole, before = (
            self.tokenizer.decode([*self.context, *ids], skip_special_tokens=self.skip_special_tokens) for ids in (tokens, ())
        )
        if whole.startswith(before):
            return whole[len(before) :]
        return self.tokenizer.decode(list(tokens), skip_special_tokens=self.skip_special_tokens)

    def _cut(self, before: int) -> bool:
        """Look for the earliest stop string that ends in the new piece."""
        starts = {stop: max(0, before - len(stop) + 1) for stop in self.stops}
        found = [(at, stop) for stop, start in starts.items() if (at := self.text.find(stop, start)) >= 0]
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
