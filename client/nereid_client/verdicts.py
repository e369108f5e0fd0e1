"""What the error that ended an attempt means for the next one."""

from __future__ import annotations

from enum import Enum, auto

from nereid_client.errors import ConnectionLostError, LostError, NereidError, NotReadyError, UnavailableError


class Verdict(Enum):
    """What an error means for the next attempt."""

    REFUSAL = auto()
    AWAY = auto()
    DEATH = auto()
    FINAL = auto()


def verdict(error: NereidError) -> Verdict:
    """AWAY: there is no server, or not all of it, that could have begun. DEATH: what had begun is gone."""
    if isinstance(error, ConnectionLostError):
        return Verdict.DEATH if error.sent else Verdict.AWAY
    if isinstance(error, LostError):
        return Verdict.DEATH
    if isinstance(error, NotReadyError):
        return Verdict.AWAY
    return Verdict.REFUSAL if isinstance(error, UnavailableError) else Verdict.FINAL
