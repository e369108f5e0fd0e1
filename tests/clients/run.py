"""Runs clients of other projects, unchanged, against a real server, and keeps docs/clients.md: `make test-clients`."""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from client_environments import EnvironmentFaultError, program_of
from client_list import CLIENTS, HERE
from client_runs import Kept, run
from client_server import ROOT, alone, ended_by_signals, export_zoo, perf_analyzer_program, serving
from client_table import Row

PAGE, SEEN = ROOT / "docs" / "clients.md", HERE / "seen.json"


def main(arguments: Sequence[str] | None = None) -> int:
    """0: all that was asked was run, and what the table promises works; 1: not so; 2: the arguments are wrong."""
    known = [client.name for client in CLIENTS]
    parser = argparse.ArgumentParser(prog="make test-clients", description=__doc__)
    parser.add_argument("--only", action="append", choices=known, metavar="CLIENT", help=f"one of {', '.join(known)}; repeatable")
    parser.add_argument("--accept", action="store_true", help="write rows also where they promised more")
    parser.add_argument("--build", type=Path, default=ROOT / "build" / "clients", help="where environments and models lie")
    asked = parser.parse_args(arguments)
    build: Path = asked.build.resolve()
    build.mkdir(parents=True, exist_ok=True)
    problems: list[str] = []
    try:
        with ended_by_signals(), alone(build):
            _run_all(Kept(SEEN, PAGE, known, asked.accept, problems), asked.only or known, build)
    except (RuntimeError, ValueError, subprocess.CalledProcessError) as error:
        problems.append(str(error))
    for sentence in problems:
        print(sentence, file=sys.stderr)
    return 1 if problems else 0


def _run_all(kept: Kept, names: Sequence[str], build: Path) -> None:
    """Raises RuntimeError where the server does not start, or ends while clients are run."""
    repository, programs = build / "repository", perf_analyzer_program(build / "programs")
    export_zoo(repository, build)
    with serving(repository, build) as server:
        for client in CLIENTS:
            if client.name not in names:
                continue
            try:
                program = program_of(client, build)
            except EnvironmentFaultError as error:
                kept.not_run(client.name, str(error))
                print(f"{client.name}: not run: {error}", flush=True)
                continue
            folder = build / "folders" / client.environment
            row = run(client, program, server.environment(folder, programs), folder)
            server.check(client.name)  # a client that the server has left alone has not failed
            _say(row)
            kept.seen(row)


def _say(row: Row) -> None:
    print(f"{row.client} {row.version}: {', '.join(row.works) or 'nothing'}", flush=True)
    for name, why in row.fails.items():
        print(f"  {name}: {why}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
