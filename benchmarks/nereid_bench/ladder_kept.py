"""What turns of `nereid bench ladder` have come to, kept on disk: an interrupted run goes on where it stopped."""

from __future__ import annotations

import hashlib
import importlib.util
import zipfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from nereid.engines import digests
from nereid.engines.digests import fingerprint_of, own_version
from nereid_bench.ladder_rows import Found
from nereid_bench.ladder_rungs import PeerWay, Way
from nereid_bench.scheduler_pictures import short_digest
from nereid_export.checkpoint import Checkpoint
from nereid_export.frame import versions
from nereid_export.resume import VERSIONED, machine
from nereid_export.tiny_vae import TinyVae

_PACKAGES = ("onnxruntime", "openvino", "openvino_genai", "DeepCache", "cache_dit")
"""Those of engines and of peers, where they are installed."""
_PICTURE = "picture-"


@dataclass(frozen=True, slots=True)
class KeptTurns:
    """A file for each turn of one way to draw, named by all that its figures depend on; there whole or not at all."""

    folder: Path

    def read(self, key: Mapping[str, Any]) -> Found | None:
        """None where that turn was not taken, or its file is damaged."""
        try:
            with np.load(self._file(key)) as kept:
                pixels = {int(name.removeprefix(_PICTURE)): kept[name] for name in kept.files if name.startswith(_PICTURE)}
                rates = kept["images_per_second"].tolist()
                return Found(ms=kept["ms"].tolist(), images_per_second=rates, peak_bytes=int(kept["peak_bytes"]), pixels=pixels)
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            return None

    def write(self, key: Mapping[str, Any], found: Found) -> None:
        file = self._file(key)
        file.parent.mkdir(parents=True, exist_ok=True)
        pixels: dict[str, Any] = {f"{_PICTURE}{seed}": picture for seed, picture in found.pixels.items()}
        beside = file.with_suffix(".new.npz")
        np.savez(beside, ms=found.ms, images_per_second=found.images_per_second, peak_bytes=found.peak_bytes, **pixels)
        beside.replace(file)

    def _file(self, key: Mapping[str, Any]) -> Path:
        return self.folder / f"{short_digest(dict(key))}.npz"


def key_of(way: Way, repository: Path | None, drawn: Mapping[str, Any]) -> dict[str, Any]:
    """What the figures of one turn depend on, besides how busy the machine was; `drawn` is what was asked for.

    What serves counts with its sources, and a peer, which runs none of them, by the versions of its packages.
    """
    packages = [*VERSIONED, *(name for name in _PACKAGES if importlib.util.find_spec(name))]
    facts: dict[str, Any] = {**drawn, "way": asdict(way), "versions": versions(packages), "machine": machine()}
    if isinstance(way, PeerWay):
        tiny = TinyVae.open(Path(way.tiny_vae)).digest() if way.tiny_vae else ""
        return {**facts, "source": [checkpoint_digest(Path(way.checkpoint)), tiny]}
    assert repository is not None  # every served way has one
    return {**facts, "source": [fingerprint_of(repository / "denoise", own_version()), _sources()]}


@cache
def checkpoint_digest(folder: Path) -> str:
    """Of a diffusers folder; gigabytes are read once a run. Raises ExportError."""
    return Checkpoint.open(folder).digest()


@cache
def _sources() -> str:
    """One word for the code that serves."""
    folder = Path(digests.__file__).parents[1]
    digest = hashlib.sha256()
    for file in sorted(folder.rglob("*.py")):
        digest.update(f"{file.relative_to(folder)} {file.stat().st_size}\n".encode())
        digest.update(file.read_bytes())
    return digest.hexdigest()
