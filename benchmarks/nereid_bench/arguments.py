"""Lists and files that the benchmarks' options take, read and refused in one way."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import typer

MAX_AT_ONCE = 64
"""Requests that a server without batching lets wait."""
_PLOTS = (".png", ".svg", ".pdf")


def names(option: str, text: str, allowed: Sequence[str], said: str, *, blank: bool = False) -> tuple[str, ...]:
    """The parts of a list, with `blank` without empty ones; refuses what is not allowed, with what is `said` of it."""
    chosen = tuple(part.strip() for part in text.split(",") if part.strip() or not blank)
    if unknown := [part for part in chosen if part not in allowed]:
        raise typer.BadParameter(f"{unknown[0]!r} {said}must be one of {', '.join(allowed)}", param_hint=option)
    return chosen


def numbers(text: str, kind: Callable[[str], Any]) -> tuple[Any, ...]:
    """The numbers of a list; refuses what is none."""
    try:
        return tuple(kind(part) for part in text.split(","))
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not a list of numbers such as 1,2,4") from None


def plot_file(file: Path) -> Path:
    """A file that a plot can be written to; refuses one whose name ends with something else."""
    if file.suffix not in _PLOTS:
        raise typer.BadParameter(f"{file} is not allowed; its name must end with one of {', '.join(_PLOTS)}", param_hint="--plot")
    return file
