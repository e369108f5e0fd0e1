"""The steps of a request, between which its driver waits, and the reader that makes results of its answers; decides nothing."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from nereid_client.transport import Ended, Event, Tensors

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
Item = tuple[int, Event]
"""What becomes of a call, and which call it was."""
CANCEL: Item = (0, Ended())
"""Put into a run's mailbox, it cancels the run."""


class Reader(Protocol[T_co]):
    """Makes results of answers."""

    def read(self, outputs: Tensors) -> T_co | None:
        """One answer's result; None where there is nothing new in it. Raises ServerError where a replay differs."""

    def again(self) -> None:
        """The answers will come from the beginning."""

    def missing(self) -> str | None:
        """What has not come yet, None where all is there."""


@dataclass(frozen=True, slots=True)
class Wait:
    """Send the next item of the mailbox; None once these seconds (None: for ever) have passed without one."""

    seconds: float | None


@dataclass(frozen=True, slots=True)
class Show(Generic[T]):
    """Give this to the caller."""

    value: T


Steps = Generator[Wait | Show[T], Item | None, None]
