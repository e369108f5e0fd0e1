"""Compiled engines on disk, found again after a restart; knows nothing of what a library writes there.

An entry is a folder of files with their digests: libraries load what is damaged without a word. Entries are native code and
weights, so that the cache is a folder that nobody else can write to.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import re
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from nereid.engines.digests import file_digest

log = logging.getLogger(__name__)

CACHE_FOLDER = "NEREID_CACHE_DIR"
"""The environment variable that names the folder; without it nothing is kept."""
KEPT_DAYS = 30
"""How long an entry is kept that nobody uses."""

_ENGINES = "engines"
_DIGESTS = "digests.json"
_NEW = "new-"
_OURS = re.compile(rf"[0-9a-f]{{64}}|{_NEW}.*")


def default_folder() -> Path | None:
    """Where a user's caches lie; None where the user has no home."""
    place = os.environ.get("XDG_CACHE_HOME", "")
    if place.startswith("/"):
        return Path(place) / "nereid"
    with contextlib.suppress(RuntimeError):
        return Path.home() / ".cache" / "nereid"
    return None


def choose_folder(wanted: Path | None, otherwise: Path) -> Path:
    """`wanted`, ready to be used; `otherwise` where there is none, or it is refused, which is said."""
    refusal = None if wanted is None else _prepare(wanted)
    if wanted is not None and refusal is None:
        return wanted
    if refusal is not None:
        log.warning("--cache-dir: %s", refusal)
    _prepare(otherwise)
    return otherwise


def _prepare(folder: Path) -> str | None:
    """Make the folder and remove what was not used for long; a sentence where it cannot be used."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        for made in (folder, folder / _ENGINES):
            made.mkdir(mode=0o700, exist_ok=True)
            found = made.lstat()
            if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o022:
                return f"{made} is not used: it must be a folder of this user that others cannot write to (chmod 700)"
        _remove_unused(folder / _ENGINES)
    except OSError as error:
        return f"{folder} is not used: {error.strerror}"
    return None


def _remove_unused(folder: Path) -> None:
    for entry in folder.iterdir():
        with contextlib.suppress(FileNotFoundError):  # another server has renamed or removed it since
            if _OURS.fullmatch(entry.name) and entry.lstat().st_mtime < time.time() - KEPT_DAYS * 86400:
                shutil.rmtree(entry, ignore_errors=True)


@dataclass(frozen=True, slots=True)
class CompileCache:
    """Entries by keys."""

    folder: Path

    @classmethod
    def of_environment(cls) -> CompileCache | None:
        """The cache that the supervisor has prepared."""
        place = os.environ.get(CACHE_FOLDER)
        return cls(Path(place) / _ENGINES) if place else None

    @contextlib.contextmanager
    def entry(self, *key: str) -> Iterator[Path | None]:
        """The entry's folder, for a library to read, or to write to: then it is kept, unless the block raises.

        None where the cache cannot be written.
        """
        entry = self.folder / hashlib.sha256(json.dumps(key).encode()).hexdigest()
        if self._is_whole(entry):
            with contextlib.suppress(OSError):  # where it can only be read, nobody removes what is old either
                os.utime(entry)
            yield entry
            return
        try:
            made = Path(tempfile.mkdtemp(prefix=_NEW, dir=self.folder))
        except OSError as error:
            log.warning("%s cannot be written: %s", self.folder, error.strerror)
            yield None
            return
        try:
            yield made
            with contextlib.suppress(OSError):  # another process was sooner, or the disk is full
                # Libraries keep nothing where the disk is full, and say nothing.
                if digests := _digests(made):
                    (made / _DIGESTS).write_text(json.dumps(digests))
                    made.rename(entry)
        finally:
            shutil.rmtree(made, ignore_errors=True)

    @staticmethod
    def _is_whole(entry: Path) -> bool:
        """Whether the entry is as it was written; what is left of another one is removed."""
        if not os.path.lexists(entry):
            return False
        folder = entry.is_dir() and not entry.is_symlink()
        with contextlib.suppress(OSError, ValueError):
            if folder and json.loads((entry / _DIGESTS).read_text()) == _digests(entry):
                return True
        log.warning("%s is damaged; the engine is compiled again", entry)
        with contextlib.suppress(OSError):
            shutil.rmtree(entry) if folder else entry.unlink()
        return False


def _digests(folder: Path) -> dict[str, str]:
    found = {}
    for path in sorted(folder.iterdir()):
        if path.name != _DIGESTS:
            found[path.name] = file_digest(path)
    return found
