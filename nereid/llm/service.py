"""`llm` as plain Python: raw inputs in, streams of named output arrays out, many requests in flight."""

from __future__ import annotations

import json
import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

import numpy as np
from tokenizers import Tokenizer

from nereid.flow.batcher import InFlightBatcher
from nereid.flow.errors import EngineError, InvalidRequestError, RequestError
from nereid.llm.engine import CausalEngine
from nereid.llm.observer import LlmObserver
from nereid.llm.prefix_cache import PrefixCache
from nereid.llm.requests import Inputs, LlmRequest, parse_llm_request
from nereid.llm.scheduler import LlmScheduler
from nereid.llm.sequences import Delta, GeneratedSequence, TokenLogprob
from nereid.llm.settings import LlmFacts, LlmLimits
from nereid.llm.speculation import DraftGuesser, DraftModel, Guesser, PromptLookup, SpeculationMeter
from nereid.llm.structure import StructureFactory
from nereid.llm.text import TextStream

log = logging.getLogger(__name__)

Outputs = Mapping[str, np.ndarray]


class Reply(Protocol):
    """One request's way back; called from one thread at a time, never from the tick thread."""

    def send(self, outputs: Outputs) -> None: ...

    def close(self, error: Exception | None = None) -> None: ...

    def is_cancelled(self) -> bool: ...


