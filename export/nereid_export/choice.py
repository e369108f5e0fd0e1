"""Which of several measured engines serves a component: a pure function of their table; measures nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

TOLERANCE = 0.03
"""Engines whose costs are this close are equally fast: two measurements of one engine differ by as much."""


@dataclass(slots=True, kw_only=True)
class Row:
    """One line of a component's table: an engine in one precision with one number of threads."""

    engine: str
    precision: str
    threads: int = 0
    """0 where the engine chooses."""
    milliseconds: dict[int, float] = field(default_factory=dict)
    """Of one call, by its rows."""
    error: float | None = None
    """The largest relative error of the check against PyTorch."""
    bytes: int = 0
    memory_bytes: int | None = None
    """With the engine loaded and its largest call of those measured; None where that was not measured."""
    invariant_from: int | None = None
    """Rows of a call from which on each has the same bits in any company; None where it never has."""
    compared: bool = False
    """Whether `invariant_from` was looked for: only of those that are among the fastest."""
    dropped: str = ""
    """Why it cannot be chosen."""
    chosen: bool = False

    @property
    def label(self) -> str:
        return label(self.engine, self.precision)

    def written(self) -> dict[str, Any]:
        """As a manifest has it: what was not measured is not there."""
        absent = {"compared", "invariant_from"}
        absent |= {name for name in ("milliseconds", "error", "bytes", "memory_bytes", "dropped") if not getattr(self, name)}
        values = {**asdict(self), "milliseconds": {str(rows): took for rows, took in self.milliseconds.items()}}
        made = {name: value for name, value in values.items() if name not in absent}
        return {**made, "batch_invariant_from_rows": self.invariant_from} if self.compared else made


def label(engine: str, precision: str) -> str:
    """The name of a built engine among a component's others."""
    return f"{engine}-{precision}"


def drop_above(rows: Sequence[Row], bound: int) -> None:
    """Drop the rows that need more memory than `bound` bytes."""
    for row in rows:
        if not row.dropped and row.memory_bytes is not None and row.memory_bytes > bound:
            needed, most = row.memory_bytes / 2**20, bound / 2**20
            row.dropped = f"it needs {needed:,.0f} MiB of memory, and the bound is {most:,.0f} MiB"


def cost(row: Row, sizes: Sequence[int]) -> float:
    """Milliseconds a row, the mean over calls of these sizes."""
    return sum(row.milliseconds[size] / size for size in sizes) / len(sizes)


def contenders(rows: Sequence[Row], expected: Sequence[int]) -> list[Row]:
    """Rows as fast as the fastest, by calls of the expected sizes; of those only the ones that all rows were measured at."""
    left = [row for row in rows if not row.dropped]
    if not left:
        return []
    sizes = [size for size in expected if all(size in row.milliseconds for row in left)]
    costs = [cost(row, sizes) for row in left]
    return [row for row, its in zip(left, costs, strict=True) if its <= (1 + TOLERANCE) * min(costs)]


def pick(rows: Sequence[Row], expected: Sequence[int]) -> Row:
    """Of the fastest, one whose rows have the same bits in most batches, then that of the smallest error, then the table's first.

    Raises LookupError naming every reason where no row is left.
    """
    if all(row.dropped for row in rows):
        reasons: Mapping[str, str] = {f"{row.label}: {row.dropped}": "" for row in rows}
        raise LookupError("; ".join(reasons))
    left = contenders(rows, expected)
    return min(left, key=lambda row: (_variance(row), row.error if row.error is not None else float("inf")))


def _variance(row: Row) -> int:
    return {1: 0, 2: 1}.get(row.invariant_from or 0, 2)
