"""Holds a repository's files against the digests that its export wrote; knows nothing of what the files are.

Engines are programs: only what was exported is loaded. Every file of an exported model must be in a manifest, unchanged.
A model folder that no manifest knows is somebody's own, and is let be.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from nereid.flow.state_folder import state_file

log = logging.getLogger(__name__)

MANIFEST = "manifest.json"
MANIFEST_VERSION = 2
_CACHE = "digests.json"
_CHUNK_BYTES = 4 * 2**20
_SAY_AFTER_SECONDS = 2.0
_NOT_SERVED = {MANIFEST, ".gitkeep"}


class DigestError(ValueError):
    """A file is not what was exported; the message names it and says what to do."""


@dataclass(slots=True)
class Verifier:
    """Verifies models of one repository; a file that stands as it stood is read once."""

    repository: Path
    seen: dict[str, str] = field(default_factory=dict)
    """Digests by path, size, time of change and inode."""
    _said: float = field(default_factory=time.monotonic)

    def verify(self, models: Iterable[str]) -> None:
        """Raise DigestError naming the first file that was changed, added or lost.

        A manifest that cannot be read is an error of the models that no other one knows: each of them may be one of its own.
        """
        self._said = time.monotonic()
        expected, faults = _digests_of(self.repository)
        for model in models:
            if model in expected:
                self._verify_model(model, expected[model])
            elif faults:
                raise faults[0]

    def _verify_model(self, model: str, expected: Mapping[str, str]) -> None:
        found = _files(self.repository / model)
        for name in sorted(expected.keys() | found.keys()):
            path = self.repository / model / name
            if name not in found:
                raise DigestError(f"{path} is missing; export the model again")
            if name not in expected:
                raise DigestError(f"{path} was not exported; remove it, or accept it with `nereid export sign {self.repository}`")
            if self._digest(path) != expected[name]:
                raise DigestError(
                    f"{path} was changed after its export; export the model again, "
                    f"or accept the change with `nereid export sign {self.repository}`"
                )

    def _digest(self, path: Path) -> str:
        try:
            stat = path.stat()
            key = f"{path.resolve()}|{stat.st_size}|{stat.st_mtime_ns}|{stat.st_ino}"
            if key not in self.seen:
                self.seen[key] = self._read(path)
        except OSError as error:
            raise DigestError(f"{path} cannot be read: {error.strerror}") from None
        return self.seen[key]

    def _read(self, path: Path) -> str:
        digest = hashlib.sha256()
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                digest.update(chunk)
                if time.monotonic() - self._said > _SAY_AFTER_SECONDS:
                    self._said = time.monotonic()
                    log.info("verifying digests: %s, %.0f of %.0f MB", path, file.tell() / 1e6, path.stat().st_size / 1e6)
        return digest.hexdigest()

    def share(self, folder: Path) -> None:
        """Leave what was read for the processes that will load the models."""
        new = folder / f"{_CACHE}.new"
        with contextlib.suppress(OSError):  # they read the files themselves then
            new.write_text(json.dumps(self.seen))
            new.rename(folder / _CACHE)


def verify_model(folder: Path) -> None:
    """Verify the model in `folder` before it is loaded; what the supervisor has just read is not read again."""
    verifier = Verifier(folder.parent)
    cache = state_file(_CACHE)
    if cache is not None:
        with contextlib.suppress(OSError, ValueError):
            verifier.seen.update(json.loads(cache.read_text()))
    verifier.verify([folder.name])


def fingerprint_of(folder: Path, version: str) -> str:
    """One short word for all that was exported together with the model in `folder`, and the version that serves it."""
    manifests, faults = _read_manifests(folder.parent)
    together = [manifest["files"] for _, manifest in manifests if folder.name in manifest["models"]]
    if faults and not together:
        raise faults[0]
    told = [version, *(sorted(files.items()) for files in together)]
    return f"nereid-{hashlib.sha256(json.dumps(told).encode()).hexdigest()[:16]}"


def version_digest(folder: Path) -> str | None:
    """One word for what was exported into a model's version folder; None for a model that no manifest knows."""
    known, faults = _digests_of(folder.parent.parent)
    if faults and folder.parent.name not in known:
        raise faults[0]
    expected = known.get(folder.parent.name, {})
    files = sorted((name, digest) for name, digest in expected.items() if name.startswith(f"{folder.name}/"))
    return hashlib.sha256(json.dumps(files).encode()).hexdigest() if files else None


