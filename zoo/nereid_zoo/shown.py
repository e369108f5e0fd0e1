"""What the zoo's commands share: a bar for what is scored, and a server for a repository that is scored as well."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from nereid_client import Client

console = Console(stderr=True)


@contextmanager
def bar(name: str, count: int) -> Iterator[Callable[[int], None]]:
    """Told how many are done."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(name, total=count)
        yield lambda done: bar.update(task, completed=done)


@contextmanager
def maybe_serving(repository: Path | None, name: str = "") -> Iterator[Client | None]:
    """A client of a server that serves it; None where there is no repository."""
    if repository is None:
        yield None
        return
    from nereid.serving.options import ServeOptions
    from nereid.serving.supervisor import Supervisor

    with tempfile.TemporaryDirectory() as folder:
        options = ServeOptions.on_free_ports(repository, Path(folder) / "triton.log")
        with Supervisor(options), Client(f"127.0.0.1:{options.grpc_port}", name=name) as client:
            yield client
