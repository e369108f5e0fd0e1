"""What every export shares: who is told of progress, what a manifest says of versions and files, which names are allowed."""

from __future__ import annotations

import json
import platform
from collections.abc import Iterable
from enum import StrEnum
from importlib.metadata import version
from pathlib import Path
from typing import Protocol

from nereid.engines.digests import MANIFEST as MANIFEST
from nereid.engines.digests import MANIFEST_VERSION as MANIFEST_VERSION
from nereid.engines.digests import file_digest
from nereid_export.errors import ExportError


class Device(StrEnum):
    CPU = "cpu"
    CUDA = "cuda"


class Progress(Protocol):
    """Told what is being done, step by step; `detail` is what a long step does at the moment."""

    def total(self, steps: int) -> None: ...
    def step(self, text: str) -> None: ...
    def detail(self, text: str) -> None: ...
    def waiting(self, text: str) -> None: ...


def check_name(name: str) -> None:
    """Raise ExportError for a prefix that cannot be part of a model's name."""
    if name and not name.replace("_", "").replace("-", "").isalnum():
        raise ExportError(f"--name: {name!r} is not allowed; it must be letters, digits, '-' and '_'")


def versions(packages: Iterable[str]) -> dict[str, str]:
    """Of Nereid, Python, and the packages that shaped the engines."""
    return {"nereid": version("nereid"), "python": platform.python_version(), **{name: version(name) for name in packages}}


def models_of(out: Path, home: str) -> set[str]:
    """Models that an earlier export, whose manifest lies in the model `home`, has left in `out`."""
    manifest = out / home / MANIFEST
    return set(json.loads(manifest.read_text())["models"]) if manifest.is_file() else set()


def file_digests(repository: Path) -> dict[str, str]:
    """SHA-256 of every file that is served."""
    return {
        str(file.relative_to(repository)): file_digest(file)
        for file in sorted(repository.rglob("*"))
        if file.is_file() and file.name != ".gitkeep"
    }
