"""The folder for small state that outlives a process of Triton's within one `serve`; its place is in the environment."""

from __future__ import annotations

import os
from pathlib import Path

STATE_FOLDER = "NEREID_STATE_DIR"
"""The environment variable that names the folder; without it no such state is kept."""


def state_file(name: str) -> Path | None:
    """A file of this name in the folder; None where there is no folder."""
    folder = os.environ.get(STATE_FOLDER)
    return Path(folder) / name if folder else None
