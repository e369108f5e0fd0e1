"""What a benchmark has found: as a table, as a file, and as one line of JSON."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table


def report_rows(title: str, rows: list[dict[str, Any]], out: Path, as_json: bool) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(rows, indent=1))
    if not as_json:
        print_rows(title, rows)
    print(json.dumps(rows))


def print_rows(title: str, rows: list[dict[str, Any]]) -> None:
    table = Table(title=title)
    for column in rows[0]:
        table.add_column(column.replace("_", " "), justify="left" if isinstance(rows[0][column], str) else "right")
    for row in rows:
        table.add_row(*(_cell(value) for value in row.values()))
    Console(width=None if sys.stdout.isatty() else 140).print(table)


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return value if isinstance(value, str) else f"{value:.3g}"


def rows_of(found: Any) -> list[dict[str, Any]]:
    """One part of the report as rows of a table: it is a list of rows, rows by name, or one row."""
    if isinstance(found, list):
        return found
    rows = found.get("rows", found)
    if all(isinstance(row, dict) for row in rows.values()):
        return [{"": name, **row} for name, row in rows.items()]
    return [rows]
