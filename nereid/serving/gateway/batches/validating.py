"""Which files of batches are looked at next, and how much of each at a time: a large one holds no other up."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field

from nereid.serving.gateway.batches.lines import CheckedLines, Checking, Problem
from nereid.serving.gateway.batches.store import Batch, BatchStore

log = logging.getLogger("nereid.gateway")

AT_ONCE = 4
"""Files that are looked at together: what is found in each is kept until its end."""


@dataclass(slots=True, eq=False)
class Validating:
    """Used by one event loop."""

    store: BatchStore
    _checks: dict[str, Checking] = field(default_factory=dict)

    async def choose(self, batches: Sequence[Batch]) -> list[Batch]:
        """Of those that wait for it, the oldest first, which are looked at now: what is begun, the oldest, the smallest."""
        known = {batch.id for batch in batches}
        self._checks = {batch: check for batch, check in self._checks.items() if batch in known}
        if len(batches) <= AT_ONCE:
            return list(batches)
        begun = [batch for batch in batches if batch.id in self._checks]
        others = [batch for batch in batches if batch.id not in self._checks]
        sizes = await asyncio.to_thread(self._sizes, others)
        if batches[0].id not in self._checks and len(begun) < AT_ONCE:
            begun.append(others.pop(0))
        others.sort(key=lambda batch: sizes[batch.id])
        return [*begun, *others[: AT_ONCE - len(begun)]]

    def _sizes(self, batches: Sequence[Batch]) -> dict[str, int]:
        """Of their files; of one that cannot be read 0: it ends soon."""
        sizes = {}
        for batch in batches:
            try:
                sizes[batch.id] = self.store.path(batch.input_file).stat().st_size
            except OSError:
                sizes[batch.id] = 0
        return sizes

    async def go_on(self, batch: Batch) -> CheckedLines | None:
        """Look at more of a batch's file; what was found, where this was the end."""
        path = self.store.path(batch.input_file)
        check = self._checks.setdefault(batch.id, Checking(path, batch.endpoint))
        try:
            if not await asyncio.to_thread(check.go_on):
                return None
            found = check.found
        except OSError as error:
            log.error("batch %s: its file cannot be read (%s)", batch.id, error)
            found = CheckedLines(problems=[Problem(message="the file cannot be read", param=None, line=None)])
        return found

    def __bool__(self) -> bool:
        """Whether some file is looked at."""
        return bool(self._checks)

    def end(self, batch: str) -> None:
        """What was found has been kept."""
        self._checks.pop(batch, None)
