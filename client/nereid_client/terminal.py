"""What every command line here says in the same way: errors as one sentence on stderr, with nothing read as markup."""

from __future__ import annotations

from typing import NoReturn

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

INTERRUPTED = 130
"""The status of a command that Ctrl-C ended, as shells have it."""

console = Console(stderr=True)


def say_error(error: object) -> None:
    """One line that begins with `error:`."""
    console.print(f"[red]error:[/red] {escape(_sentence(error))}", highlight=False, soft_wrap=True)


def _sentence(error: object) -> str:
    """Of the operating system's errors the file and the reason, without their number."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error)


def say_warning(warning: object) -> None:
    """One line that begins with `warning:`."""
    console.print(f"[yellow]warning:[/yellow] {escape(str(warning))}", highlight=False, soft_wrap=True)


def say(line: str) -> None:
    """One line, as it is."""
    console.print(line, highlight=False, markup=False, soft_wrap=True)


def counting() -> Progress:
    """A bar that tells how many of a task's parts are done, on terminals alone, and is gone when it ends."""
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total}"), TimeElapsedColumn())
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)


def fail(error: object) -> NoReturn:
    """Say the error and end the command with status 1."""
    say_error(error)
    raise typer.Exit(1) from None
