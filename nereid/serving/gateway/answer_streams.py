"""An answer's text taken apart as it comes: thoughts, text, calls of tools; knows no HTTP and no schema of OpenAI's."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

from nereid.serving.gateway.call_forms import CallReading, Shape
from nereid.serving.gateway.call_objects import Name, Piece, State
from nereid.serving.gateway.call_scanners import JsonCalls, Scanner
from nereid.serving.gateway.channel_streams import ChannelStream
from nereid.serving.gateway.custom_inputs import CustomInputs
from nereid.serving.gateway.literal_scanners import BracesCall, PythonCalls
from nereid.serving.gateway.marked_scanners import NamedCall, SectionCalls
from nereid.serving.gateway.said import Arguments, Call, Reasoning, Said, Text, held_back, merged
from nereid.serving.gateway.silent_marks import Silence
from nereid.serving.gateway.tag_scanners import TagsCall
from nereid.serving.gateway.thoughts import CallReader, Spoken, Thinking, Thoughts
from nereid.serving.gateway.tool_formats import HARMONY


@dataclass(slots=True, eq=False)
class AnswerStream:
    """One answer. `feed` gives what may be told, `finish` the rest. `thinking`, `calls`: None where none are looked for;
    `spoken`: marks around what follows the thoughts, `silent`: such as are no text wherever they stand.
    """

    thinking: Thinking | None = None
    calls: CallReading | None = None
    spoken: tuple[str, str] | None = None
    silent: tuple[str, ...] = ()
    _channels: ChannelStream | None = field(init=False)
    _thoughts: Thoughts | None = field(init=False)
    _calls: CallReader | None = field(init=False)
    _spoken: Spoken | None = field(init=False)
    _silence: Silence = field(init=False)
    _inputs: CustomInputs = field(init=False)

    def __post_init__(self) -> None:
        self._channels = _channels(self.thinking, self.calls)
        self._thoughts = None if self.thinking is None or self.thinking.channels else _thoughts(self.thinking, self.calls)
        self._spoken = None if self.spoken is None else Spoken(self.spoken)
        self._silence = Silence(self.silent)
        self._inputs = CustomInputs() if self.calls is None else CustomInputs(self.calls.custom)
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
        return merged(self._inputs.told(self._fed(text, tokens)))

    def finish(self) -> list[Said]:
        return merged([*self._inputs.told(self._finished()), *self._inputs.finish()])

    def _fed(self, text: str, tokens: Sequence[int]) -> list[Said]:
        made: list[Said] = []
        if self._channels is not None:
            self._channels.count(tokens)
            return self._within(self._channels.feed(text))
        if self._thoughts is not None:
            self._thoughts.count(tokens)
            thought, text = self._thoughts.feed(text)
            made += [Reasoning(thought)] if thought else []
        return [*made, *self._after(text)]

    def _finished(self) -> list[Said]:
        made: list[Said] = []
        text = ""
        if self._channels is not None:
            made = self._within(self._channels.finish())
        if self._thoughts is not None:
            thought, text, said = self._thoughts.finish()
            if said:
                self._calls = self._thoughts.reader
            made += [*([Reasoning(thought)] if thought else []), *said]
        made += self._after(text)
        if self._spoken is not None:
            made += self._told(self._spoken.finish())
        if self._calls is not None:
            return [*made, *self._calls.finish()]
        return [*made, Text(rest)] if (rest := self._silence.finish()) else made

    def _within(self, said: list[Said]) -> list[Said]:
        """Calls in the text of channels, where they are not written as messages."""
        return [part for item in said for part in (self._after(item.text) if isinstance(item, Text) else [item])]

    def _after(self, text: str) -> list[Said]:
        return self._told(text if self._spoken is None or not text else self._spoken.feed(text))

    def _told(self, text: str) -> list[Said]:
        if not text:
            return []
        if self._calls is not None:
            return self._calls.feed(text)
        told = self._silence.feed(text)
        return [Text(told)] if told else []


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


def _thoughts(thinking: Thinking, calls: CallReading | None) -> Thoughts:
    """With calls looked for at their end, too: models forget to end their thoughts before them."""
    if calls is None:
        return Thoughts(thinking)
    form = calls.form
    return Thoughts(thinking, (*form.begins, *form.silent), form.before, partial(_Calls, calls))


_LINES = {letters: re.compile(rf"(?:\A|\n)[ \t]*[{re.escape(letters)}]") for letters in ("{", "[{")}


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
    _ids: set[str] = field(default_factory=set)
    _after_call: bool = False
    """Whether nothing but spaces has come since a call."""

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
        if isinstance(self._scanner, TagsCall):
            made = [item for piece in self._scanner.finish() if (item := self._said(piece)) is not None]
        if self._scanner is not None:
            rest = self._scanner.pending if self._scanner_told else self._lead + self._scanner.raw
            made += [Text(rest)] if rest.strip() or not self._scanner_told else []
            self._scanner = None
        silence = Silence(self.reading.form.silent)
        rest, self._text = silence.feed(self._text) + silence.finish(), ""
        if rest and not (self._count and not rest.strip()):
            made.append(Text(rest))
        return made

    def _outside(self) -> tuple[list[Said], str]:
        """Text up to the next call; and what is to be scanned."""
        form = self.reading.form
        found = [(at, mark) for mark in (*form.begins, *form.silent) if (at := self._text.find(mark)) >= 0]
        if form.bare and (line := self._line()) >= 0:
            found.append((line, ""))
        if found:
            at, mark = min(found, key=lambda one: (one[0], -len(one[1])))
            head, after = self._text[:at], self._text[at:]
            text = self._without_end(head).rstrip()
            said: list[Said] = [Text(text)] if text else []
            lead = head[len(head.rstrip()) :]
            if mark in form.silent:
                waits = any(begin.startswith(after) for begin in form.begins)  # it may yet be the beginning of another one
                self._text = lead + after if waits else ""
                return said, "" if waits else lead + after.removeprefix(mark)
            # A call without a mark before it is read from its own beginning.
            opened = mark in ("", form.opening)
            begins = tuple(begin for begin in (form.begin, *form.others) if begin)
            behind = after.removeprefix(mark).lstrip()
            if not opened and any(begin.startswith(behind) and begin != behind for begin in begins):
                self._text = lead + after
                return said, ""  # a mark that is written twice counts once
            if not opened and behind.startswith(begins):
                self._text = ""
                return said, lead + behind
            return said, self._open(lead, after) if opened else self._open(lead + mark, after.removeprefix(mark))
        text = self._without_end(self._text)
        sure = len(text) - held_back(text, *form.begins, *form.silent, *(form.ends if self._after_call else ()))
        sure = len(text[:sure].rstrip())
        told, self._text = text[:sure], text[sure:]
        if told:
            self._began = True
        return ([Text(told)] if told else []), ""

    def _line(self) -> int:
        """Where a line begins as a call may; the spaces before it have not been told."""
        line = _LINES[self.reading.form.bare]
        found = line.search(self._text)
        if found is None or (self._began and found.start() == 0 and "\n" not in found[0]):
            found = line.search(self._text, 1) if found else None
        return -1 if found is None else found.end() - 1

    def _without_end(self, text: str) -> str:
        """Directly after a call its end is no text, and neither are the spaces before it."""
        ends = self.reading.form.ends
        if not self._after_call or not ends:
            return text
        while end := next((end for end in ends if text.lstrip().startswith(end)), ""):
            text = text.lstrip().removeprefix(end)
        self._after_call = any(end.startswith(text.lstrip()) for end in ends)  # it may yet come
        return text

    def _open(self, lead: str, rest: str) -> str:
        """What the scanner is to be given."""
        form = self.reading.form
        names = frozenset(self.reading.schemas)
        self._lead, self._text, self._began, self._after_call = lead, "", True, False
        self._scanner_told = False
        match form.shape:
            case Shape.TAGS:
                assert form.tags is not None
                self._scanner = TagsCall(form.tags, self.reading.schemas, form.end)
            case Shape.PYTHON:
                self._scanner = PythonCalls(self.reading.schemas, names if form.bare else None)
            case Shape.BRACES:
                self._scanner = BracesCall(form.quotes, self.reading.schemas)
            case Shape.NAMED:
                self._scanner = NamedCall(form.middle, names)
            case Shape.SECTION:
                self._scanner = SectionCalls(
                    opening=form.opening, closing=form.closing, middle=form.middle, numbered=form.numbered
                )
            case _:
                separators = form.between.strip() if form.bare else ","
                self._scanner = JsonCalls(names if form.bare else None, separators=separators, keyed=form.keyed)
        return rest

    def _scan(self, text: str) -> tuple[list[Said], str]:
        scanner = self._scanner
        assert scanner is not None
        said = [item for piece in scanner.feed(text) if (item := self._said(piece)) is not None]
        if scanner.state is State.OPEN:
            return said, ""
        self._scanner = None
        if scanner.state is State.DONE:
            self._after_call = True
            return said, scanner.rest
        # No call: the mark is text, or the first letter where there was none, and what follows may have a call in it.
        whole = self._lead + scanner.raw
        least = len(self._lead.rstrip()) or len(self._lead) + 1
        return [*said, Text(whole[:least])], whole[least:]

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
            return Call(place, self._id(piece, place), piece.name)
        return Arguments(place, piece)

    def _id(self, name: Name, place: int) -> str:
        """The one that the model has written, unless it has written it before."""
        made = name.id if name.id and name.id not in self._ids else self.reading.form.new_id(name.name, place)
        self._ids.add(made)
        return made