@dataclass(slots=True, eq=False)
class LlmTask:
    """One request in flight: `n` sequences and what is still to be sent of them.

    Tokens that come within `interval` seconds of the last answer of a stream are sent together.
    """

    request: LlmRequest
    reply: Reply
    senders: ThreadPoolExecutor
    observer: LlmObserver
    tokenizer: Tokenizer
    interval: float = 0.0
    sequences: list[GeneratedSequence] = field(default_factory=list)
    error: RequestError | None = None
    arrived: float = field(default_factory=time.monotonic)
    _last_token: float = 0.0
    _last_sent: float = -math.inf
    _ended: threading.Event = field(default_factory=threading.Event)
    _pending: deque[tuple[int, Delta]] = field(default_factory=deque)
    _sending: threading.Lock = field(default_factory=threading.Lock)
    _scheduled: bool = False
    _state: threading.Lock = field(default_factory=threading.Lock)

    @property
    def rows(self) -> int:
        return len(self.sequences)

    @property
    def done(self) -> bool:
        return all(sequence.finished for sequence in self.sequences)

    def is_cancelled(self) -> bool:
        return self.reply.is_cancelled()

    def emit(self, index: int, delta: Delta) -> None:
        """From the tick thread: note the token's time, and leave the sending to another thread."""
        now = time.monotonic()
        if self._last_token:
            self.observer.token(now - self._last_token)
        else:
            self.observer.first_token(now - self.arrived)
        self._last_token = now
        if not self.request.stream:
            return
        with self._state:
            self._pending.append((index, delta))
            if self._scheduled:
                return  # they go with the answer that is being prepared; so a slow reader gets several tokens at once
            self._scheduled = True
        self.senders.submit(self._send_soon)

    def finish(self, error: RequestError | None) -> None:
        """The last answer; deltas that are still pending go first."""
        self._ended.set()
        if self.request.stream:
            self._send_pending()
        with self._sending:
            if error is None and not self.request.stream:
                self._send(self._whole)
            error = error or self.error
            if error is None:
                written = sum(len(sequence.written) for sequence in self.sequences)
                self.observer.answered(time.monotonic() - self.arrived, len(self.request.prompt), written)
            self._safely(lambda: self.reply.close(error))

    def _send_soon(self) -> None:
        self._ended.wait(max(0.0, self._last_sent + self.interval - time.monotonic()))
        self._send_pending()

    def _send_pending(self) -> None:
        with self._sending:
            with self._state:
                self._last_sent = time.monotonic()
                pending, self._pending = list(self._pending), deque()
                self._scheduled = False
            for index in range(len(self.sequences)):
                deltas = [delta for owner, delta in pending if owner == index]
                if deltas:
                    self._send(partial(self._piece, index, _merge(deltas)))

    def _send(self, make: Callable[[], Outputs]) -> None:
        """Make and send an answer; where it cannot be made, for its text cannot, the request ends with an error."""
        try:
            wanted = {name: value for name, value in make().items() if name in self.request.outputs}
        except Exception:
            log.exception("an answer could not be made")
            self.error = EngineError("internal error while writing the answer; see the server's log")
            return
        self._safely(lambda: self.reply.send(wanted))

    @staticmethod
    def _safely(call: Callable[[], None]) -> None:
        try:
            call()
        except Exception:
            log.info("an answer could not be sent; its caller is gone")

    def _piece(self, index: int, delta: Delta) -> Outputs:
        sequence = self.sequences[index]
        return {
            **self._common(),
            "text_output": _texts([sequence.show(delta)]),
            "output_ids": np.array(delta.tokens, np.int32),
            "finish_reason": _texts([delta.finish_reason or ""]),
            "cumulative_logprob": np.array([sequence.cumulative_logprob], np.float32),
            "logprobs": _texts([self._logprobs(delta.logprobs)]),
            "num_output_tokens": np.array([len(delta.tokens)], np.uint32),
            "index": np.array([index], np.int32),
        }

    def _whole(self) -> Outputs:
        lead = "" if self.request.exclude_input else self.request.prompt_text
        longest = max(len(sequence.written) for sequence in self.sequences)
        ids = np.full((len(self.sequences), longest), -1, np.int32)
        for row, sequence in zip(ids, self.sequences, strict=True):
            row[: len(sequence.written)] = sequence.written
        return {
            **self._common(),
            "text_output": _texts([lead + sequence.show_all() for sequence in self.sequences]),
            "output_ids": ids.reshape(-1),
            "finish_reason": _texts([str(sequence.finish_reason) for sequence in self.sequences]),
            "cumulative_logprob": np.array([s.cumulative_logprob for s in self.sequences], np.float32),
            "logprobs": _texts([self._logprobs(tuple(s.all_logprobs)) for s in self.sequences]),
            "num_output_tokens": np.array([len(s.written) for s in self.sequences], np.uint32),
            "index": np.arange(len(self.sequences), dtype=np.int32),
        }

    def _common(self) -> dict[str, np.ndarray]:
        return {
            "num_input_tokens": np.array([len(self.request.prompt)], np.uint32),
            "num_cached_tokens": np.array([self.sequences[0].cached_tokens], np.uint32),
        }

    def _logprobs(self, found: Sequence[TokenLogprob]) -> str:
        """As JSON: for each token its text, id and probability, and the likeliest others."""
        if self.request.parameters.logprobs is None:
            return "null"

        def entry(token: int, logprob: float) -> dict[str, object]:
            text = self.tokenizer.decode([token], skip_special_tokens=False)
            return {"token_id": token, "token": text, "logprob": round(logprob, 6)}

        return json.dumps([{**entry(i.token, i.logprob), "top": [entry(*other) for other in i.top]} for i in found])


def _merge(deltas: list[Delta]) -> Delta:
    return Delta(
        tuple(token for delta in deltas for token in delta.tokens),
        tuple(logprob for delta in deltas for logprob in delta.logprobs),
        deltas[-1].finish_reason,
        None if deltas[0].text is None else "".join(delta.text or "" for delta in deltas),
    )


def _texts(values: list[str]) -> np.ndarray:
    return np.array([value.encode() for value in values], np.object_)


