"""Runs clients of other projects, unchanged, against a real server, and keeps docs/clients.md: `make test-clients`."""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from client_environments import EnvironmentFaultError, program_of
from client_list import CLIENTS, Listed
from client_server import ROOT, Server, export_zoo, perf_analyzer_program, serving
from client_table import Row, broken_promises, read_table, rows_of, write_table

PAGE = ROOT / "docs" / "clients.md"
NOT_RUN, ENDS = "not run", "ends by itself"
_LINE = {"client", "version", "capability", "works", "why"}


def main(arguments: Sequence[str] | None = None) -> int:
    """0: all that the table promises works; 1: something broke, and the table is as it was; 2: the arguments are wrong."""
    known = [client.name for client in CLIENTS]
    parser = argparse.ArgumentParser(prog="make test-clients", description=__doc__)
    parser.add_argument("--only", action="append", choices=known, metavar="CLIENT", help=f"one of {', '.join(known)}; repeatable")
    parser.add_argument("--accept", action="store_true", help="write the table also where it promised more")
    parser.add_argument("--build", type=Path, default=ROOT / "build" / "clients", help="where environments and models lie")
    asked = parser.parse_args(arguments)
    build: Path = asked.build.resolve()
    build.mkdir(parents=True, exist_ok=True)
    promised = read_table(PAGE.read_text(encoding="utf-8"))
    repository, programs = build / "repository", perf_analyzer_program(build / "programs")
    export_zoo(repository, build)
    seen: dict[str, Row] = {}
    with serving(repository, build) as server:
        for client in CLIENTS:
            if not asked.only or client.name in asked.only:
                seen[client.name] = _row(client, server, build, programs)
                _say(seen[client.name])
    broken = broken_promises(promised, seen)
    for sentence in broken:
        print(sentence, file=sys.stderr)
    if broken and not asked.accept:
        print("docs/clients.md is as it was; --accept writes what works now", file=sys.stderr)
        return 1
    write_table(PAGE, seen, known)
    return 0


def _row(client: Listed, server: Server, build: Path, programs: Path) -> Row:
    """What a client's script says, and what kept it from saying more."""
    folder = build / "folders" / client.environment
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        program = program_of(client, build)
    except EnvironmentFaultError as error:
        return Row(client=client.name, fails={NOT_RUN: str(error)})
    fault = ""
    with (folder / "stdout").open("w+") as out, (folder / "stderr").open("w+") as problems:
        try:
            done = subprocess.run(
                program,
                stdout=out,
                stderr=problems,
                env=server.environment(folder, programs),
                cwd=folder,
                timeout=client.seconds,
                check=False,
            )
            code = done.returncode
        except subprocess.TimeoutExpired:
            code, fault = 0, f"it was stopped after {client.seconds:g} seconds"
        out.seek(0)
        lines = [line for text in out if (line := _line(text)) is not None]
        row = rows_of(lines).get(client.name, Row(client=client.name))
        if code and not row.fails:
            problems.seek(0)
            last = [text.strip() for text in problems if text.strip()][-1:]
            fault = f"its script ended with {code}: {' '.join(last)[:200]}"
    if not fault:
        return row
    return Row(client=client.name, version=row.version, works=row.works, fails={**row.fails, ENDS: fault})


def _line(text: str) -> dict[str, object] | None:
    """A line of a script, among whatever else a client prints."""
    try:
        made = json.loads(text)
    except ValueError:
        return None
    return made if isinstance(made, dict) and made.keys() >= _LINE else None


def _say(row: Row) -> None:
    print(f"{row.client} {row.version}: {', '.join(row.works) or 'nothing'}", flush=True)
    for name, why in row.fails.items():
        print(f"  {name}: {why}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
