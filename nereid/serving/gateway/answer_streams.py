"""An answer's text taken apart as it comes: thoughts, text, calls of tools; knows no HTTP and no schema of OpenAI's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from nereid.serving.gateway.call_scanners import JsonCalls, Name, Piece, Scanner, State
from nereid.serving.gateway.marked_scanners import NamedCall, TagsCall
from nereid.serving.gateway.said import Arguments, Call, Reasoning, Said, Text, held_back
from nereid.serving.gateway.tool_formats import Shape, ToolFormat


@dataclass(frozen=True, slots=True)
class Thinking:
    """The marks around a model's thoughts; `opened`: the prompt ends within them already.

    `tokens` are those of the two marks; None: they are not one token each, and thoughts are not counted.
    """

    begin: str
    end: str
    opened: bool = False
    tokens: tuple[int, int] | None = None


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
    _thoughts: _Thoughts | None = field(init=False)
    _calls: _Calls | None = field(init=False)

    def __post_init__(self) -> None:
        self._thoughts = None if self.thinking is None else _Thoughts(self.thinking)
        self._calls = None if self.calls is None else _Calls(self.calls)

    @property
    def has_called(self) -> bool:
        return self._calls is not None and self._calls.told > 0

    @property
    def reasoning_tokens(self) -> int:
        """Of the tokens so far those that are thoughts, their marks left out."""
        return self._thoughts.tokens if self._thoughts is not None and self._thoughts.begun else 0

    def feed(self, text: str, tokens: Sequence[int] = ()) -> list[Said]:
        """`tokens` have come with the text; they are counted, where they are thoughts."""
        made: list[Said] = []
        if self._thoughts is not None:
            self._thoughts.count(tokens)
            thought, text = self._thoughts.feed(text)
            made += [Reasoning(thought)] if thought else []
        return _merged([*made, *self._after(text)])

    def finish(self) -> list[Said]:
        made: list[Said] = []
        text = ""
        if self._thoughts is not None:
            thought, text = self._thoughts.finish()
            made += [Reasoning(thought)] if thought else []
        made += self._after(text)
        return _merged([*made, *(self._calls.finish() if self._calls is not None else [])])

    def _after(self, text: str) -> list[Said]:
        if not text:
            return []
        return [Text(text)] if self._calls is None else self._calls.feed(text)


def _merged(said: list[Said]) -> list[Said]:
    """Neighbouring pieces of one thing as one."""
    made: list[Said] = []
    for item in said:
        last = made[-1] if made else None
        if isinstance(item, Text) and isinstance(last, Text):
            made[-1] = Text(last.text + item.text)
        elif isinstance(item, Arguments) and isinstance(last, Arguments) and item.index == last.index:
            made[-1] = Arguments(item.index, last.text + item.text)
        else:
            made.append(item)
    return made


@dataclass(slots=True, eq=False)
class _Thoughts:
    """Thoughts stand at the beginning, and once; the line breaks within their marks belong to the marks."""

    marks: Thinking
    tokens: int = 0
    """Between the marks."""
    begun: bool = False
    """Whether there are thoughts, if only empty ones."""
    _place: str = ""
    _text: str = ""
    _counting: bool = False
    _counted: bool = False
    """Whether the last of them has been counted."""

    def __post_init__(self) -> None:
        self._place = "begins" if self.marks.opened else "before"
        self.begun = self._counting = self.marks.opened

    def count(self, tokens: Sequence[int]) -> None:
        """Take the tokens of the text that is fed next; what was fed before may have told that there are no more thoughts."""
        if self.marks.tokens is None or self._place in ("after", "over"):
            return
        begin, end = self.marks.tokens
        for token in tokens:
            if self._counted:
                return
            if not self._counting:
                self._counting = token == begin
            elif token == end:
                self._counted = True
            elif token != begin:
                self.tokens += 1

    def feed(self, text: str) -> tuple[str, str]:
        """Thoughts and text that may be told."""
        if self._place == "over":
            return "", text
        self._text += text
        if self._place == "before":
            lead = self._text.lstrip()
            if not lead.startswith(self.marks.begin):
                if self.marks.begin.startswith(lead):
                    return "", ""
                return "", self._over(self._text)
            self._text, self._place, self.begun = lead.removeprefix(self.marks.begin), "begins", True
        if self._place == "begins":
            self._text = self._text.lstrip("\n")
            self._place = "inside" if self._text else "begins"
        if self._place == "after":
            return "", self._behind()
        thought, found, behind = self._text.partition(self.marks.end)
        if found:
            self._text, self._place = behind, "after"
            return thought.rstrip("\n"), self._behind()
        sure = len(self._text) - held_back(self._text, self.marks.end)
        sure = len(self._text[:sure].rstrip("\n"))
        thought, self._text = self._text[:sure], self._text[sure:]
        return thought, ""

    def finish(self) -> tuple[str, str]:
        rest, self._text = self._text, ""
        return (rest.rstrip("\n"), "") if self._place in ("begins", "inside") else ("", rest)

    def _behind(self) -> str:
        """The text after the mark, without the line breaks that follow it."""
        rest = self._text.lstrip("\n")
        return self._over(rest) if rest else self._nothing()

    def _nothing(self) -> str:
        self._text = ""
        return ""

    def _over(self, rest: str) -> str:
        self._text, self._place = "", "over"
        return rest


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
            return self._open("", self._text)
        head, found, after = self._text.partition(form.begin)
        if found:
            text = self._without_end(head).rstrip()
            said: list[Said] = [Text(text)] if text else []
            _, rest = self._open(head[len(head.rstrip()) :] + form.begin, after)
            return said, rest
        if bare and not lead:
            return [], ""
        text = self._without_end(self._text)
        sure = len(text) - held_back(text, form.begin, *((form.end,) if form.end and self._count else ()))
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

    def _open(self, lead: str, rest: str) -> tuple[list[Said], str]:
        form = self.reading.form
        names = frozenset(self.reading.schemas) if form.bare else None
        self._lead, self._text, self._began = lead, "", True
        self._scanner_told = False
        match form.shape:
            case Shape.TAGS:
                self._scanner = TagsCall(self.reading.schemas)
            case Shape.NAMED:
                self._scanner = NamedCall(form.middle)
            case _:
                self._scanner = JsonCalls(names, separators=form.between.strip() if form.bare else "")
        return [], rest

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