def digest_of_files(folder: Path, files: Iterable[Path]) -> str:
    """SHA-256 over files in `folder`, their places in it included."""
    total = hashlib.sha256()
    for path in files:
        total.update(f"{path.relative_to(folder).as_posix()}\0{file_digest(path)}\n".encode())
    return total.hexdigest()


def file_digest(file: Path) -> str:
    """SHA-256 of a file in hex."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def own_version() -> str:
    """Of the installed distribution."""
    try:
        return metadata.version("nereid")
    except metadata.PackageNotFoundError:
        return "unknown"


def sign(repository: Path) -> list[str]:
    """Write the digests of the files as they now are into the manifests; returns the models whose files had changed.

    Raises DigestError where there is no manifest, or one cannot be read.
    """
    changed = []
    manifests = _manifests(repository)
    if not manifests:
        raise DigestError(f"{repository} is no exported repository; it must have models with a {MANIFEST}")
    for file, manifest in manifests:
        before = manifest["files"]
        after = {
            f"{model}/{name}": Verifier(repository)._digest(path)
            for model in manifest["models"]
            for name, path in _files(repository / model).items()
        }
        names = {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}
        if names:
            changed += sorted({name.split("/", 1)[0] for name in names})
            new = file.with_suffix(".new")
            new.write_text(json.dumps({**manifest, "files": after}, indent=1))
            new.rename(file)
    return changed


def _digests_of(repository: Path) -> tuple[dict[str, dict[str, str]], list[DigestError]]:
    """By model: digests by the file's path inside the model; and what is wrong with manifests that cannot be read."""
    digests: dict[str, dict[str, str]] = {}
    manifests, faults = _read_manifests(repository)
    for _, manifest in manifests:
        digests.update({model: {} for model in manifest["models"]})
        for path, digest in manifest["files"].items():
            model, _, name = path.partition("/")
            digests.setdefault(model, {})[name] = digest
    return digests, faults


def _manifests(repository: Path) -> list[tuple[Path, dict[str, Any]]]:
    """All of them; raises DigestError where one cannot be read."""
    found, faults = _read_manifests(repository)
    if faults:
        raise faults[0]
    return found


def _read_manifests(repository: Path) -> tuple[list[tuple[Path, dict[str, Any]]], list[DigestError]]:
    """Those that can be read, and what is wrong with the others."""
    found, faults = [], []
    for file in sorted(repository.glob(f"*/{MANIFEST}")):
        try:
            found.append((file, _manifest(file)))
        except DigestError as error:
            faults.append(error)
    return found, faults


def _manifest(file: Path) -> dict[str, Any]:
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DigestError(f"{file} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    version = manifest.get("version") if isinstance(manifest, dict) else None
    if version != MANIFEST_VERSION:
        raise DigestError(
            f"{file} is of version {version or '0.1'}, this Nereid reads version {MANIFEST_VERSION}; export the model again"
        )
    if not isinstance(manifest.get("files"), dict) or not isinstance(manifest.get("models"), list):
        raise DigestError(f"{file} is damaged: it must name `models` and `files`; export the model again")
    return dict(manifest)


def _files(folder: Path) -> dict[str, Path]:
    """What of a model's folder matters, by path inside it."""
    return {
        str(path.relative_to(folder)): path
        for path in folder.rglob("*")
        if path.is_file() and path.name not in _NOT_SERVED and "__pycache__" not in path.parts
    }
