"""Finished stages of a training, kept in its work folder: whole or not at all, and only for the training that made them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path


class StageError(ValueError):
    """A finished stage is another training's."""


def finished_stage(folder: Path, facts: Mapping[str, object], write: Callable[[Path], None]) -> Path:
    """`folder` with what `write` has written, now or before; it is there only once it is whole.

    `facts` say what it was trained from and how: raises StageError where it was done otherwise.
    """
    record, wanted = folder / "stage.json", json.loads(json.dumps(facts))
    if folder.exists():
        found = json.loads(record.read_text()) if record.is_file() else {}
        for name, value in wanted.items():
            if found.get(name) != value:
                shown = f"{name} {found.get(name)!r}, not {value!r}" if found else "nobody knows what"
                raise StageError(f"{folder} was trained with {shown}; remove it, or name another --work")
        return folder
    beside = folder.with_name(f"{folder.name}.unfinished")
    shutil.rmtree(beside, ignore_errors=True)
    write(beside)
    (beside / record.name).write_text(json.dumps(wanted))
    beside.rename(folder)
    return folder


def forget_places(folder: Path) -> None:
    """Drop from a saved pipeline's settings where each part was loaded from: it is another machine's path elsewhere."""
    for file in folder.rglob("*.json"):
        settings = json.loads(file.read_text(encoding="utf-8"))
        if isinstance(settings, dict) and settings.pop("_name_or_path", None) is not None:
            file.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
