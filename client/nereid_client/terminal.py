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
    console.print(f"[red]error:[/red] {escape(str(error))}", highlight=False, soft_wrap=True)


def say_warning(warning: object) -> None:
    """One line that begins with `warning:`."""
    console.print(f"[yellow]warning:[/yellow] {escape(str(warning))}", highlight=False, soft_wrap=True)


def say(line: str) -> None:
    """One line, as it is."""
    console.print(line, highlight=False, markup=False, soft_wrap=True)


def counting() -> Progress:
    """A bar that tells how many of a task's parts are done, and is gone when it ends."""
    done = TextColumn("{task.completed}/{task.total}")
    return Progress(TextColumn("{task.description}"), BarColumn(), done, TimeElapsedColumn(), console=console, transient=True)


def fail(error: object) -> NoReturn:
    """Say the error and end the command with status 1."""
    say_error(error)
    raise typer.Exit(1) from None
