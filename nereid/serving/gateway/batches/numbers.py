"""How batches and files stand, in numbers; knows no metrics."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchNumbers:
    """`states` are numbers of batches, `outcomes` of their requests, of all that the folder has seen.

    `waiting` of open batches are not answered, `running` of these are under way; `put_back` is counted by this process.
    """

    states: Mapping[str, int]
    outcomes: Mapping[str, int]
    waiting: int
    files: int
    bytes: int
    running: int = 0
    put_back: int = 0
