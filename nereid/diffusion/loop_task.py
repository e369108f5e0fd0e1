"""What the denoising loop reads and writes of a request: an image's, or another's that is denoised."""

from __future__ import annotations

from typing import Protocol

from nereid.diffusion.state import ImageRun
from nereid.flow.errors import RequestError


class Asked(Protocol):
    """What the loop reads of a request."""

    @property
    def priority(self) -> int: ...

    @property
    def deadline_seconds(self) -> float | None:
        """A soft goal, from arrival on."""
        ...


class LoopTask(Protocol):
    """A request whose runs are advanced."""

    error: RequestError | None
    started: float | None

    @property
    def request(self) -> Asked: ...

    @property
    def runs(self) -> list[ImageRun]: ...

    @property
    def due(self) -> float:
        """On the monotonic clock; infinite where nothing presses."""
        ...

    @property
    def request_id(self) -> str: ...

    def note_step(self) -> None:
        """A run of it is a step further."""
