"""A language model's worker process: its engine, its loop and its KV cache; takes orders, gives deltas, answers nobody."""

from __future__ import annotations

import logging
import os
import queue
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from nereid.engines.channel import Message
from nereid.engines.digests import verify_model
from nereid.engines.worker_main import Seat
from nereid.flow.awake_time import AwakeTimer
from nereid.flow.errors import InvalidRequestError, RequestError
from nereid.flow.metrics import Recorder
from nereid.llm.bad_words import BadWords
from nereid.llm.deep_stack import run_deep
from nereid.llm.loading import LoadedModel, check_widths, load_model
from nereid.llm.observer import LlmObserver
from nereid.llm.orders import DROP, REFUSED, START, Order, deltas, metric
from nereid.llm.prompt_means import PromptMean
from nereid.llm.prompt_scores import ScoredPrompt
from nereid.llm.scheduler import LlmScheduler
from nereid.llm.sequences import Delta, GeneratedSequence
from nereid.llm.settings import TOKENIZER_FILE, LlmFacts, LlmLimits, read_tokenizer
from nereid.llm.speculation import DraftModel, DraftProposer, PromptLookup, Proposer, SpeculationMeter
from nereid.llm.structure import Structure, StructureFactory
from nereid.llm.text import TextStream
from nereid_protocol.metric import Metric

log = logging.getLogger(__name__)

_COMPILED = "compiled"
_RUNAWAY_EXIT = 7


def run(seat: Seat) -> None:
    """Serve the exported model of `settings["folder"]`."""
    folder = Path(seat.settings["folder"])
    verify_model(folder.parent)  # here too: the worker is started again and again, its model's process once
    facts, limits = LlmFacts.read(folder), LlmLimits(**seat.settings["limits"])
    LlmLoop(
        seat=seat,
        facts=facts,
        limits=limits,
        model=load_model(folder, facts, limits, seat.settings["gpu"]),
        tokenizer=read_tokenizer(folder),
        structures=StructureFactory.of(folder / TOKENIZER_FILE, facts.vocabulary, facts.eos_token_ids),
    ).run()


