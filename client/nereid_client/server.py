"""What one client has of its server: the transport, how patient it is, what it has learned and counted; decides nothing."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

import numpy as np

from nereid_client.errors import InvalidRequestError, NereidError
from nereid_client.transport import Call, Ended, Event, Failed, Tensors, Transport


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayPolicy:
    """`retries` after refusals, `backoff` seconds before the first, doubled each time; `replays` after deaths.

    After a death, and where a server that was there has gone, it is waited for: at most `heal_seconds`. Without `retry_full` a
    server's full queue is told at once: for who stands between callers and server, and whose callers try again themselves.
    """

    retries: int = 3
    retry_full: bool = True
    backoff: float = 0.2
    replays: int = 3
    heal_seconds: float = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """A request as it is sent at every attempt; `holder` is the model that keeps its run and can be asked for it.

    `request_id` is Triton's, which stands in logs; `run_id` is a secret of who asked.
    """

    model: str
    holder: str
    run_id: str
    request_id: str
    tensors: Tensors
    decoupled: bool
    batched: bool
    holder_decoupled: bool
    timeout: float | None


@dataclass(slots=True)
class Statistics:
    """Counts of one client: requests, attempts after refusals and after deaths, requests given up after their last replay."""

    requests: int = 0
    retries: int = 0
    replays: int = 0
    lost: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def count(self, name: str) -> None:
        with self._lock:
            setattr(self, name, getattr(self, name) + 1)


@dataclass(slots=True)
class Known:
    """Learned from answers: whether there has been one, and which models are too old for run ids and questions."""

    heard: bool = False
    without_run_id: set[str] = field(default_factory=set)
    without_watch: set[str] = field(default_factory=set)


@dataclass(slots=True, kw_only=True)
class Server:
    """Shared by all requests of a client."""

    transport: Transport
    policy: ReplayPolicy
    statistics: Statistics = field(default_factory=Statistics)
    known: Known = field(default_factory=Known)
    _asides: int = 0
    _said: threading.Condition = field(default_factory=threading.Condition)

    def tensors_of(self, work: Work, remaining: float | None) -> Tensors:
        """The request's inputs with its run id and the seconds that are left."""
        tensors = dict(work.tensors)
        if work.model not in self.known.without_run_id:
            tensors["run_id"] = _shaped(_bytes(work.run_id), batched=work.batched)
        if remaining is not None:
            tensors["timeout_seconds"] = _shaped(np.array([remaining], np.float32), batched=work.batched)
        return tensors

    def watches(self, work: Work) -> bool:
        """Whether the run can be asked for."""
        return work.model not in self.known.without_run_id and work.holder not in self.known.without_watch

    def question(self, work: Work, name: str, seconds: float) -> Call:
        """`watch` or `cancel` of a run."""
        tensors = {name: _shaped(_bytes(work.run_id), batched=not work.holder_decoupled)}
        return Call(model=work.holder, tensors=tensors, decoupled=work.holder_decoupled, timeout=seconds)

    def learn(self, work: Work, error: NereidError) -> bool:
        """Whether the error only says that a model knows no run ids, or no questions; it is not asked for them again."""
        if not isinstance(error, InvalidRequestError):
            return False
        for name, model, unable in (
            ("run_id", work.model, self.known.without_run_id),
            ("watch", work.holder, self.known.without_watch),
        ):
            if "unexpected inference input" in str(error) and f"'{name}'" in str(error) and model not in unable:
                unable.add(model)
                return True
        return False

    def say_aside(self, call: Call) -> None:
        """A call whose answer nobody waits for, except `finish`, a little."""

        def tell(event: Event) -> None:
            if isinstance(event, Ended | Failed):
                with self._said:
                    self._asides -= 1
                    self._said.notify_all()

        with self._said:
            self._asides += 1
        try:
            self.transport.start(call, tell)
        except NereidError as error:
            tell(Failed(error))

    def finish(self, seconds: float) -> None:
        """Wait until what was said aside has arrived, at most so long."""
        with self._said:
            self._said.wait_for(lambda: self._asides == 0, timeout=seconds)


def _bytes(text: str) -> np.ndarray:
    return np.array([text.encode()], dtype=np.object_)


def _shaped(value: np.ndarray, *, batched: bool) -> np.ndarray:
    return value[None] if batched else value
