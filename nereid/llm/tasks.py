"""One request to a language model in flight, on the answering side: what is still to be sent of it, and its sending."""

from __future__ import annotations

import itertools
import json
import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import ParamSpec

import numpy as np

from nereid.flow.errors import EngineError, RequestError
from nereid.flow.replies import Outputs, Reply
from nereid.flow.request_ids import NamedThreads, current, handling
from nereid.llm.answers import Answer
from nereid.llm.observer import LlmObserver
from nereid.llm.pace import StreamPace
from nereid.llm.requests import LlmRequest
from nereid.llm.sequences import Delta, TokenLogprob
from nereid.llm.text import TokenTexts

log = logging.getLogger(__name__)

LEAST_LOGPROB = -9999.0
"""Of tokens that a model gives no weight at all: JSON has no minus infinity, and OpenAI's API says this of unlikely ones."""

_numbers = itertools.count(1)

_LONGEST_PAUSE = 86_400.0
"""Seconds between two answers of a stream, whatever its pace."""

P = ParamSpec("P")


@dataclass(slots=True, eq=False)
class LlmTask:
    """One request in flight: `n` answers and what is still to be sent of them.

    Tokens that come within the `pace` of the last answer of a stream are sent together. All sending is done by the threads of
    `senders`, at most one for a task at a time: a slow reader holds up nobody who finishes or ticks.
    """

    request: LlmRequest
    reply: Reply
    senders: NamedThreads
    observer: LlmObserver
    texts: TokenTexts
    pace: StreamPace = field(default_factory=StreamPace)
    answers: list[Answer] = field(default_factory=list)
    fingerprint: str = ""
    entered: Callable[[], None] = lambda: None
    ended: Callable[[RequestError | None], None] = lambda error: None
    error: RequestError | None = None
    number: int = field(default_factory=lambda: next(_numbers))
    deaths: int = 0
    part: int = 0
    """Suspects of the same part run together; one of none runs alone."""
    request_id: str = field(default_factory=current)
    cancelled: bool = False
    called_back: bool = False
    """Whether it was inside the worker, and gave its place up."""
    arrived: float = field(default_factory=time.monotonic)
    _token_times: dict[int, tuple[float, float]] = field(default_factory=dict)
    _last_sent: float = -math.inf
    _prompt_told: bool = False
    _ended: threading.Event = field(default_factory=threading.Event)
    _pending: deque[tuple[int, Delta, float]] = field(default_factory=deque)
    """Deltas of answers, and the sum of the answer's log probabilities up to each."""
    _sending: threading.Lock = field(default_factory=threading.Lock)
    _scheduled: bool = False
    _begun: bool = False
    """Whether the pace counts it."""
    _state: threading.Lock = field(default_factory=threading.Lock)

    @property
    def rows(self) -> int:
        return len(self.answers)

    @property
    def done(self) -> bool:
        return all(answer.finished for answer in self.answers)

    def is_cancelled(self) -> bool:
        return self.cancelled or self.reply.is_cancelled()

    @property
    def suspect(self) -> bool:
        """Whether its worker has died with it: no others than its part run beside it until it is answered."""
        return self.deaths > 0

    def rewind(self) -> None:
        """Its tokens will arrive again from the first on."""
        for answer in self.answers:
            answer.rewind(seen=self.request.stream)

    def begin_again(self) -> None:
        """Go into the worker once more, under a number of its own: what is still on its way was the former one's."""
        self.called_back = False
        self.number = next(_numbers)
        self.rewind()

    def receive(self, index: int, delta: Delta, cached_tokens: int) -> None:
        """Take a delta of the answer `index`; one that differs from what was sent before fails the task."""
        try:
            fresh = self.answers[index].receive(delta, cached_tokens)
        except RequestError as error:
            self.error = error
            return
        if fresh is not None:
            self.emit(index, fresh)

    def emit(self, index: int, delta: Delta) -> None:
        """Note the token's time, and leave the sending to another thread."""
        now = time.monotonic()
        if delta.tokens:
            self._note_time(index, now)
        if not self.request.stream:
            return
        with self._state:
            if not (self._begun or self._ended.is_set()):
                self._begun = True
                self.pace.begin(self.rows)
            self._pending.append((index, delta, self.answers[index].cumulative_logprob))
            if self._scheduled:
                return  # they go with the answer that is being prepared; so a slow reader gets several tokens at once
            self._scheduled = True
        self._submit(self._send_soon)

    def _note_time(self, index: int, now: float) -> None:
        if not self._token_times:
            self.observer.first_token(now - self.arrived)
        first, last = self._token_times.get(index, (now, now))
        if now > last:
            self.observer.token(now - last)
        self._token_times[index] = first, now

    def finish(self, error: RequestError | None) -> None:
        """Have the last answer sent; deltas that are still pending go first. Returns at once."""
        with self._state:
            self._ended.set()
            if self._begun:
                self.pace.end(self.rows)
        self._submit(self._send_last, error)

    def _submit(self, work: Callable[P, None], *args: P.args, **kwargs: P.kwargs) -> None:
        with handling(self.request_id):  # tokens come on the worker's reading thread, which is nobody's
            self.senders.submit(work, *args, **kwargs)

    def _send_last(self, error: RequestError | None) -> None:
        if self.request.stream:
            self._send_pending()
        with self._sending:
            if error is None and not self.request.stream:
                self._send(self._embedded if self.request.embeds else self._whole)
            error = error or self.error
            if error is None:
                self.observer.answered(time.monotonic() - self.arrived, self._seconds_per_token())
            outcome = "success" if error is None else error.outcome
            self.observer.finished(outcome, time.monotonic() - self.arrived)
            self.observer.adapted(self.request.adapter, outcome, sum(len(answer.written) for answer in self.answers))
            self.ended(error)
            self._safely(lambda: self.reply.close(error))

    def _seconds_per_token(self) -> list[float]:
        """Of each answer the mean time between its tokens: waiting and reading the prompt come before the first."""
        times = ((len(answer.written), *self._token_times.get(index, (0.0, 0.0))) for index, answer in enumerate(self.answers))
        return [(last - first) / (written - 1) for written, first, last in times if written > 1]

    def _send_soon(self) -> None:
        self._ended.wait(min(max(0.0, self._last_sent + self.pace.seconds - time.monotonic()), _LONGEST_PAUSE))
        self._send_pending()

    def _send_pending(self) -> None:
        with self._sending:
            with self._state:
                self._last_sent = time.monotonic()
                pending, self._pending = list(self._pending), deque()
                self._scheduled = False
            for index in range(len(self.answers)):
                mine = [(delta, total) for owner, delta, total in pending if owner == index]
                if mine:
                    self._send(partial(self._piece, index, _merge([delta for delta, _ in mine]), mine[-1][1]))

    def _send(self, make: Callable[[], Outputs]) -> None:
        """Make and send an answer; where it cannot be made, for its text cannot, the request ends with an error."""
        try:
            wanted = {name: value for name, value in make().items() if name in self.request.outputs}
            wanted |= self._prompt_logprobs()
        except Exception:
            log.exception("an answer could not be made")
            self.error = EngineError("internal error while writing the answer; see the server's log")
            return
        if self.fingerprint:  # with the first answer only: it is the same for all
            wanted["system_fingerprint"], self.fingerprint = _texts([self.fingerprint]), ""
        self._safely(lambda: self.reply.send(wanted))

    @staticmethod
    def _safely(call: Callable[[], None]) -> None:
        try:
            call()
        except Exception:
            log.info("an answer was not sent: its caller is gone")

    def _piece(self, index: int, delta: Delta, cumulative_logprob: float) -> Outputs:
        answer = self.answers[index]
        return {
            **self._common(),
            "text_output": _texts([answer.show(delta)]),
            "output_ids": np.array(delta.tokens, np.int32),
            "finish_reason": _texts([delta.finish_reason or ""]),
            "cumulative_logprob": np.array([cumulative_logprob], np.float32),
            "logprobs": _texts([self._logprobs(delta.logprobs)]),
            "num_output_tokens": np.array([len(delta.tokens)], np.uint32),
            "index": np.array([index], np.int32),
        }

    def _whole(self) -> Outputs:
        lead = "" if self.request.exclude_input else self.request.prompt_text
        longest = max(len(answer.written) for answer in self.answers)
        ids = np.full((len(self.answers), longest), -1, np.int32)
        for row, answer in zip(ids, self.answers, strict=True):
            row[: len(answer.written)] = answer.written
        return {
            **self._common(),
            "text_output": _texts([lead + answer.show_all() for answer in self.answers]),
            "output_ids": ids.reshape(-1),
            "finish_reason": _texts([str(answer.finish_reason) for answer in self.answers]),
            "cumulative_logprob": np.array([s.cumulative_logprob for s in self.answers], np.float32),
            "logprobs": _texts([self._logprobs(tuple(s.all_logprobs)) for s in self.answers]),
            "num_output_tokens": np.array([len(s.written) for s in self.answers], np.uint32),
            "index": np.arange(len(self.answers), dtype=np.int32),
        }

    def _embedded(self) -> Outputs:
        embedding = self.answers[0].embedding
        assert embedding is not None
        self.observer.embedded(len(self.request.prompt))
        return {**self._common(), "embedding": embedding}

    def _common(self) -> dict[str, np.ndarray]:
        return {
            "num_input_tokens": np.array([len(self.request.prompt)], np.uint32),
            "num_cached_tokens": np.array([self.answers[0].cached_tokens], np.uint32),
        }

    def _prompt_logprobs(self) -> Outputs:
        """With the first answer: of each of the prompt's tokens what `logprobs` tells of an answer's, its rank, and its place."""
        scores = self.answers[0].prompt_logprobs
        if self._prompt_told or scores is None:
            return {}
        self._prompt_told = True
        request = self.request
        told: list[dict[str, object]] = [{**self._entry(request.prompt[0], None), "rank": None, "top": []}]
        told += [
            {**self._entry(i.token, i.logprob), "rank": i.rank, "top": [self._entry(*other) for other in i.top]} for i in scores
        ]
        placed = [{**entry, "text_offset": place} for entry, place in zip(told, request.prompt_places, strict=True)]
        return {"prompt_logprobs": _texts([json.dumps(placed)])}

    def _logprobs(self, found: Sequence[TokenLogprob]) -> str:
        """As JSON: for each token its text, id and probability, and the likeliest others; its bytes where they are no text."""
        return json.dumps([{**self._entry(i.token, i.logprob), "top": [self._entry(*other) for other in i.top]} for i in found])

    def _entry(self, token: int, logprob: float | None) -> dict[str, object]:
        text = self.texts.of(token)
        raw = self.texts.bytes_of(token, text)
        more = {} if raw == text.encode() else {"bytes": list(raw)}
        told = logprob if logprob is None else round(max(logprob, LEAST_LOGPROB), 6)
        return {"token_id": token, "token": text, "logprob": told, **more}


def _merge(deltas: list[Delta]) -> Delta:
    return Delta(
        tuple(token for delta in deltas for token in delta.tokens),
        tuple(logprob for delta in deltas for logprob in delta.logprobs),
        deltas[-1].finish_reason,
        None if deltas[0].text is None else "".join(delta.text or "" for delta in deltas),
    )


def _texts(values: list[str]) -> np.ndarray:
    return np.array([value.encode() for value in values], np.object_)
