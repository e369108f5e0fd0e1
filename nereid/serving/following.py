"""Follows a repository while it is served: models that come to it are loaded, those whose folders go are unloaded.

A folder is believed when it looks the same at two looks in a row: an export exchanges the whole repository for another one, on
some file systems in two steps, and what is copied by hand comes file by file.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from nereid.engines.digests import DigestError, Verifier
from nereid.serving.control import ControlError
from nereid.serving.errors import ServingError
from nereid.serving.models import ServedModels

log = logging.getLogger("nereid.serve")

LOOK_SECONDS = 1.0
TOLD_SECONDS = 2.5
"""How long a model is served on after /ready has ceased to name it: who asks there every second sends it nothing more."""
AGAIN_SECONDS = 10.0
"""How long until a model that could not be loaded is tried again."""

_Files = tuple[tuple[str, int, int], ...]


class Server(Protocol):
    """What serves the models."""

    @property
    def models(self) -> ServedModels: ...

    @property
    def is_settled(self) -> bool:
        """Whether it runs, and is not about to be started again."""

    def take_in(self, model: str, config: Any) -> None:
        """Load a model, and serve it from now on; raises ControlError."""

    def forget(self, models: Sequence[str]) -> None:
        """Tell of these no more; they are served on."""

    def let_go(self, model: str) -> None:
        """Unload it once what is inside has ended; raises ControlError."""


@dataclass(slots=True, eq=False)
class Following:
    """One repository and what serves it; `run` is a thread's, for loading takes long, and what dies meanwhile is to be healed."""

    repository: Path
    verifier: Verifier
    server: Server
    stopping: threading.Event
    _before: Mapping[str, _Files] | None = None
    _not_until: dict[str, float] = field(default_factory=dict)

    def run(self) -> None:
        """Until it is stopped."""
        while not self.stopping.wait(LOOK_SECONDS):
            try:
                if self.server.is_settled:
                    self.look()
            except Exception:
                log.exception("the repository could not be followed; going on")

    def look(self) -> None:
        """Bring what is served in line with what is there, as far as that is whole."""
        before, now = self._before, self._folders()
        self._before = now
        if now is None or before is None:
            return
        served = self.server.models.configs
        gone = [name for name in served if name not in now and name not in before]
        come = [name for name in now if name not in served and now[name] == before.get(name)]
        if gone:
            self._let_go(sorted(gone, key=lambda name: not served[name].ensemble_scheduling.step))
        if come:
            self._take_in([name for name in come if time.monotonic() >= self._not_until.get(name, 0.0)])

    def _take_in(self, names: Sequence[str]) -> None:
        """Ensembles last: they are made of others."""
        configs = {name: config for name in names if (config := self._whole(name)) is not None}
        for name in sorted(configs, key=lambda name: bool(configs[name].ensemble_scheduling.step)):
            try:
                self.server.take_in(name, configs[name])
                log.info("%s has come to the repository, and is served", name)
            except ControlError as error:
                self._put_off(name, error)

    def _let_go(self, names: Sequence[str]) -> None:
        self.server.forget(names)
        self.stopping.wait(TOLD_SECONDS)
        for name in names:
            try:
                self.server.let_go(name)
                log.info("%s has gone from the repository, and is served no more", name)
            except ControlError as error:
                log.error("%s, which has gone from the repository, could not be unloaded: %s", name, error)

    def _whole(self, name: str) -> Any | None:
        """Its config, if its files are what was exported."""
        try:
            self.verifier.verify([name])
            return ServedModels.read(self.repository, [name]).configs.get(name)
        except (DigestError, ServingError) as error:
            self._put_off(name, error)
            return None

    def _put_off(self, name: str, reason: Exception) -> None:
        log.error("%s, which has come to the repository, is not served: %s", name, reason)
        self._not_until[name] = time.monotonic() + AGAIN_SECONDS

    def _folders(self) -> dict[str, _Files] | None:
        """Every model's files, of those that are not served, with their sizes and times; None where that cannot be read."""
        served = self.server.models.configs
        try:
            if not self.repository.is_dir():
                return None
            folders = [file.parent for file in sorted(self.repository.glob("*/config.pbtxt"))]
            return {folder.name: () if folder.name in served else _files(folder) for folder in folders}
        except OSError:  # it is being exchanged
            return None


def _files(folder: Path) -> _Files:
    found = []
    for file in sorted(folder.rglob("*")):
        if file.is_file() and "__pycache__" not in file.parts:
            stat = file.stat()
            found.append((str(file.relative_to(folder)), stat.st_size, stat.st_mtime_ns))
    return tuple(found)
