"""What an interrupted export left: a record beside each engine, good while all that shaped and checked it is the same."""

from __future__ import annotations

import json
import platform
from collections.abc import Collection, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nereid.engines.digests import file_digest
from nereid_export.frame import versions

RECORD = "done.json"
VERSIONED = ("torch", "diffusers", "transformers", "numpy")
"""Whose versions shape every engine of a diffusion checkpoint, and what PyTorch draws of it; each engine adds its own."""


@dataclass(frozen=True, slots=True)
class Record:
    """The record of one engine; `key` is all that it and its check depend on."""

    file: Path
    key: dict[str, Any]

    def read(self) -> dict[str, Any] | None:
        """The figures of an engine that was built and checked before; None where it was not, or under another key.

        None as well where its files are not what was checked: a machine that went down has perhaps not written them.
        """
        try:
            done = json.loads(self.file.read_text(encoding="utf-8"))
            same = done["key"] == self.key and all(
                file_digest(self.file.parent / name) == digest for name, digest in done["files"].items()
            )
            return dict(done["figures"]) if same else None
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None

    def write(self, figures: dict[str, Any], files: Iterable[Path] = ()) -> None:
        """Written whole or not at all, after everything else of the engine, whose `files` lie beside it."""
        digests = {file.name: file_digest(file) for file in files}
        beside = self.file.with_suffix(".new")
        beside.write_text(json.dumps({"key": self.key, "figures": figures, "files": digests}), encoding="utf-8")
        beside.replace(self.file)


def resume_key(options: Any, source: object, packages: Iterable[str], *, without_effect: Collection[str]) -> dict[str, Any]:
    """Every option of an export but those named as `without_effect` on an engine, what it is made of, and where it is checked.

    An option that is added later is part of the key unless somebody says that it has no effect.
    """
    arguments = {name: str(value) for name, value in asdict(options).items() if name not in without_effect}
    key = {"source": source, "options": arguments, "versions": versions(packages), "machine": machine()}
    return dict(json.loads(json.dumps(key)))  # as it will be read back


def machine() -> dict[str, Any]:
    """Kernels are chosen by processor and card, and an export for a card that is not there is checked on the processor.

    The card counts whatever `--device` says: TensorRT builds for it without being told.
    """
    import onnxruntime as ort
    import torch

    return {
        "processor": _processor(),
        "providers": ort.get_available_providers(),
        "card": torch.cuda.get_device_name(0) if torch.cuda.is_available() else "",
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else f"{platform.machine()} {platform.processor()}"
