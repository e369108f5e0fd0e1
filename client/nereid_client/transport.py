"""What a client asks of a protocol: calls that are started, tell what becomes of them, and can be given up; knows no models."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

from nereid_client.errors import NereidError
from nereid_client.images import Tensors

__all__ = ["Answered", "Call", "Cancel", "Ended", "Event", "Failed", "Tell", "Tensors", "Transport"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One call of a model. A decoupled model may answer any number of times; `timeout` is the seconds until it is given up.

    `ends_by_id`: who cancels it also tells the server by the run's id, so that the call soon ends by itself.
    `request_id` is the server's name for it, in its logs.
    """

    model: str
    tensors: Tensors
    decoupled: bool
    timeout: float | None = None
    ends_by_id: bool = False
    request_id: str = ""


@dataclass(frozen=True, slots=True)
class Answered:
    """One answer; more may follow."""

    outputs: Tensors


@dataclass(frozen=True, slots=True)
class Ended:
    """The call is over, and went well."""


@dataclass(frozen=True, slots=True)
class Failed:
    """The call is over, and did not go well."""

    error: NereidError


Event = Answered | Ended | Failed
Tell = Callable[[Event], None]
"""Takes what became of a call; called from any thread, returns at once."""
Cancel = Callable[[], object]


class Transport(Protocol):
    """A protocol's side of a client; pass your own to `Client` or `AsyncClient` to test without a server.

    Nothing here waits: `tell` is called with every answer and then, exactly once, with Ended or Failed. A call that was
    cancelled need not tell anything more.
    """

    def start(self, call: Call, tell: Tell) -> Cancel: ...

    def probe(self, model: str | None, timeout: float, tell: Tell) -> None:
        """Tell Ended if the model is loaded (None: if the server is up), else Failed."""

    def close(self) -> Awaitable[None] | None: ...
