"""Lines of a model's config.pbtxt with the comments above them, as people read them; Triton reads the file elsewhere."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_PARAMETER = re.compile(r'^parameters \{ key: "(\w+)" value: \{ string_value: "([^"]*)" \} \}')
_TENSOR = re.compile(r'^  \{ name: "(\w+)" data_type: TYPE_(\w+) dims: \[ ([-\d, ]+) \]')


@dataclass(frozen=True, slots=True)
class Entry:
    """A parameter or a tensor, and what is said of it."""

    name: str
    value: str
    comment: str


def parameters(model: Path) -> Iterator[Entry]:
    """Of a folder of the model repository."""
    return _entries(model, _PARAMETER)


def inputs(model: Path) -> Iterator[Entry]:
    """Their values are types, with dimensions where there is not just one value."""
    for entry in _entries(model, _TENSOR, until="output ["):
        kind, _, dims = entry.value.partition(" ")
        yield Entry(entry.name, kind if dims == "1" else f"{kind} [{dims}]", entry.comment)


def _entries(model: Path, form: re.Pattern[str], until: str = "") -> Iterator[Entry]:
    comment: list[str] = []
    for line in (model / "config.pbtxt").read_text().splitlines():
        if until and line.startswith(until):
            return
        found = form.match(line)
        if line.lstrip().startswith("#"):
            comment.append(line.strip().lstrip("# "))
            continue
        if found:
            yield Entry(found[1], " ".join(found.groups()[1:]), " ".join(comment))
        comment = []
