"""The exporter's progress bar on a terminal."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from nereid_client.terminal import console, fail
from nereid_export.errors import ExportError

T = TypeVar("T")


class Bar:
    """Progress on stderr: what is being done, how far, since when."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._task: TaskID = progress.add_task("starting", total=None)
        self._done = -1

    def total(self, steps: int) -> None:
        self._progress.update(self._task, total=steps)

    def step(self, text: str) -> None:
        self._done += 1
        self._progress.update(self._task, description=text, completed=self._done)
        if not self._progress.console.is_terminal:
            self._progress.console.print(text)

    def detail(self, text: str) -> None:
        self._progress.update(self._task, description=text)

    def waiting(self, text: str) -> None:
        self._progress.console.print(text)


@contextmanager
def progress_bar() -> Iterator[Bar]:
    """A bar for one export, gone after it."""
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        yield Bar(progress)


def with_bar(work: Callable[[Bar], T], show: Callable[[T], None], as_json: bool) -> None:
    """Run an export under a progress bar, and print what it has made: as JSON, or as `show` does.

    Its refusals are one sentence and exit status 1.
    """
    try:
        with progress_bar() as bar:
            made = work(bar)
    except ExportError as error:
        fail(error)
    if as_json:
        print(json.dumps(made))
    else:
        show(made)
