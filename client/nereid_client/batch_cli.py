"""The command `nereid batch`: a file of requests through any server with OpenAI's API, with a progress bar."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from nereid_client.batch import BatchRun, Target
from nereid_client.batch_errors import BatchError
from nereid_client.cli_options import may_be_written
from nereid_client.terminal import INTERRUPTED, console, fail, say, say_error

app = typer.Typer(help="Send a file of requests to a server with OpenAI's API, and keep the answers.", no_args_is_help=True)


@app.callback()
def batch() -> None:
    """Send a file of requests to a server with OpenAI's API, and keep the answers."""


@app.command()
def run(
    requests: Annotated[Path, typer.Argument(help="JSONL, a request a line: custom_id, url, body.", exists=True, dir_okay=False)],
    output: Annotated[
        Path,
        typer.Option(
            "--output", "-o", help="Where answers go, one a line; what is there already is kept.", callback=may_be_written
        ),
    ],
    url: Annotated[
        str, typer.Option(help="Any server with OpenAI's API: host:port, or an address with http or https, like https://host/v1.")
    ] = "127.0.0.1:8080",
    at_once: Annotated[int, typer.Option(help="Requests under way together.", min=1, max=1024)] = 8,
    retries: Annotated[int, typer.Option(help="Times that a request is tried again which cannot be taken now.", min=0)] = 8,
    timeout: Annotated[float, typer.Option(help="Seconds that one answer may take.", min=0.1)] = 600.0,
) -> None:
    """Send every request that has no good answer in the output yet. The key is NEREID_API_KEY, or OPENAI_API_KEY."""
    key = os.environ.get("NEREID_API_KEY") or os.environ.get("OPENAI_API_KEY", "")
    try:
        work = BatchRun(requests, output, Target.of(url, key, timeout), at_once=at_once, retries=retries)
        failed = _show(work)
    except (BatchError, OSError) as error:
        fail(error)
    except KeyboardInterrupt:
        say_error(f"stopped; the same command goes on, and keeps what {output} has")
        raise typer.Exit(INTERRUPTED) from None
    say(f"{output}  {_counted(len(work.requests) - failed, 'answer')}, {_counted(failed, 'error')}")
    if failed:
        say_error(f"the last that failed: {work.failure}")
        raise typer.Exit(1)


class _Trouble(ProgressColumn):
    """Why it does not go on, while it does not: a server may be waited for long."""

    def __init__(self, work: BatchRun) -> None:
        super().__init__()
        self._work = work

    def render(self, task: Task) -> Text:
        return Text(self._work.trouble, style="yellow", no_wrap=True, overflow="ellipsis")


def _show(work: BatchRun) -> int:
    """Run it behind a bar; how many requests have failed."""
    counted = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn(), TextColumn("{task.description}"))
    failed = 0
    with Progress(*counted, _Trouble(work), console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=len(work.requests), completed=len(work.requests) - len(work.left))
        for _, ok in work:
            failed += not ok
            bar.update(task, advance=1, description=_counted(failed, "error") if failed else "")
    return failed


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
