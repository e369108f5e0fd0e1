"""Who waits when processors are few: engines, which compute for long, and not those who take requests, plan and answer."""

from __future__ import annotations

import os

NICENESS = 10
"""A tenth of the weight of an ordinary process (nice(2)): a step is hardly longer, and a request is heard at once."""


def give_way() -> None:
    """From now on this process computes while nobody else of the server has anything to do."""
    os.nice(max(0, NICENESS - os.nice(0)))
