"""An answer's text taken apart as it comes: thoughts, text, calls of tools; knows no HTTP and no schema of OpenAI's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from nereid.serving.gateway.call_scanners import JsonCalls, Name, Piece, Scanner, State
from nereid.serving.gateway.channel_streams import ChannelStream
from nereid.serving.gateway.marked_scanners import NamedCall, SectionCalls, TagsCall
from nereid.serving.gateway.said import Arguments, Call, Reasoning, Said, Text, held_back
from nereid.serving.gateway.thoughts import Thinking, Thoughts
from nereid.serving.gateway.tool_formats import HARMONY, Shape, ToolFormat


@dataclass(frozen=True, slots=True, kw_only=True)
class CallReading:
    """How calls are found: the form, the functions' parameters by name, and whether more than the first call is told."""

    form: ToolFormat
    schemas: Mapping[str, Mapping[str, Any]]
    several: bool = True


@dataclass(slots=True, eq=False)
class AnswerStream:
    """One answer. `feed` gives what may be told, `finish` the rest. `thinking`, `calls`: None where none are looked for."""

    thinking: Thinking | None = None
    calls: CallReading | None = None
    _channels: ChannelStream | None = field(init=False)
    _thoughts: Thoughts | None = field(init=False)
    _calls: _Calls | None = field(init=False)

    def __post_init__(self) -> None:
        self._channels = _channels(self.thinking, self.calls)
        self._thoughts = None if self.thinking is None or self.thinking.channels else Thoughts(self.thinking)
        self._calls = None if self.calls is None or self.calls.form.shape is Shape.CHANNELS else _Calls(self.calls)

    @property
    def has_called(self) -> bool:
        return any(reader is not None and reader.told > 0 for reader in (self._channels, self._calls))

    @property
    def reasoning_tokens(self) -> int:
        """Of the tokens so far those that are thoughts, their marks left out."""
        if self._channels is not None:
            return self._channels.reasoning_tokens
        return self._thoughts.tokens if self._thoughts is not None and self._thoughts.begun else 0

    def feed(self, text: str, tokens: Sequence[int] = ()) -> list[Said]:
        """`tokens` have come with the text; they are counted, where they are thoughts."""
        made: list[Said] = []
        if self._channels is not None:
            self._channels.count(tokens)
            return _merged(self._within(self._channels.feed(text)))
        if self._thoughts is not None:
            self._thoughts.count(tokens)
            thought, text = self._thoughts.feed(text)
            made += [Reasoning(thought)] if thought else []
        return _merged([*made, *self._after(text)])

    def finish(self) -> list[Said]:
        made: list[Said] = []
        text = ""
        if self._channels is not None:
            made = self._within(self._channels.finish())
        if self._thoughts is not None:
            thought, text = self._thoughts.finish()
            made += [Reasoning(thought)] if thought else []
        made += self._after(text)
        return _merged([*made, *(self._calls.finish() if self._calls is not None else [])])

    def _within(self, said: list[Said]) -> list[Said]:
        """Calls in the text of channels, where they are not written as messages."""
        return [part for item in said for part in (self._after(item.text) if isinstance(item, Text) else [item])]

    def _after(self, text: str) -> list[Said]:
        if not text:
            return []
        return [Text(text)] if self._calls is None else self._calls.feed(text)


def _channels(thinking: Thinking | None, calls: CallReading | None) -> ChannelStream | None:
    """None where an answer is not written in channels."""
    form = calls.form if calls is not None and calls.form.shape is Shape.CHANNELS else None
    if form is None and (thinking is None or not thinking.channels):
        return None
    return ChannelStream(
        before=thinking.before if thinking is not None else "",
        names=calls.schemas if calls is not None and form is not None else None,
        several=calls is None or calls.several,
        new_id=(form or HARMONY).new_id,
        thinks=thinking is not None,
        marks=thinking.tokens if thinking is not None else None,
    )


def _merged(said: list[Said]) -> list[Said]:
    """Neighbouring pieces of one thing as one."""
    made: list[Said] = []
    for item in said:
        last = made[-1] if made else None
        if isinstance(item, Text) and isinstance(last, Text):
            made[-1] = Text(last.text + item.text)
        elif isinstance(item, Reasoning) and isinstance(last, Reasoning):
            made[-1] = Reasoning(last.text + item.text)
        elif isinstance(item, Arguments) and isinstance(last, Arguments) and item.index == last.index:
            made[-1] = Arguments(item.index, last.text + item.text)
        else:
            made.append(item)
    return made


