"""Results of answers, and streams that go on where they stopped: a replay's beginning is compared with what was shown."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Generic, TypeVar

from nereid_client.errors import ServerError
from nereid_client.images import ImageProgress, ImageResult
from nereid_client.layouts import LayoutProgress, LayoutResult
from nereid_client.pages import PageProgress, PageResult
from nereid_client.texts import TextDelta
from nereid_client.transport import Tensors

T = TypeVar("T")


@dataclass(slots=True)
class OnlyAnswer(Generic[T]):
    """A request that has one answer."""

    convert: Callable[[Tensors], T]
    _answers: int = 0

    def read(self, outputs: Tensors) -> T | None:
        self._answers += 1
        if self._answers > 1:
            raise ServerError("the server gave a second answer where one was asked for")
        return self.convert(outputs)

    def again(self) -> None:
        self._answers = 0

    def missing(self) -> str | None:
        return None if self._answers else "the request ended without an answer"


D = TypeVar("D", ImageProgress | ImageResult, LayoutProgress | LayoutResult, PageProgress | PageResult)


@dataclass(slots=True)
class StepStream(Generic[D]):
    """Steps of what is drawn, then it: progress is shown once; of a replay, only what goes beyond it."""

    run_id: str
    convert: Callable[[Tensors], D]
    noun: str
    _step: int = 0
    _done: bool = False

    def read(self, outputs: Tensors) -> D | None:
        made = self.convert(outputs)
        if isinstance(made, ImageResult | LayoutResult | PageResult):
            self._done = True
            return replace(made, run_id=self.run_id)
        if made.step <= self._step:
            return None
        self._step = made.step
        return made

    def again(self) -> None:
        """Steps that were shown are not shown again."""

    def missing(self) -> str | None:
        return None if self._done else f"the stream ended before its {self.noun} came"


@dataclass(slots=True)
class _Sequence:
    """One part of an answer (its tokens, say): what was shown, and how much of it has come again."""

    shown: list[Any] = field(default_factory=list)
    _at: int = 0

    def again(self) -> None:
        self._at = 0

    def news(self, arrived: Sequence[Any]) -> list[Any] | None:
        """What of this was not shown yet; None where it differs from what was."""
        known = self.shown[self._at : self._at + len(arrived)]
        self._at += len(arrived)
        if known != list(arrived[: len(known)]):
            return None
        new = list(arrived[len(known) :])
        self.shown += new
        return new

    @property
    def caught_up(self) -> bool:
        return self._at >= len(self.shown)


@dataclass(slots=True)
class _Answer:
    """One answer of a text request. The cuts between deltas may differ, and text may lag behind tokens in another way."""

    tokens: _Sequence = field(default_factory=_Sequence)
    characters: _Sequence = field(default_factory=_Sequence)
    logprobs: _Sequence = field(default_factory=_Sequence)
    finish_reason: str | None = None

    def parts(self) -> tuple[_Sequence, ...]:
        return self.tokens, self.characters, self.logprobs


@dataclass(slots=True)
class TextStream:
    """The deltas of `count` answers. Cached tokens and timings may differ in a replay; nothing else may."""

    run_id: str
    count: int = 1
    _answers: dict[int, _Answer] = field(default_factory=dict)
    _fingerprint: str | None = None

    def read(self, outputs: Tensors) -> TextDelta | None:
        delta = TextDelta.from_tensors(outputs)
        self._fingerprint = delta.system_fingerprint or self._fingerprint
        answer = self._answers.setdefault(delta.index, _Answer())
        before = answer.finish_reason
        tokens = _news("tokens", answer.tokens, delta.token_ids)
        text = "".join(_news("text", answer.characters, delta.text))
        logprobs = _news("logprobs", answer.logprobs, delta.logprobs or ())
        new = bool(tokens or text or logprobs)
        ended_early = delta.finish_reason is not None and not all(part.caught_up for part in answer.parts())
        if ended_early or (before is not None and (new or delta.finish_reason not in (None, before))):
            raise _differs("end")
        answer.finish_reason = delta.finish_reason or before
        if not new and answer.finish_reason == before:
            return None
        return replace(
            delta,
            token_ids=tuple(tokens),
            text=text,
            logprobs=None if delta.logprobs is None else logprobs,
            run_id=self.run_id,
            system_fingerprint=self._fingerprint,
        )

    def again(self) -> None:
        for answer in self._answers.values():
            for part in answer.parts():
                part.again()

    def missing(self) -> str | None:
        finished = sum(answer.finish_reason is not None for answer in self._answers.values())
        return None if finished >= self.count else f"the stream ended after {finished} of {self.count} answers"


def _news(what: str, part: _Sequence, arrived: Sequence[Any]) -> list[Any]:
    new = part.news(arrived)
    if new is None:
        raise _differs(what)
    return new


def _differs(what: str) -> ServerError:
    return ServerError(
        f"the replay of a stream differs in its {what} from what was already given out; ask again from the beginning "
        "(requests with speculation, or a server without batch_invariant, may see this)"
    )
