"""The contest of a component's built engines: measured here, then chosen by their table; knows no checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nereid.engines.processors import available_processors
from nereid_export.built import places
from nereid_export.candidates import thread_counts
from nereid_export.choice import Row, contenders, drop_above, label, pick
from nereid_export.components import Component
from nereid_export.engines import BUILDERS, Engine
from nereid_export.engines.base import Target, engine_bytes
from nereid_export.engines.check import Run, batch_invariant_from
from nereid_export.engines.precision import Precision
from nereid_export.errors import ExportError, first_line
from nereid_export.memory import run_memory
from nereid_export.speed import milliseconds_by_rows


@dataclass(frozen=True, slots=True, kw_only=True)
class Entrant:
    """A built engine, with its own number of threads."""

    engine: Engine
    target: Target
    folder: Path
    error: float | None
    memory: dict[str, Any] | None


@dataclass(slots=True)
class Contest:
    """One component's engines and their table."""

    component: Component
    expected: tuple[int, ...]
    """Rows of the calls that the server will see."""
    entrants: dict[str, Entrant]
    """By their labels."""
    rows: list[Row]
    """The table; at first what could not enter."""

    def measure(self, bound: int, told: Callable[[str], None]) -> None:
        """Fill the table; whatever needs more than `bound` bytes of memory is not run."""
        entered = [
            self._row(name, entrant, threads)
            for name, entrant in self.entrants.items()
            for threads in thread_counts(entrant.engine, available_processors())
        ]
        drop_above(entered, bound)
        self.rows = [*entered, *self.rows]
        for row in entered:
            if not row.dropped:
                told(f"{self.component.name}: measuring {_said(row)}")
                self._try(row, lambda row, run: self._time(row, run))

    def elect(self, told: Callable[[str], None]) -> Row:
        """The row to serve; raises ExportError naming every reason where none is left."""
        while unknown := [row for row in contenders(self.rows, self.expected) if not row.compared]:
            for row in unknown:
                told(f"{self.component.name}: comparing rows of {_said(row)}")
                self._try(row, lambda row, run: self._compare(row, run))
        try:
            chosen = pick(self.rows, self.expected)
        except LookupError as error:
            raise ExportError(f"{self.component.name}: no engine is left to choose from: {error}") from None
        for row in self.rows:
            row.chosen = row is chosen
        return chosen

    def drop(self, precision: Precision, reason: str) -> None:
        """Drop what is of this precision."""
        for row in self.rows:
            if row.precision == precision and not row.dropped:
                row.dropped = reason

    def target(self, row: Row) -> Target:
        """What the row's engine is loaded and configured with."""
        own = self.entrants[row.label].target
        return replace(own, plan=replace(own.plan, threads=row.threads))

    def _row(self, name: str, entrant: Entrant, threads: int) -> Row:
        precision = entrant.target.of(self.component)
        assert name == label(entrant.engine, precision)
        row = Row(engine=entrant.engine, precision=precision, threads=threads, error=entrant.error)
        row.bytes, row.memory_bytes = engine_bytes(entrant.folder), self._memory_bytes(entrant)
        return row

    def _memory_bytes(self, entrant: Entrant) -> int | None:
        memory = run_memory(entrant.memory)
        if memory is None:
            return None
        return round(memory.base_bytes + memory.run_bytes(max(self.expected), entrant.target.default_side**2))

    def _try(self, row: Row, work: Callable[[Row, Run], None]) -> None:
        """Have the row's engine loaded and run; one that cannot be is dropped."""
        folder = self.entrants[row.label].folder
        try:
            work(row, BUILDERS[Engine(row.engine)].load(self.component, folder, self.target(row)))
        except Exception as error:  # ONNX Runtime's have no class in common with others'
            row.dropped = f"it cannot be run here: {first_line(error)}"

    def _time(self, row: Row, run: Run) -> None:
        row.milliseconds = milliseconds_by_rows(self.component, run, self.target(row), self.expected)

    def _compare(self, row: Row, run: Run) -> None:
        row.invariant_from = batch_invariant_from(self.component, run, places(self.component, self.target(row)))
        row.compared = True


def _said(row: Row) -> str:
    return f"{row.label}, {row.threads} threads" if row.threads else row.label
