"""One client's run: its script in a session of its own, what it said, and whether its row of the table is to be written."""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from nereid.engines.digests import own_version

from client_list import Listed
from client_table import Row, broken_promises, read_rows, rows_of, write

ENDS = "ends by itself"
_LINE = {"client", "version", "capability", "works", "why"}
_FAILED = 1
"""What a script ends with where something does not work."""


@dataclass(slots=True)
class Kept:
    """The rows as they stand; each is written as soon as its client is done, for a run may be killed."""

    file: Path
    page: Path
    order: Sequence[str]
    accept: bool = False
    problems: list[str] = field(default_factory=list)
    """Sentences, for the end."""
    rows: dict[str, Row] = field(init=False)

    def __post_init__(self) -> None:
        self.rows = read_rows(self.file)

    def seen(self, row: Row) -> None:
        """Write the row, unless it promised more than works now and that is not accepted: then it stays as it is."""
        broken = broken_promises(self.rows.get(row.client), row)
        self.problems += broken
        if broken and not self.accept:
            self.problems.append(f"{row.client}: its row is as it was{self._since(row.client)}; --accept writes what works now")
            return
        self.rows[row.client] = row
        write(self.file, self.page, self.rows, self.order)

    def not_run(self, client: str, why: str) -> None:
        """Nothing was seen: its row, where it has one, stays as it is."""
        self.problems.append(f"{client}: it was not run: {why}; its row is as it was{self._since(client)}")

    def _since(self, client: str) -> str:
        return f" on {self.rows[client].day}" if client in self.rows else ""


def run(client: Listed, program: Sequence[str], environment: Mapping[str, str], folder: Path) -> Row:
    """What a client's script says, and what kept it from saying more; whatever it has started is ended."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    fault = ""
    with (folder / "stdout").open("w+", errors="replace") as out, (folder / "stderr").open("w+", errors="replace") as problems:
        process = subprocess.Popen(
            program,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=problems,
            env=dict(environment),
            cwd=folder,
            start_new_session=True,
        )
        try:
            code = process.wait(client.seconds)
        except subprocess.TimeoutExpired:
            code, fault = 0, f"it was stopped after {client.seconds:g} seconds"
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # its workers, too, also where it has ended
            process.wait()
        out.seek(0)
        row = rows_of(said_in(out)).get(client.name, Row(client=client.name))
        if not fault and code != (_FAILED if row.fails else 0):
            problems.seek(0)
            last = [text.strip() for text in problems if text.strip()][-1:]
            fault = f"its script ended with {code}: {' '.join(last)[:200]}"
    day = datetime.datetime.now(datetime.UTC).date().isoformat()
    fails = {**row.fails, **({ENDS: fault} if fault else {})}
    return replace(row, fails=fails, day=day, nereid=own_version(), asked=client.asked)


def said_in(output: Iterable[str]) -> list[dict[str, object]]:
    """The lines of a script, among whatever else a client prints."""
    made = []
    for text in output:
        with contextlib.suppress(ValueError):
            line = json.loads(text)
            if isinstance(line, dict) and line.keys() >= _LINE:
                made.append(line)
    return made
