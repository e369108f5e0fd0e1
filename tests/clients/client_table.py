"""What was seen of clients: rows in a file, and the table of docs/clients.md that is made of them; runs nothing.

Every row has a seal, a digest of all that it says: a row that was changed by hand, or put there, is refused. The page is written
with the file, and a test compares them.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

BEGIN, END = "<!-- made by make test-clients -->", "<!-- end -->"
_HEAD = "| client | version | run | works | does not |\n| --- | --- | --- | --- | --- |\n"
_SEAL = "seal"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One client.

    Attributes:
        works, fails: what works, and what does not, by capability with the reason.
        day: when it was run, in UTC, as 2026-11-29.
        nereid: the version of this project that it was run against.
        asked: the digest of its script and its pins.
    """

    client: str
    version: str = ""
    works: tuple[str, ...] = ()
    fails: Mapping[str, str] = field(default_factory=dict)
    day: str = ""
    nereid: str = ""
    asked: str = ""


def rows_of(lines: Iterable[Mapping[str, object]]) -> dict[str, Row]:
    """What clients' scripts said, by client."""
    found: dict[str, Row] = {}
    for line in lines:
        name, capability = str(line["client"]), str(line["capability"])
        row = found.get(name, Row(client=name))
        works = (*row.works, capability) if line["works"] else row.works
        fails = row.fails if line["works"] else {**row.fails, capability: str(line["why"])}
        found[name] = Row(client=name, version=str(line["version"]), works=works, fails=fails)
    return found


def read_rows(file: Path) -> dict[str, Row]:
    """The rows that `write` has written, none where there is no file; raises ValueError for one whose seal is not its own."""
    found = {}
    for entry in json.loads(file.read_text(encoding="utf-8")) if file.exists() else ():
        seal = entry.pop(_SEAL, "")
        row = Row(**{**entry, "works": tuple(entry["works"])})
        if seal != _seal(row):
            raise ValueError(f"{file}: the row of {row.client} was not written by a run; take it out, and run the client")
        found[row.client] = row
    return found


def broken_promises(promised: Row | None, seen: Row) -> list[str]:
    """A sentence for each capability that the row has and that did not work now."""
    broken = []
    for capability in () if promised is None else promised.works:
        if capability not in seen.works:
            why = seen.fails.get(capability) or "; ".join(seen.fails.values()) or "it was not asked for"
            broken.append(f"{seen.client}: {capability} no longer works: {why}")
    return broken


def write(file: Path, page: Path, rows: Mapping[str, Row], order: Sequence[str]) -> None:
    """The rows and the page's table. Each file is replaced as a whole: a run that is killed leaves none half written."""
    entries = [{**_told(rows[name]), _SEAL: _seal(rows[name])} for name in order if name in rows]
    written = with_table(page.read_text(encoding="utf-8"), rows, order)
    _replace(file, json.dumps(entries, ensure_ascii=False, indent=1) + "\n")
    _replace(page, written)


def with_table(text: str, rows: Mapping[str, Row], order: Sequence[str]) -> str:
    """The page with these rows; raises ValueError where it has no place for them."""
    head, found, rest = text.partition(BEGIN)
    if not found or END not in rest:
        raise ValueError(f"the table has no place: {BEGIN} and {END} are missing")
    lines = "\n".join(_line(rows.get(name, Row(client=name))) for name in order)
    return f"{head}{BEGIN}\n{_HEAD}{lines}\n{END}{rest.partition(END)[2]}"


def _line(row: Row) -> str:
    run = f"{row.day}, Nereid {row.nereid}" if row.day else "not run"
    fails = "; ".join(f"{name}: {why}" for name, why in row.fails.items())
    cells = (row.client, row.version, run, ", ".join(row.works), fails)
    return "| " + " | ".join(" ".join(cell.replace("|", "/").split()) or "-" for cell in cells) + " |"


def _told(row: Row) -> dict[str, Any]:
    return {**asdict(row), "fails": dict(row.fails)}


def _seal(row: Row) -> str:
    return hashlib.sha256(json.dumps(_told(row), sort_keys=True).encode()).hexdigest()


def _replace(file: Path, text: str) -> None:
    beside = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        beside.write_text(text, encoding="utf-8")
        beside.replace(file)
    finally:
        beside.unlink(missing_ok=True)
