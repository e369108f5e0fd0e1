"""`llm` as plain Python: raw inputs in, streams of named output arrays out; the engine and its loop are in a worker process."""

from __future__ import annotations

import logging
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from nereid.engines.worker import WorkerOptions
from nereid.flow.batcher import InFlightBatcher, Ticket
from nereid.flow.errors import DeadlineError, EngineError, PoisonousRequestError, RequestError
from nereid.flow.flight_record import Flight, FlightRecord, digest_of
from nereid.flow.replies import Reply, answer_question, is_question
from nereid.flow.request_ids import NamedThreads
from nereid.flow.request_parameters import REQUEST_PARAMETERS
from nereid.flow.runs import Runs
from nereid.flow.state_folder import state_file
from nereid.llm.answers import Answer
from nereid.llm.crew import Crew
from nereid.llm.engine import longest_sequence
from nereid.llm.fingerprint import system_fingerprint
from nereid.llm.observer import LlmObserver
from nereid.llm.pace import StreamPace
from nereid.llm.requests import LlmRequest, parse_llm_request
from nereid.llm.sent import Inputs
from nereid.llm.settings import DRAFT_FOLDER, LlmFacts, LlmLimits, read_tokenizer
from nereid.llm.tasks import LlmTask
from nereid.llm.text import TextStream, TokenTexts

log = logging.getLogger(__name__)

_GROWTH_BYTES = 2 * 2**30
"""What a worker may take beside its KV cache and its prefix cache before it is taken for a runaway."""
_UNREAD = 64
"""Threads for answers whose requests have ended while their readers are slow, beside one for each that is in flight."""
_SAME_REQUEST = ("task", "text_input", "input_ids", "sampling_parameters", "max_tokens", REQUEST_PARAMETERS)
"""Inputs that say what is asked for: a request that is tried again has the same."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LlmModel:
    """One exported model, ready to be served: `function` is what its worker process runs."""

    name: str
    facts: LlmFacts
    limits: LlmLimits
    tokenizer: Tokenizer
    settings: dict[str, object]
    fingerprint: str
    has_draft: bool = False
    function: str = "nereid.llm.worker:run"

    @classmethod
    def read(cls, name: str, folder: Path, limits: LlmLimits, gpu: int | None) -> LlmModel:
        """Raises ValueError where the limits ask for what was not exported."""
        if not (folder / limits.engine_file).is_file():
            raise ValueError(f"parameter engine: {limits.engine} needs {limits.engine_file}, which {folder} has not; export it")
        if limits.engine == "openvino" and gpu is not None:
            raise ValueError("instance_group: KIND_GPU is not allowed with engine openvino; it must be KIND_CPU")
        has_draft = (folder / DRAFT_FOLDER / limits.engine_file).is_file()
        if limits.speculation == "draft" and not has_draft:
            raise ValueError("parameter speculation: draft needs a model that was exported with --draft")
        return cls(
            name=name,
            facts=LlmFacts.read(folder),
            limits=limits,
            tokenizer=read_tokenizer(folder),
            settings={"folder": str(folder), "limits": asdict(limits), "gpu": gpu},
            fingerprint=system_fingerprint(folder, limits, gpu=gpu),
            has_draft=has_draft,
        )

    @property
    def longest(self) -> int:
        """Tokens of prompt and answer together."""
        return longest_sequence(self.facts.context_length, self.limits.kv_tokens)

    def worker_options(self) -> WorkerOptions:
        memory = self.limits.kv_tokens * self.facts.kv_bytes_per_token + self.limits.prefix_cache_megabytes * 2**20
        return WorkerOptions(
            function=self.function,
            name=self.name,
            settings=self.settings,
            watchdog_seconds=self.limits.watchdog_seconds,
            grows_bytes=2 * memory + _GROWTH_BYTES,
            environment=_kernel_cache(),
        )


def _kernel_cache() -> dict[str, str]:
    """Where compiled kernels are kept if not beside their source: to compile them again takes longer than all else of a start."""
    kernels = state_file("kernels")
    if kernels is None or os.access(Path(__file__).parent, os.W_OK) or "NUMBA_CACHE_DIR" in os.environ:
        return {}
    return {"NUMBA_CACHE_DIR": str(kernels)}


@dataclass(slots=True)
class _Events:
    """The batcher's events as metrics; outcomes are counted when answers are sent, ticks where they happen."""

    observer: LlmObserver

    def admitted(self, queue_seconds: float) -> None:
        self.observer.admitted(queue_seconds)

    def ticked(self, seconds: float, rows: int) -> None: ...

    def occupancy(self, active: int, queued: int) -> None:
        self.observer.occupancy(active, queued)

    def finished(self, outcome: str, seconds: float) -> None: ...


def _digest(inputs: Inputs) -> bytes:
    """Of what a request asks for."""
    asked = [(name, np.asarray(inputs[name])) for name in _SAME_REQUEST if name in inputs]
    return digest_of(part for name, value in asked for part in (name.encode(), repr(value.tolist()).encode()))


