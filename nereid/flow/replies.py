"""The way back of a decoupled model's request, what is asked of a run by its id, and how a request comes in; knows no model."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Protocol, TypeVar

import numpy as np

from nereid.flow.errors import EngineError, RequestError
from nereid.flow.runs import RunState, read_id

log = logging.getLogger(__name__)

Outputs = Mapping[str, np.ndarray]


class Reply(Protocol):
    """One request's answers; called from one thread at a time, never from a tick thread."""

    def send(self, outputs: Outputs) -> None: ...

    def close(self, error: Exception | None = None) -> None: ...

    def is_cancelled(self) -> bool: ...


R = TypeVar("R", bound=Reply)


class Asked(Protocol):
    """Who knows the runs: nereid.flow.runs, or a batcher."""

    def state(self, name: str, /) -> RunState: ...

    def cancel(self, name: str, /) -> RunState: ...


def take(
    inputs: Outputs,
    reply: R,
    runs: Asked,
    fingerprint: str,
    start: Callable[[Outputs, R], None],
    refuse: Callable[[RequestError, R], None],
) -> None:
    """Answer what asks of a run; start any other request, and refuse it with what that raises."""
    if is_question(inputs):
        answer_question(inputs, reply, runs, fingerprint)
        return
    try:
        start(inputs, reply)
    except RequestError as error:
        refuse(error, reply)
    except Exception:
        log.exception("a request could not be read")
        refuse(EngineError("internal error while reading the request; see the server's log"), reply)


def is_question(inputs: Outputs) -> bool:
    """Whether a request asks of a run, and for no work."""
    return "watch" in inputs or "cancel" in inputs


def answer_question(inputs: Outputs, reply: Reply, runs: Asked, fingerprint: str) -> None:
    """Say what has become of a run, or what it was until it was cancelled; raises nothing, and is no request that counts."""
    try:
        try:
            cancel, watch = read_id(inputs, "cancel"), read_id(inputs, "watch")
            state = runs.cancel(cancel) if cancel is not None else runs.state(str(watch))
            said = {"run_state": str(state), "system_fingerprint": fingerprint}
            reply.send({name: np.array([value.encode()], np.object_) for name, value in said.items()})
            reply.close()
        except RequestError as error:
            reply.close(error)
    except Exception:
        log.info("a watch or cancel request was not answered: its caller is gone")