@dataclass(slots=True, eq=False)
class _Calls:
    """Text and calls; the spaces between text and calls are told only where text goes on after them."""

    reading: CallReading
    told: int = 0
    """How many calls have been told."""
    _count: int = 0
    _text: str = ""
    _scanner: Scanner | None = None
    _scanner_told: bool = False
    _lead: str = ""
    """What stood before the scanner, which is text where there is no call."""
    _began: bool = False
    """Whether anything but spaces has come."""

    def feed(self, text: str) -> list[Said]:
        made: list[Said] = []
        while text:
            if self._scanner is not None:
                said, text = self._scan(text)
                made += said
                continue
            self._text += text
            text = ""
            said, text = self._outside()
            made += said
        return made

    def finish(self) -> list[Said]:
        made: list[Said] = []
        if self._scanner is not None:
            if not self._scanner_told:
                made = [Text(self._lead + self._scanner.raw)]
            self._scanner = None
        rest, self._text = self._text, ""
        if rest and not (self._count and not rest.strip()):
            made.append(Text(rest))
        return made

    def _outside(self) -> tuple[list[Said], str]:
        """Text up to the next call; and what is to be scanned."""
        form = self.reading.form
        bare = form.bare and not self._began
        lead = self._text.lstrip()
        if bare and lead[:1] == "{":
            return [], self._open("", self._text)
        begins = tuple(mark for mark in (form.begin, form.opening) if mark)
        found = [(at, mark) for mark in begins if (at := self._text.find(mark)) >= 0]
        if found:
            at, mark = min(found)
            head, after = self._text[:at], self._text[at:]
            text = self._without_end(head).rstrip()
            said: list[Said] = [Text(text)] if text else []
            lead = head[len(head.rstrip()) :]
            # A call without a mark before all of them is read from its own.
            return said, self._open(lead, after) if mark == form.opening else self._open(lead + mark, after.removeprefix(mark))
        if bare and not lead:
            return [], ""
        text = self._without_end(self._text)
        sure = len(text) - held_back(text, *begins, *((form.end,) if form.end and self._count else ()))
        sure = len(text[:sure].rstrip())
        told, self._text = text[:sure], text[sure:]
        if told:
            self._began = True
        return ([Text(told)] if told else []), ""

    def _without_end(self, text: str) -> str:
        """After a call its end is no text, and neither are the spaces around it."""
        end = self.reading.form.end
        if not self._count or not end:
            return text
        before, found, after = text.partition(end)
        return after if found and not before.strip() else text

    def _open(self, lead: str, rest: str) -> str:
        """What the scanner is to be given."""
        form = self.reading.form
        names = frozenset(self.reading.schemas) if form.bare else None
        self._lead, self._text, self._began = lead, "", True
        self._scanner_told = False
        match form.shape:
            case Shape.TAGS:
                self._scanner = TagsCall(self.reading.schemas)
            case Shape.NAMED:
                self._scanner = NamedCall(form.middle)
            case Shape.SECTION:
                self._scanner = SectionCalls(opening=form.opening, closing=form.closing, middle=form.middle, end=form.end)
            case _:
                self._scanner = JsonCalls(names, separators=form.between.strip() if form.bare else "")
        return rest

    def _scan(self, text: str) -> tuple[list[Said], str]:
        scanner = self._scanner
        assert scanner is not None
        said = [item for piece in scanner.feed(text) if (item := self._said(piece)) is not None]
        if scanner.state is State.OPEN:
            return said, ""
        self._scanner = None
        if scanner.state is State.DONE:
            return said, scanner.rest
        return [*said, Text(self._lead + scanner.raw)], ""

    def _said(self, piece: Piece) -> Said | None:
        """None: a call that is not to be told."""
        if isinstance(piece, Name):
            self._scanner_told = True
            self._count += 1
        place = self._count - 1
        if place > 0 and not self.reading.several:
            return None
        if isinstance(piece, Name):
            self.told += 1
            return Call(place, self.reading.form.new_id(), piece.name)
        return Arguments(place, piece)
