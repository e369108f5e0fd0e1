"""Thoughts before an answer, between marks, told apart as they come; knows no form of calls."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from nereid.serving.gateway.channel_streams import END, MESSAGE
from nereid.serving.gateway.said import Call, Said, Text, held_back


@dataclass(frozen=True, slots=True)
class Thinking:
    """The marks around a model's thoughts; `opened`: the prompt ends within them already.

    `tokens` are those of the two marks; None: they are not one token each, and thoughts are not counted. `channels`: the marks
    stand around what each message of an answer says, and thoughts are messages in a channel of their own; `before` is then what
    the prompt has of the answer's first message, and `opened`: it has come to what that says. `others`: a prompt may end
    within these instead. `shown`: letters by which a template shows them that does not write the second as it is.
    """

    begin: str
    end: str
    opened: bool = False
    tokens: tuple[int, int] | None = None
    channels: bool = False
    before: str = ""
    others: tuple[Thinking, ...] = ()
    shown: tuple[str, ...] = ()

    @property
    def ends(self) -> tuple[str, ...]:
        return (self.end, *(other.end for other in self.others))

    def is_shown(self, template: str) -> bool:
        """Whether a template thinks with them."""
        return self.end in template or (bool(self.shown) and all(letters in template for letters in self.shown))


_MARKS = (
    Thinking("<think>", "</think>"),
    Thinking("[THINK]", "[/THINK]"),
    Thinking("<seed:think>", "</seed:think>"),
    Thinking("<longcat_think>", "</longcat_think>"),
    Thinking("<|START_THINKING|>", "<|END_THINKING|>"),
    Thinking("<|channel>thought", "<channel|>"),
    Thinking("◁think▷", "◁/think▷"),
    Thinking("<|inner_prefix|>", "<|inner_suffix|>"),
    Thinking("<mm:think>", "</mm:think>"),
    Thinking("<|think:start|>", "<|think:end|>"),
    Thinking("<think:opensource>", "</think:opensource>"),
    Thinking(
        "<ifm|think>",
        "</ifm|think>",
        others=tuple(Thinking(f"<ifm|think_{pace}>", f"</ifm|think_{pace}>") for pace in ("fast", "faster")),
    ),
    Thinking("<|open|>think<|sep|>", "<|close|>think<|sep|>", shown=("<|open|>", "<|close|>", "<|end_of_msg|>", "think")),
)
"""Marks around thoughts, of which a template that thinks has the second."""
_CHANNELS = Thinking(MESSAGE, END, channels=True)
_SPOKEN = (
    ("<|START_RESPONSE|>", "<|END_RESPONSE|>"),
    ("<|START_TEXT|>", "<|END_TEXT|>"),
    ("<answer>\n", "\n</answer>"),
    ("<response>\n", "\n</response>"),
)
"""Marks around what follows the thoughts: Command R7B's and A's, Hunyuan's, ERNIE's."""


def thinking_of(templates: Iterable[str], tokens: Mapping[str, int], in_channels: bool) -> Thinking | None:
    """The marks of chat templates that think, with their tokens where each is one; `in_channels`: answers are written so."""
    text = "".join(templates)
    marks = _CHANNELS if in_channels else next((marks for marks in _MARKS if marks.is_shown(text)), None)
    if marks is None or not {marks.begin, marks.end} <= tokens.keys():
        return marks
    return replace(marks, tokens=(tokens[marks.begin], tokens[marks.end]))


def spoken_of(templates: Iterable[str]) -> tuple[str, str] | None:
    """The marks around an answer's text in chat templates that think; None where there are none."""
    text = "".join(templates)
    if not any(marks.is_shown(text) for marks in _MARKS):
        return None
    return next(((begin.strip(), end.strip()) for begin, end in _SPOKEN if _shown(begin, text) and _shown(end, text)), None)


def _shown(mark: str, template: str) -> bool:
    """Templates write a line break as such, or as its escape."""
    return mark in template or mark.replace("\n", "\\n") in template


@dataclass(slots=True, eq=False)
class Spoken:
    """Text without the marks around it, if it begins with the first; the line breaks within them belong to the marks."""

    marks: tuple[str, str]
    _place: str = "before"
    _text: str = ""

    def feed(self, text: str) -> str:
        if self._place == "over":
            return text
        self._text += text
        begin, end = self.marks
        if self._place == "before":
            lead = self._text.lstrip()
            if not lead.startswith(begin):
                return "" if begin.startswith(lead) else self.finish()
            self._text, self._place = lead.removeprefix(begin), "begins"
        if self._place == "begins":
            self._text = self._text.lstrip("\n")
            self._place = "inside" if self._text else "begins"
        told, found, behind = self._text.partition(end)
        if found:
            self._text, self._place = "", "over"
            return told.rstrip("\n") + behind
        sure = len(self._text) - held_back(self._text, end)
        sure = len(self._text[:sure].rstrip("\n"))
        told, self._text = self._text[:sure], self._text[sure:]
        return told

    def finish(self) -> str:
        rest, self._text, self._place = self._text, "", "over"
        return rest