@dataclass(slots=True, eq=False)
class LlmService:
    """Owns the batcher and the loop of one `llm` instance."""

    facts: LlmFacts
    limits: LlmLimits
    engine: CausalEngine
    tokenizer: Tokenizer
    structures: StructureFactory
    observer: LlmObserver
    draft_engine: CausalEngine | None = None
    _draft: DraftModel | None = None
    _scheduler: LlmScheduler = field(init=False)
    _batcher: InFlightBatcher[LlmTask] = field(init=False)
    _senders: ThreadPoolExecutor = field(init=False)
    _preparing: ThreadPoolExecutor = field(init=False)

    def __post_init__(self) -> None:
        self.observer.start(self.facts)
        cache = PrefixCache(self.limits.prefix_cache_megabytes * 2**20)
        self._scheduler = LlmScheduler(
            self.engine,
            cache,
            self.limits.max_rows,
            self.facts.context_length,
            self.limits.prefill_chunk,
            self.limits.idle_prefill_chunk,
            self.limits.speculation_rows,
            lambda tick: self.observer.tick(tick, self._scheduler),
        )
        if self.draft_engine is not None:
            rows = self.limits.speculation_rows
            capacity = self.draft_engine.tokens // (rows + 1)
            self._draft = DraftModel(self.draft_engine, rows, capacity, self.facts.vocabulary, self.limits.prefill_chunk)
        elif self.limits.speculation == "draft":
            raise ValueError("parameter speculation: draft needs a model that was exported with --draft")
        self._senders = ThreadPoolExecutor(max_workers=self.limits.max_rows, thread_name_prefix="llm-send")
        self._preparing = ThreadPoolExecutor(max_workers=2, thread_name_prefix="llm-prepare")
        self._batcher = InFlightBatcher(
            self._advance,
            self.observer,
            max_inflight=self.limits.max_rows,
            max_queue=self.limits.max_queue,
            name="llm",
            rest=self._scheduler.rest,
        )

    def handle(self, inputs: Inputs, reply: Reply) -> None:
        """Take one request; returns at once, `reply` follows."""
        self._preparing.submit(self._prepare, inputs, reply)

    def _prepare(self, inputs: Inputs, reply: Reply) -> None:
        try:
            longest = self._scheduler.longest
            request = parse_llm_request(
                inputs, self.tokenizer, self.facts, self.limits, longest, has_draft=self._draft is not None
            )
            interval = self.limits.stream_interval_seconds
            task = LlmTask(request, reply, self._senders, self.observer, self.tokenizer, interval)
            task.sequences = [self._sequence(task, index) for index in range(len(request.samplings))]
            self._batcher.submit(task, timeout_seconds=request.timeout_seconds)
        except RequestError as error:
            self._refuse(error, reply)
        except Exception:
            log.exception("a request could not be read")
            self._refuse(EngineError("internal error while reading the request; see the server's log"), reply)

    def _sequence(self, task: LlmTask, index: int) -> GeneratedSequence:
        request = task.request
        parameters = request.parameters
        structure = None
        if request.structure is not None:
            kind, value = request.structure
            try:
                structure = self.structures.compile(kind, value)
            except ValueError as error:
                raise InvalidRequestError.of(f"structured_outputs.{kind}", value, f"a grammar that compiles: {error}") from None
        guesser = self._guesser(request.speculation) if structure is None else None
        return GeneratedSequence(
            prompt=list(request.prompt),
            sampling=request.samplings[index],
            max_tokens=request.max_tokens,
            stop_ids=request.stop_ids,
            text=TextStream(
                self.tokenizer,
                tuple(parameters.stop),
                parameters.include_stop_str_in_output,
                parameters.skip_special_tokens,
            ),
            emit=lambda delta: task.emit(index, delta),
            min_tokens=parameters.min_tokens,
            logprobs=parameters.logprobs,
            structure=structure,
            guesser=guesser,
            meter=SpeculationMeter(self.limits.speculation_tokens) if guesser is not None else None,
        )

    def _guesser(self, speculation: str) -> Guesser | None:
        if speculation == "draft":
            assert self._draft is not None
            return DraftGuesser(self._draft)
        return PromptLookup() if speculation == "ngram" else None

    def _advance(self, tasks: Sequence[LlmTask]) -> None:
        self._scheduler.advance([sequence for task in tasks for sequence in task.sequences if not sequence.finished])

    def _refuse(self, error: RequestError, reply: Reply) -> None:
        self.observer.refused(error.outcome)
        reply.close(error)

    def stop(self) -> None:
        """Fail what is in flight and release the threads."""
        self._preparing.shutdown(wait=True)
        self._batcher.stop()
        self._senders.shutdown(wait=True)
        self.observer.stop()
