"""The form in which an error crosses Triton: its sentence, then status, kind and field in brackets; parsed here and nowhere else.

Triton's streams carry a sentence and no code, an ensemble and a calling model wrap the sentence in words of their own. So what
a program needs to know stands at the end, in one form: `seed: -1 is not allowed; ... [nereid: INVALID_ARG invalid seed]`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum


class Status(StrEnum):
    """Names of Triton's error codes (TRITONSERVER_ERROR_*)."""

    INVALID_ARG = "INVALID_ARG"
    UNAVAILABLE = "UNAVAILABLE"
    CANCELLED = "CANCELLED"
    INTERNAL = "INTERNAL"


class ErrorKind(StrEnum):
    """Why a request failed; each kind has one status.

    `queue_full` and `stopping` may be tried again later, `lost` (what computed it has died) at once, the others not. `too_long`
    is an `invalid` that programs treat in a way of its own: prompt and answer do not fit into the model's context.
    """

    INVALID = "invalid"
    TOO_LONG = "too_long"
    QUEUE_FULL = "queue_full"
    STOPPING = "stopping"
    DEADLINE = "deadline"
    CANCELLED = "cancelled"
    LOST = "lost"
    POISONOUS = "poisonous"
    ENGINE = "engine"

    @property
    def status(self) -> Status:
        return _STATUS[self]


_STATUS = {
    ErrorKind.INVALID: Status.INVALID_ARG,
    ErrorKind.TOO_LONG: Status.INVALID_ARG,
    ErrorKind.QUEUE_FULL: Status.UNAVAILABLE,
    ErrorKind.STOPPING: Status.UNAVAILABLE,
    ErrorKind.DEADLINE: Status.UNAVAILABLE,
    ErrorKind.CANCELLED: Status.CANCELLED,
    ErrorKind.LOST: Status.UNAVAILABLE,
    ErrorKind.POISONOUS: Status.INVALID_ARG,
    ErrorKind.ENGINE: Status.INTERNAL,
}
_FORM = re.compile(r"^(?P<sentence>.*) \[nereid: (?P<status>[A-Z_]+) (?P<kind>[a-z_]+)(?: (?P<field>[\w.\[\]-]+))?\]", re.DOTALL)


@dataclass(frozen=True, slots=True)
class WireError:
    """One error as it travels; `field` is the request's field that is to blame, where one is."""

    sentence: str
    kind: ErrorKind
    field: str | None = None

    def __str__(self) -> str:
        """The form on the wire."""
        field = f" {self.field}" if self.field else ""
        return f"{self.sentence} [nereid: {self.kind.status} {self.kind}{field}]"

    @classmethod
    def parse(cls, message: str) -> WireError | None:
        """What `str` wrote, whatever was wrapped around it; None for a message that is none of ours.

        The innermost sentence is kept: an ensemble's or a caller's prefix names models that a user does not know.
        """
        found = _FORM.match(message)
        if found is None:
            return None
        try:
            kind = ErrorKind(found["kind"])
        except ValueError:
            return None
        return cls(_unwrapped(found["sentence"]), kind, found["field"])


_WRAPPINGS = (
    re.compile(r"^in ensemble '[^']*', "),
    re.compile(r"^Failed to process the request\(s\) for model '[^']*', message: "),
)


def _unwrapped(sentence: str) -> str:
    changed = True
    while changed:
        changed = False
        for wrapping in _WRAPPINGS:
            shorter = wrapping.sub("", sentence)
            changed, sentence = changed or shorter != sentence, shorter
    return sentence