class CallReader(Protocol):
    """Text that begins with the mark of a call, told apart as it comes."""

    @property
    def told(self) -> int:
        """How many calls it has found."""

    def feed(self, text: str) -> list[Said]: ...

    def finish(self) -> list[Said]: ...


@dataclass(slots=True, eq=False)
class Thoughts:
    """Thoughts stand at the beginning, and once; the line breaks within their marks belong to the marks.

    Calls at the very end of the thoughts are calls, where nothing comes after them but the end of the thoughts: their model has
    forgotten to end these before. From the first of `calls` on, marks of calls, thoughts are held as long as they may be such, as
    `new_reader` finds. What begins with one of `before` there is no thought, even without calls.
    """

    marks: Thinking
    calls: tuple[str, ...] = ()
    before: tuple[str, ...] = ()
    new_reader: Callable[[], CallReader] | None = None
    tokens: int = 0
    """Between the marks."""
    begun: bool = False
    """Whether there are thoughts, if only empty ones."""
    reader: CallReader | None = None
    """Of what is held."""
    _place: str = ""
    _text: str = ""
    """Not told yet; once the thoughts have ended, what is held of them, which may be calls."""
    _rest: str = ""
    """What has come behind that."""
    _said: list[Said] = field(default_factory=list)
    """What the reader has made of what is held."""
    _read: int = 0
    """Up to where it has read."""
    _passed: int = 0
    """From where marks of calls are looked for: those before are none."""
    _called: bool = False
    """Whether there were calls that thoughts went on after: what follows them is no text, either."""
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
        if self._place == "after":
            return self._behind(text)
        self._text += text
        if self._place == "before":
            lead = self._text.lstrip()
            if not lead.startswith(self.marks.begin):
                if self.marks.begin.startswith(lead):
                    return "", ""
                lead, self._text, self._place = self._text, "", "over"
                return "", lead
            self._text, self._place, self.begun = lead.removeprefix(self.marks.begin), "begins", True
        if self._place == "begins":
            self._text = self._text.lstrip("\n")
            self._place = "inside" if self._text else "begins"
        inside, found, behind = self._text.partition(self.marks.end)
        if not found:
            return self._sure(len(self._text) - held_back(self._text, self.marks.end, *self.calls)), ""
        self._text, self._place = inside, "after"
        thought = self._sure(len(inside), last=True)
        more, rest = self._behind(behind)
        return thought + more, rest

    def finish(self) -> tuple[str, str, list[Said]]:
        """The rest of the thoughts, the text that follows them, and the calls at their end."""
        if self._place in ("before", "over"):
            rest, self._text = self._text, ""
            return "", rest, []
        thought = "" if self._place == "after" else self._sure(len(self._text), last=True)
        return thought, "", [] if self.reader is None else self._said

    def _sure(self, ready: int, *, last: bool = False) -> str:
        """Take what is sure to be thoughts; `ready` is up to where the text is whole, `last`: no more comes.

        What is left may be calls, or is line breaks at the end.
        """
        sure = ready
        while self.new_reader is not None and (begin := self._calls_begin()) < len(self._text):
            if self.reader is None:
                self.reader, self._said, self._read = self.new_reader(), [], begin
            piece, self._read = self._text[self._read : ready], max(self._read, ready)
            said = self.reader.feed(piece) if piece else []
            is_text = not self._called and self._text.startswith(self.before, begin)
            goes_on = _goes_on(self._said, said, is_text)
            self._said += said
            if last:
                self._said += self.reader.finish()
            if not goes_on and (is_text or self.reader.told or not last):
                sure = begin
                break
            self._called = self._called or self.reader.told > 0
            self.reader, self._passed = None, begin + 1
        sure = len(self._text[:sure].rstrip("\n"))
        told, self._text = self._text[:sure], self._text[sure:]
        self._read, self._passed = max(0, self._read - sure), max(0, self._passed - sure)
        return told

    def _calls_begin(self) -> int:
        found = (self._text.find(mark, self._passed) for mark in self.calls)
        return min((at for at in found if at >= 0), default=len(self._text))

    def _behind(self, text: str) -> tuple[str, str]:
        """What was held, where it is no calls, and the text after the mark, without the line breaks that follow it."""
        self._rest += text
        rest = self._rest.lstrip("\n")
        if not (rest if self.reader is None else rest.strip()):
            return "", ""
        held = "" if self.reader is None else self._text.rstrip("\n")
        self._text, self._rest, self._place = "", "", "over"
        return held, rest


def _goes_on(before: Sequence[Said], said: Sequence[Said], is_text: bool) -> bool:
    """Whether thoughts go on in what is `said` now: as text beside calls, or behind them where it begins as text."""
    called = any(isinstance(item, Call) for item in before)
    for item in said:
        if isinstance(item, Text) and item.text.strip() and (called or not is_text):
            return True
        called = called or isinstance(item, Call)
    return False