@dataclass(slots=True, eq=False)
class LlmService:
    """Owns the queue, the answering and the worker of one `llm` instance; raises ValueError where no worker can start."""

    model: LlmModel
    observer: LlmObserver
    record: FlightRecord | None = None
    _runs: Runs = field(default_factory=Runs)
    _texts: TokenTexts = field(init=False)
    _pace: StreamPace = field(init=False)
    _crew: Crew = field(init=False)
    _batcher: InFlightBatcher[LlmTask] = field(init=False)
    _senders: NamedThreads = field(init=False)
    _preparing: NamedThreads = field(init=False)
    _asking: NamedThreads = field(init=False)

    def __post_init__(self) -> None:
        limits = self.model.limits
        self.observer.start(self.model.facts)
        self._texts = TokenTexts(self.model.tokenizer)
        self._pace = StreamPace(limits.stream_interval_seconds, limits.stream_answers_per_second)
        self._crew = Crew(self.model.worker_options(), self.observer, self._runs)
        try:
            self._crew.worker.wait_ready()
        except ValueError:
            self._crew.stop()
            raise
        threads = limits.max_rows + limits.max_queue + _UNREAD
        self._senders = NamedThreads(max_workers=threads, thread_name_prefix="llm-send")
        self._preparing = NamedThreads(max_workers=2, thread_name_prefix="llm-prepare")
        self._asking = NamedThreads(max_workers=1, thread_name_prefix="llm-watch")
        self._batcher = InFlightBatcher(
            self._crew.advance,
            _Events(self.observer),
            max_inflight=limits.max_rows,
            max_queue=limits.max_queue,
            name="llm",
            displaces=True,
            rest=self._crew.rest,
        )

    def handle(self, inputs: Inputs, reply: Reply) -> None:
        """Take one request; returns at once, `reply` follows."""
        if is_question(inputs):
            self._asking.submit(answer_question, inputs, reply, self._runs, self.model.fingerprint)
            return
        try:
            ticket = self._batcher.take_ticket(rows=1)  # who is not read yet waits like any other
        except RequestError as error:
            self._senders.submit(self._refuse, error, reply)
        else:
            self._preparing.submit(self._prepare, inputs, reply, ticket)

    @property
    def worker_pid(self) -> int | None:
        return self._crew.worker.pid

    def _prepare(self, inputs: Inputs, reply: Reply, ticket: Ticket[LlmTask]) -> None:
        flight = Flight(self.record, _digest(inputs))
        try:
            if flight.is_refused:
                raise PoisonousRequestError("the request has ended the model's process twice; it is not tried again")
            flight.enter()
            request = self._parse(inputs)
            task = self._task(request, reply)
            task.deaths = int(flight.is_suspect)
            task.entered, task.ended = flight.enter, lambda error: self._end(task, flight, error)
            flight.wait()
            if request.run_id is not None:
                self._runs.begin(request.run_id, task)
            if not self._batcher.attach(ticket, task, timeout_seconds=request.timeout_seconds, priority=request.priority):
                error = DeadlineError("timeout_seconds: the request could not be read in time")
                self._end(task, flight, error)
                raise error
            self._batcher.redeem(ticket)
            self._crew.poke()
        except RequestError as error:
            flight.leave()
            self._batcher.give_back(ticket)
            self._refuse(error, reply)
        except Exception:
            log.exception("a request could not be read")
            flight.leave()
            self._batcher.give_back(ticket)
            self._refuse(EngineError("internal error while reading the request; see the server's log"), reply)

    def _parse(self, inputs: Inputs) -> LlmRequest:
        model = self.model
        return parse_llm_request(inputs, model.tokenizer, model.facts, model.limits, model.longest, has_draft=model.has_draft)

    def _task(self, request: LlmRequest, reply: Reply) -> LlmTask:
        model = self.model
        answers = [
            Answer(
                text=TextStream(model.tokenizer, skip_special_tokens=request.skip_special_tokens, context=request.prompt),
                stop_ids=request.stop_ids,
            )
            for _ in request.samplings
        ]
        return LlmTask(
            request, reply, self._senders, self.observer, self._texts, self._pace, answers, fingerprint=model.fingerprint
        )

    def _end(self, task: LlmTask, flight: Flight, error: RequestError | None) -> None:
        flight.leave()
        if task.request.run_id is not None:
            self._runs.end(task.request.run_id, task, failed=error is not None)

    def _refuse(self, error: RequestError, reply: Reply) -> None:
        self.observer.refused(error.outcome)
        reply.close(error)

    def stop(self) -> None:
        """Fail what is in flight, end the worker, and release the threads."""
        self._preparing.shutdown(wait=True)
        self._batcher.stop()
        self._crew.stop()
        self._senders.shutdown(wait=True)
        self._asking.shutdown(wait=True)
        self.observer.stop()
        if self.record is not None:
            self.record.close()
