"""The folder for small state that outlives a process of Triton's within one `serve`; its place is in the environment."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

STATE_FOLDER = "NEREID_STATE_DIR"
"""The environment variable that names the folder; without it no such state is kept."""

_DOWN = "worker-down"
_LOADED = "loaded"


def state_file(name: str) -> Path | None:
    """A file of this name in the folder; None where there is no folder."""
    folder = os.environ.get(STATE_FOLDER)
    return Path(folder) / name if folder else None


def process_file(kind: str, model: str) -> Path | None:
    """This process's own file of some kind, by which others find it and the model that it serves."""
    return state_file(f"{kind}-{os.getpid()}-{model}")


def process_files(folder: Path, kind: str) -> Iterator[tuple[int, str, Path]]:
    """Pid, model and file of every process that has made one."""
    for file in folder.glob(f"{kind}-*"):
        pid, _, model = file.name.removeprefix(f"{kind}-").partition("-")
        if pid.isdecimal():
            yield int(pid), model, file


def set_worker_down(model: str, is_down: bool) -> None:
    """Tell the supervisor, which does not see it, that this process's worker is gone, or back."""
    file = process_file(_DOWN, model)
    if file is None:
        return
    with contextlib.suppress(OSError):  # readiness is then too good by a few seconds: nothing else depends on it
        if is_down:
            file.touch(mode=0o600)
        else:
            file.unlink(missing_ok=True)


def models_with_worker_down(folder: Path) -> list[str]:
    """Models whose process lives and has said that its worker is gone."""
    return sorted({model for pid, model, _ in process_files(folder, _DOWN) if Path(f"/proc/{pid}").is_dir()})


def set_loaded(model: str) -> None:
    """Tell the supervisor that this process has loaded its model just now."""
    file = process_file(_LOADED, model)
    if file is not None:
        with contextlib.suppress(OSError):  # the model is then told without its seconds
            file.touch(mode=0o600)


def loaded_at(folder: Path) -> dict[int, float]:
    """When (in seconds since the epoch) the processes that have said so had loaded their models, by pid."""
    found = {}
    for pid, _, file in process_files(folder, _LOADED):
        with contextlib.suppress(OSError):
            found[pid] = file.stat().st_mtime
    return found