@dataclass(slots=True, eq=False, kw_only=True)
class LlmLoop:
    """Ticks while there are sequences; grammars are compiled on a thread beside it, once for all answers of a request."""

    seat: Seat
    facts: LlmFacts
    limits: LlmLimits
    model: LoadedModel
    tokenizer: Tokenizer
    structures: StructureFactory | None
    grammar_seconds: float = 5.0
    _draft: DraftModel | None = None
    _scheduler: LlmScheduler = field(init=False)
    _inbox: queue.SimpleQueue[Message] = field(default_factory=queue.SimpleQueue)
    _compiled: queue.SimpleQueue[tuple[int, Order, Structure]] = field(default_factory=queue.SimpleQueue)
    _compiling: set[int] = field(default_factory=set)
    _compiler: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, "compile"))
    _tasks: dict[int, list[GeneratedSequence]] = field(default_factory=dict)
    _events: list[tuple[int, int, int, Delta]] = field(default_factory=list)

    def __post_init__(self) -> None:
        draft = self.model.draft
        check_widths(self.facts, self.tokenizer, self.model.vocabulary, draft)
        observer = LlmObserver(Recorder(self._send_metric))
        observer.start(self.facts)
        limits = self.limits
        self._scheduler = LlmScheduler(
            self.model.memory,
            limits.prefill_chunk,
            limits.idle_prefill_chunk,
            limits.speculation_rows,
            lambda tick: observer.tick(tick, self._scheduler),
        )
        if draft is not None:
            rows = limits.speculation_rows
            self._draft = DraftModel(draft, rows, draft.tokens // (rows + 1), self.facts.vocabulary, limits.prefill_chunk)

    def run(self) -> None:
        """Until the process ends, which it does when the answering side closes the pair."""
        self.seat.take_into(self._inbox)
        self.seat.ready()
        resting = changed = False
        while True:
            self.seat.busy = bool(self._tasks) or resting
            changed = self._take_orders(wait=not self.seat.busy) or changed
            self.seat.busy = True  # a first tick may hang like any other
            if self._tasks:
                self._scheduler.advance([s for sequences in self._tasks.values() for s in sequences if not s.finished])
                self._send_events()
                resting, changed = True, False
            elif changed:
                self._scheduler.advance([])  # what was dropped gives its rows back, and the metrics tell
                resting, changed = True, False
            elif resting:
                resting = self._scheduler.rest()
            self.seat.ticks += 1

    def _take_orders(self, *, wait: bool) -> bool:
        """Begin and drop what was asked for; True where something was dropped."""
        dropped = False
        while wait or not self._inbox.empty():
            message, wait = self._inbox.get(), False
            task = int(message.body["task"])
            match message.kind:
                case kind if kind == START:
                    order = Order.read(message)
                    if order.structure is None:
                        self._begin(task, order, None)
                    else:
                        self._compiling.add(task)
                        self._compiler.submit(run_deep, partial(self._compile, task, order))
                case kind if kind == DROP:
                    self._compiling.discard(task)
                    dropped = self._tasks.pop(task, None) is not None or dropped
                case kind if kind == _COMPILED:
                    self._begin_compiled()
        return dropped

    def _begin(self, task: int, order: Order, structure: Structure | None) -> None:
        copies = [None if structure is None else structure.copy() for _ in order.samplings]
        allowed = self._allowed(order)  # once for all answers: there may be as many as the vocabulary has
        self._tasks[task] = [self._sequence(task, order, index, copy, allowed) for index, copy in enumerate(copies)]

    def _sequence(
        self, task: int, order: Order, index: int, structure: Structure | None, allowed: NDArray[np.bool_] | None = None
    ) -> GeneratedSequence:
        proposer = self._proposer(order.speculation) if structure is None else None
        made = GeneratedSequence(
            prompt=list(order.prompt),
            sampling=order.samplings[index],
            max_tokens=order.max_tokens,
            stop_ids=frozenset(order.stop_ids),
            text=TextStream(self.tokenizer, order.stop, order.include_stop, order.skip_special_tokens, order.prompt),
            emit=lambda delta: self._note(task, index, made, delta),
            min_tokens=order.min_tokens,
            allowed=allowed,
            bad_words=BadWords.of(order.bad_words),
            scored=order.scored,
            top_logprobs=order.top_logprobs,
            logprob_token_ids=order.logprob_token_ids,
            scored_prompt=self._scored_prompt(order) if index == 0 else None,
            mean=PromptMean() if order.embeds else None,
            structure=structure,
            proposer=proposer,
            adapter=order.adapter,
            cache_salt=order.cache_salt,
            priority=order.priority,
            meter=SpeculationMeter(self.limits.speculation_tokens) if proposer is not None else None,
        )
        return made

    def _allowed(self, order: Order) -> NDArray[np.bool_] | None:
        """All that may be drawn; None: everything."""
        if not order.allowed_token_ids:
            return None
        allowed = np.zeros(self.model.vocabulary, np.bool_)
        allowed[list(order.allowed_token_ids)] = True
        return allowed

    def _scored_prompt(self, order: Order) -> ScoredPrompt | None:
        """Of a request's answers the first has its prompt scored: it is the same for all."""
        if order.prompt_logprobs is None:
            return None
        return ScoredPrompt(list(order.prompt), order.prompt_logprobs, self.model.vocabulary)

    def _proposer(self, speculation: str) -> Proposer | None:
        if speculation == "draft":
            assert self._draft is not None
            return DraftProposer(self._draft)
        return PromptLookup() if speculation == "ngram" else None

    # --- what goes back ---

    def _note(self, task: int, index: int, sequence: GeneratedSequence, delta: Delta) -> None:
        self._events.append((task, index, sequence.cached_tokens, delta))

    def _send_events(self) -> None:
        if self._events:
            self.seat.channel.send(deltas(self._events))
            self._events = []
        for task, sequences in list(self._tasks.items()):
            error = next((s.error for s in sequences if s.error is not None), None)
            if error is not None:  # this request alone; its other answers go with it
                self._refuse(task, error)
            if error is not None or all(s.finished for s in sequences):
                del self._tasks[task]

    def _send_metric(self, found: Metric, value: float, labels: Mapping[str, str]) -> None:
        self.seat.channel.send(metric(found.name, value, labels))

    # --- grammars ---

    def _compile(self, task: int, order: Order) -> None:
        """Compile a grammar and find its first tokens; one that comes to no end costs this process, and nobody else anything.

        Native code cannot be interrupted, and a runaway grammar takes ever more memory: so the request is refused by name, and
        the process ends; the others' answers go on in the next one.
        """
        assert order.structure is not None
        assert self.structures is not None
        wanted = order.structure
        field, value = wanted.field, wanted.value
        allowed = f"a grammar that is compiled, and its first tokens found, within {self.grammar_seconds:g} s"
        timer = AwakeTimer(self.grammar_seconds, partial(self._run_away, task, field, value, allowed))
        timer.start()
        try:
            structure = self.structures.compile(wanted.kind, value, wanted.whitespace)
            structure.copy().allowed()
            self._compiled.put((task, order, structure))
            self._inbox.put(Message(_COMPILED, {"task": task}))
        except ValueError as error:
            self._refuse(task, InvalidRequestError.of(field, value, f"a grammar that compiles: {error}"))
        except Exception:
            log.exception("request %s: its grammar could not be compiled", order.request_id)
            self._refuse(task, InvalidRequestError.of(field, value, "a grammar that compiles"))
        finally:
            timer.cancel()

    def _run_away(self, task: int, field: str, value: object, allowed: str) -> None:
        self._refuse(task, InvalidRequestError.of(field, value, allowed), ends=True)
        time.sleep(0.2)  # the writer's last message
        os._exit(_RUNAWAY_EXIT)

    def _refuse(self, task: int, error: RequestError, *, ends: bool = False) -> None:
        """Refuse a request; `ends`: and this process ends by it, so that no other is to blame."""
        self.seat.channel.send(Message(REFUSED, {"task": task, "error": error.wire(), "ends": ends}))

    def _begin_compiled(self) -> None:
        task, order, structure = self._compiled.get()
        if task in self._compiling:
            self._compiling.discard(task)
            self._begin(task, order, structure)
