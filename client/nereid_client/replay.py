"""One request from its first attempt to its last answer: refusals are tried again, deaths replayed; waits for nothing itself.

What makes a replay true stands in the Work: seed, prompt and run id are fixed before the first attempt, so that every attempt
gives the same bytes, and a stream's Reader passes over what was shown before. A driver (sync or async) waits between the steps.
"""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import numpy as np

from nereid_client.deadlines import ended_by_another, out_of_time, with_advice
from nereid_client.errors import (
    CancelledError,
    ConnectionLostError,
    DeadlineExceededError,
    InvalidRequestError,
    LostError,
    NereidError,
    QueueFullError,
    ServerError,
    UnhealthyError,
)
from nereid_client.server import Server, Work
from nereid_client.steps import CANCEL, Item, Reader, Show, Steps, Wait
from nereid_client.transport import Answered, Call, Cancel, Event, Failed, Tensors
from nereid_client.verdicts import Verdict, verdict
from nereid_client.watching import ANSWER_SECONDS, Finding, Watch

GRACE_SECONDS = 1.0
"""How much longer than the server the client waits, so that the server's own sentence arrives."""
_LONGEST_PAUSE, _SHORTEST_ATTEMPT = 1.0, 0.01

T = TypeVar("T")


@dataclass(slots=True, kw_only=True)
class Run(Generic[T]):
    """`post` puts an item into the mailbox that the driver reads; it may be called from any thread."""

    work: Work
    server: Server
    reader: Reader[T]
    post: Callable[[Item], object]
    clock: Callable[[], float] = time.monotonic
    _sources: itertools.count[int] = field(default_factory=lambda: itertools.count(1))
    _deadline: float | None = None
    _cancel: Cancel | None = None
    _inside: bool = False
    _refusals: int = 0
    _deaths: int = 0
    _healing_until: float | None = None
    _pauses: int = 0
    _fingerprint: str | None = None
    _shown: bool = False
    _failure: NereidError | None = None
    """What the attempt before has failed of."""

    def steps(self) -> Steps[T]:
        """The whole request; closing the generator cancels what is under way, here and on the server."""
        if self.work.timeout is not None:
            self._deadline = self.clock() + self.work.timeout
        self.server.statistics.count("requests")
        try:
            while (failure := (yield from self._attempt())) is not None:
                self._failure = failure
                yield from self._recover(failure)
                self.reader.again()
        except NereidError as error:
            error.request_id = self.work.request_id
            raise
        finally:
            self._leave()

    def _attempt(self) -> Generator[Wait | Show[T], Item | None, NereidError | None]:
        """Send the request and give out its answers; how it failed, None where it did not."""
        source, question, begun = self._send(), 0, self.clock()
        watch = Watch(sent=begun, streamed=self.work.decoupled, patience=2.0**self._deaths)
        while True:
            item = yield from self._next(self._until(watch, question), (source, question))
            if item is None:
                if watch.silence(self.clock()) > self.server.policy.heal_seconds:
                    return self._lost(f"{self.work.holder} has not answered for {self.server.policy.heal_seconds:g} s")
                question = next(self._sources)
                watch.asked(self.clock())
                self._put_question(question)
            elif item[0] == question:
                finding, question = self._hear(watch, item[1], question)
                if finding is Finding.LOST or (finding is Finding.LIKELY_LOST and self._deaths < self.server.policy.replays):
                    return self._lost(f"the run {self.work.run_id} is gone from {self.work.holder}")
            elif isinstance(item[1], Answered):
                watch.progressed()
                self._compare_fingerprint(item[1].outputs)
                value = self._read(item[1].outputs)
                if value is not None:
                    self._shown = True
                    yield Show(value)
            else:
                return self._told(self._end(item[1]), self.clock() - begun)

    def _read(self, outputs: Tensors) -> T | None:
        try:
            return self.reader.read(outputs)
        except (KeyError, IndexError, ValueError) as error:
            raise ServerError(f"the server's answer cannot be read ({error!r})") from None

    def _send(self) -> int:
        remaining = None if self._deadline is None else self._deadline - self.clock()
        if remaining is not None and remaining < _SHORTEST_ATTEMPT:
            raise self._out_of_time()
        source = next(self._sources)
        limit = None if remaining is None else remaining + GRACE_SECONDS
        call = Call(
            model=self.work.model,
            tensors=self.server.tensors_of(self.work, remaining),
            decoupled=self.work.decoupled,
            timeout=limit,
            ends_by_id=self.server.watches(self.work),
            request_id=self.work.request_id,
        )
        self._inside = True
        self._cancel = self.server.transport.start(call, self._tell(source))
        return source

    def _end(self, event: Event) -> NereidError | None:
        """The call is over; an answer that is complete is one, whatever happened after it."""
        error = event.error if isinstance(event, Failed) else None
        self.server.known.heard |= not isinstance(error, ConnectionLostError)
        self._cancel = None
        self._inside = isinstance(error, DeadlineExceededError)
        missing = self.reader.missing()
        if missing is None:
            return None
        return error or LostError(missing)

    def _lost(self, sentence: str) -> NereidError:
        """Give up a call that will not end; its run may be alive after all."""
        if self._cancel is not None:
            self._cancel()
        self._cancel = None
        return LostError(sentence)

    def _until(self, watch: Watch, question: int) -> float | None:
        # An open question's answer, or its failure, will come.
        return watch.next_question if not question and self.server.watches(self.work) else None

    def _put_question(self, source: int) -> None:
        self.server.transport.start(self.server.question(self.work, "watch", ANSWER_SECONDS), self._tell(source))

    def _hear(self, watch: Watch, event: Event, question: int) -> tuple[Finding, int]:
        """What a question brought, and the question that is open from now on (0: none)."""
        now = self.clock()
        if isinstance(event, Answered):
            self._compare_fingerprint(event.outputs)
            return watch.answered(_text(event.outputs.get("run_state")), now), question
        watch.closed(now)
        finding = watch.failed(event.error) if isinstance(event, Failed) else Finding.NOTHING
        if finding is Finding.UNSUPPORTED:
            self.server.known.without_watch.add(self.work.holder)
        return finding, 0

    def _recover(self, failure: NereidError) -> Steps[T]:
        """Return when the request may be sent again; raises `failure` where it must not."""
        policy, kind = self.server.policy, verdict(failure)
        if self.server.learn(self.work, failure):
            return  # the server is too old for what was sent along; at once again without it
        if kind is Verdict.FINAL:
            raise failure
        if self._healing_until is not None and self.clock() >= self._healing_until:
            self._healing_until = None
        healing = self._healing_until is not None
        if kind is Verdict.DEATH and not (healing and isinstance(failure, UnhealthyError)):  # else it is not replaced yet
            self._deaths += 1
            if self._deaths > policy.replays:
                self.server.statistics.count("lost")
                raise failure
            self._begin_healing()
        elif not healing:
            self._refusals += 1
            if self._refusals > policy.retries or (isinstance(failure, QueueFullError) and not policy.retry_full):
                raise failure
            if kind is Verdict.REFUSAL or not self.server.known.heard:
                yield from self._pause(policy.backoff * 2 ** (self._refusals - 1), failure)
                self.server.statistics.count("retries")
                return
            self._begin_healing()
        while True:
            yield from self._pause(min(policy.backoff * 2**self._pauses, _LONGEST_PAUSE), failure)
            self._pauses += 1
            if (yield from self._is_back()):
                self.server.statistics.count("replays" if self._deaths else "retries")
                return

    def _begin_healing(self) -> None:
        self._healing_until, self._pauses = self.clock() + self.server.policy.heal_seconds, 0

    def _is_back(self) -> Generator[Wait | Show[T], Item | None, bool]:
        """Ask all models; Triton calls a model ready whose process is dead, so its run's holder is asked a question, too."""
        work, probe, question = self.work, next(self._sources), next(self._sources)
        models = {work.model, work.holder}
        for model in models:
            self.server.transport.probe(model, ANSWER_SECONDS, self._tell(probe))
        unanswered = len(models)
        if self.server.watches(work):
            self._put_question(question)
            unanswered += 1
        while unanswered:
            item = yield from self._next(self.clock() + 2 * ANSWER_SECONDS, (probe, question))
            if item is None:
                return False
            source, event = item
            if isinstance(event, Answered):
                self._compare_fingerprint(event.outputs)
                continue
            unanswered -= 1
            if isinstance(event, Failed):
                if source != question or not isinstance(event.error, InvalidRequestError):
                    return False
                self.server.known.without_watch.add(work.holder)
        return True

    def _pause(self, seconds: float, failure: NereidError) -> Steps[T]:
        """Spread, so that many callers do not return at once; where the time would be up by then, `failure` is the answer."""
        until = self.clock() + seconds * random.uniform(0.5, 1.5)
        limit = self._healing_until if self._healing_until is not None else self._deadline
        if limit is not None and until >= limit:
            if self._healing_until is not None:
                self.server.statistics.count("lost")
                seconds = self.server.policy.heal_seconds
                failure.args = (f"{failure}; the server was not back within heal_seconds ({seconds:g} s)",)
            raise failure
        yield from self._next(until, ())

    def _next(self, until: float | None, sources: tuple[int, ...]) -> Generator[Wait | Show[T], Item | None, Item | None]:
        """The next event of these calls, None at `until`; raises at the deadline, and where the caller cancels."""
        limit = None if self._deadline is None else self._deadline + (GRACE_SECONDS if self._cancel is not None else 0)
        times = [time for time in (until, limit) if time is not None]
        while True:
            now = self.clock()
            item = yield Wait(max(0.0, min(times) - now) if times else None)
            if item is CANCEL:
                raise CancelledError("the request was cancelled from here")
            if item is None:
                if limit is not None and self.clock() >= limit:
                    raise self._out_of_time()
                if until is not None and self.clock() >= until:
                    return None
            elif item[0] in sources:
                return item

    def _told(self, error: NereidError | None, seconds: float) -> NereidError | None:
        """The error of a call that has lasted so long; of one that ended by a deadline, with what there is to raise."""
        if not isinstance(error, DeadlineExceededError):
            return error
        if not error.bare:
            return with_advice(error, self.work)
        late = self._deadline is not None and self.clock() >= self._deadline
        return self._out_of_time() if late else ended_by_another(error, self.work, seconds)

    def _out_of_time(self) -> NereidError:
        return out_of_time(self.work, self._failure, shown=self._shown)

    def _compare_fingerprint(self, outputs: Tensors) -> None:
        found = _text(outputs.get("system_fingerprint"))
        if found and self._fingerprint and found != self._fingerprint:
            raise ServerError(
                f"the server changed while the request was replayed: its system_fingerprint is {found}, and was "
                f"{self._fingerprint}; the answer would be another one"
            )
        self._fingerprint = found or self._fingerprint

    def _leave(self) -> None:
        """Nobody waits any more: end the call here and, as Triton passes that on to no step of an ensemble, the run by name."""
        if self._cancel is not None:
            self._cancel()
        if self._inside and self.server.watches(self.work):
            self.server.say_aside(self.server.question(self.work, "cancel", ANSWER_SECONDS))
        self._cancel, self._inside = None, False

    def _tell(self, source: int) -> Callable[[Event], None]:
        def tell(event: Event) -> None:
            self.post((source, event))

        return tell


def _text(value: np.ndarray | None) -> str:
    if value is None or not value.size:
        return ""
    first = value.reshape(-1)[0]
    return first.decode() if isinstance(first, bytes) else str(first)
