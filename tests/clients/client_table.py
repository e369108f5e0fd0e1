"""The table of docs/clients.md: read, compared with what was seen, and written; runs nothing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

BEGIN, END = "<!-- made by make test-clients -->", "<!-- end -->"
_HEAD = "| client | version | works | does not |\n| --- | --- | --- | --- |\n"
_NOTHING = ("", "-")


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One client: what works, and what does not, by capability with the reason."""

    client: str
    version: str = ""
    works: tuple[str, ...] = ()
    fails: Mapping[str, str] = field(default_factory=dict)


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


def read_table(text: str) -> dict[str, Row]:
    """The rows between the markers; what does not work is left out. Raises ValueError where a marker is missing."""
    _, _, rest = _parts(text)
    inside = rest.partition(END)[0]
    found = {}
    for line in inside.strip().splitlines()[2:]:
        cells = [cell.strip() for cell in line.strip().strip("|").split(" | ")]
        if len(cells) == 4:
            works = () if cells[2] in _NOTHING else tuple(cells[2].split(", "))
            found[cells[0]] = Row(client=cells[0], version=cells[1], works=works)
    return found


def broken_promises(promised: Mapping[str, Row], seen: Mapping[str, Row]) -> list[str]:
    """A sentence for each capability that the table has and that did not work now; clients that were not asked are left out."""
    broken = []
    for name, row in seen.items():
        for capability in promised[name].works if name in promised else ():
            if capability not in row.works:
                why = row.fails.get(capability) or "; ".join(row.fails.values()) or "it was not asked for"
                broken.append(f"{name}: {capability} no longer works: {why}")
    return broken


def write_table(page: Path, seen: Mapping[str, Row], order: Sequence[str]) -> None:
    """Replace the rows of the clients that were asked; all others stay as they stand."""
    text = page.read_text(encoding="utf-8")
    head, _, rest = _parts(text)
    inside, _, tail = rest.partition(END)
    lines = {line.strip("| ").split(" | ")[0]: line for line in inside.splitlines() if line.startswith("| ")}
    lines |= {name: _line(row) for name, row in seen.items()}
    made = "\n".join(lines[name] for name in order if name in lines)
    page.write_text(f"{head}{BEGIN}\n{_HEAD}{made}\n{END}{tail}", encoding="utf-8")


def _line(row: Row) -> str:
    fails = "; ".join(f"{name}: {why}".replace("|", "/").replace("\n", " ") for name, why in row.fails.items())
    return f"| {row.client} | {row.version or '-'} | {', '.join(row.works) or '-'} | {fails or '-'} |"


def _parts(text: str) -> tuple[str, str, str]:
    head, found, rest = text.partition(BEGIN)
    if not found or END not in rest:
        raise ValueError(f"the table has no place: {BEGIN} and {END} are missing")
    return head, found, rest
