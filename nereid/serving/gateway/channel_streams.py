"""Answers that are written in channels, taken apart as they come: thoughts, text, calls of tools; knows no HTTP and no schema.

The form is gpt-oss's (OpenAI, "Harmony response format", https://github.com/openai/harmony/blob/main/docs/format.md): messages,
each a header, a mark, and what it says up to its end. The header names the channel, and the function that the message is to.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto

from nereid.serving.gateway.call_objects import NAME
from nereid.serving.gateway.marked_scanners import JsonObject
from nereid.serving.gateway.said import Arguments, Call, Reasoning, Said, Text, held_back

START, CHANNEL, CONSTRAIN, MESSAGE, END = "<|start|>", "<|channel|>", "<|constrain|>", "<|message|>", "<|end|>"
_ENDS = (END, "<|return|>", "<|call|>", START, CHANNEL)
"""What ends a message; a model may leave out the end, and begin the next header."""
_HEADER_BEGINS = (START, CHANNEL, CONSTRAIN, MESSAGE, "to=", "assistant", "analysis", "commentary", "final")
"""What a header may begin with, also where a model leaves out its marks."""
_LONGEST_HEADER = 300
_MARK = re.compile(r"<\|\w+\|>")
_RECIPIENT = re.compile(r"\bto=\s*([^\s<{]+)")
_CHANNEL_NAME = re.compile("analysis|commentary|final")
_NO_FUNCTIONS = ("assistant", "user", "system", "developer", "all")
_NAMESPACE = "functions."
_BETWEEN = "\n\n"
"""Between messages of one kind."""


class _Kind(Enum):
    THOUGHT = auto()
    TEXT = auto()
    CALL = auto()


@dataclass(slots=True, eq=False, kw_only=True)
class ChannelStream:
    """One answer. `before` is what the prompt has of its first message: the header's beginning, or a message that goes on.

    `names`: the functions that may be called; None: there are no calls, and a message to a function is text. `thinks`: thoughts
    are told as such, else as text. `marks`: the tokens of `<|message|>` and `<|end|>`, by which thoughts are counted.
    """

    before: str = ""
    names: Collection[str] | None = None
    several: bool = True
    new_id: Callable[[str, int], str] = "{}{}".format
    thinks: bool = True
    marks: tuple[int, int] | None = None
    told: int = 0
    """How many calls have been told."""
    _prefix: str = ""
    """What the prompt has of the first header."""
    _text: str = ""
    _kind: _Kind | None = None
    """Of the message that is being read; None: a header is."""
    _fresh: bool = True
    """Whether nothing of this message has been told."""
    _said: set[_Kind] = field(default_factory=set)
    _calls: int = 0
    _arguments: JsonObject | None = None
    _kinds: list[_Kind] = field(default_factory=list)
    """Of all messages so far that have a mark."""
    _counts: list[int] = field(default_factory=list)
    """Their tokens."""
    _counting: bool = False

    def __post_init__(self) -> None:
        header, opened, _ = self.before.partition(MESSAGE)
        if opened:
            self._kind = self._kind_of(header)
            self._kinds, self._counts, self._counting = [self._kind], [0], True
        else:
            self._prefix = header

    @property
    def reasoning_tokens(self) -> int:
        pairs = zip(self._counts, self._kinds, strict=False)  # tokens may be ahead of their text
        return sum(count for count, kind in pairs if kind is _Kind.THOUGHT)

    def count(self, tokens: Sequence[int]) -> None:
        """Take the tokens of the text that is fed next."""
        if self.marks is None:
            return
        message, end = self.marks
        for token in tokens:
            if token == message:
                self._counts.append(0)
                self._counting = True
            elif token == end:
                self._counting = False
            elif self._counting:
                self._counts[-1] += 1

    def feed(self, text: str) -> list[Said]:
        self._text += text
        made: list[Said] = []
        before: tuple[_Kind | None, str] | None = None
        while self._text and before != (before := (self._kind, self._text)):
            made += self._header() if self._kind is None else self._message(self._kind)
        return made

    def finish(self) -> list[Said]:
        """A header that was cut says nothing; what was none is text."""
        rest, self._text = self._text, ""
        if self._kind is None:
            is_header = _MARK.search(rest) or _RECIPIENT.search(rest) or not rest.strip()
            return [] if is_header else self._tell(rest, _Kind.TEXT)
        return [*self._tell(rest if self._arguments is None else "", self._kind), *self._close(self._kind)]

    # --- headers ---

    def _header(self) -> list[Said]:
        lead = self._text.lstrip()
        begins = any(lead.startswith(item) or item.startswith(lead) for item in _HEADER_BEGINS)
        header, found, rest = lead.partition(MESSAGE)
        if not begins or len(header) > _LONGEST_HEADER:
            self._kind, self._fresh, self._arguments = _Kind.TEXT, True, None
            self._text = _MARK.sub("", lead) if begins else self._text
            return []
        at = header.find("{")
        if at >= 0 and _recipient(header[:at]):  # the mark before the arguments was left out
            return self._open(header[:at], lead[at:])
        if not found:
            return []
        if _recipient(header) and (channel := _CHANNEL_NAME.search(header)) and channel[0] == "analysis":
            body = rest.lstrip()  # thoughts that name a function are no call of it
            if any(end.startswith(body) and end != body for end in _ENDS):
                return []
            header = header if body.startswith(("{", *_ENDS)) else _RECIPIENT.sub("", header)
        made = self._open(header, rest)
        self._kinds += [self._kind] if self._kind else []
        return made

    def _open(self, header: str, rest: str) -> list[Said]:
        header, self._prefix = f"{self._prefix} {header}".rpartition(START)[2], ""  # what was begun amiss before is none
        self._kind, self._text, self._fresh, self._arguments = self._kind_of(header), rest, True, None
        if self._kind is not _Kind.CALL:
            return []
        self._calls += 1
        if not self._tells_call:
            return []
        self.told += 1
        name = self._name(_recipient(header))
        return [Call(self._calls - 1, self.new_id(name, self._calls - 1), name)]

    def _kind_of(self, header: str) -> _Kind:
        if self.names is not None and _recipient(header):
            return _Kind.CALL
        channel = _CHANNEL_NAME.search(_RECIPIENT.sub("", header))
        return _Kind.THOUGHT if self.thinks and channel and channel[0] == "analysis" else _Kind.TEXT

    def _name(self, recipient: str) -> str:
        """The function's; models may leave out the namespace, or glue the type of what follows to the name."""
        short = recipient.removeprefix(_NAMESPACE)
        known = self.names or ()
        for name in (short, recipient, short.removesuffix("json"), short.partition(":")[0]):
            if name in known:
                return name
        found = NAME.match(short)
        return found[0] if found else short[:64]

    # --- messages ---

    @property
    def _tells_call(self) -> bool:
        return self.several or self._calls == 1

    def _message(self, kind: _Kind) -> list[Said]:
        if kind is _Kind.CALL and self._arguments is None and self._fresh:
            self._text = self._text.lstrip()
            self._arguments = JsonObject() if self._text.startswith("{") else None
        if self._arguments is not None and not self._arguments.ended:
            piece, self._text = self._arguments.feed(self._text)
            return self._tell(piece, kind)
        found = [(at, end) for end in _ENDS if (at := self._text.find(end)) >= 0]
        at, end = min(found) if found else (len(self._text) - held_back(self._text, *_ENDS), "")
        piece, self._text = self._text[:at], self._text[at:]
        made = self._tell(piece if self._arguments is None else "", kind)
        if found:
            made += self._close(kind)
            self._kind, self._text = None, self._text if end in (START, CHANNEL) else self._text.removeprefix(end)
        return made

    def _tell(self, piece: str, kind: _Kind) -> list[Said]:
        if not piece:
            return []
        between = _BETWEEN if self._fresh and kind in self._said else ""
        self._fresh = False
        self._said.add(kind)
        match kind:
            case _Kind.CALL:
                return [Arguments(self._calls - 1, piece)] if self._tells_call else []
            case _Kind.THOUGHT:
                return [Reasoning(between + piece)]
            case _Kind.TEXT:
                return [Text(between + piece)]

    def _close(self, kind: _Kind) -> list[Said]:
        """A call without arguments has none."""
        return self._tell("{}", kind) if kind is _Kind.CALL and self._fresh else []


def _recipient(header: str) -> str:
    """The function that a message is to; empty: it is to none."""
    found = _RECIPIENT.search(header)
    return found[1] if found and found[1] not in _NO_FUNCTIONS else ""
