"""Loads models whose Python process died again, beside those that serve on; starts and ends no server."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from nereid.engines.digests import Verifier
from nereid.flow.unanswered import take_unanswered
from nereid.serving.control import CONTROL_MODEL, ControlError
from nereid.serving.pending_restart import PendingRestart
from nereid.serving.process import TritonProcess
from nereid.serving.reloadable import Reloadable

log = logging.getLogger("nereid.serve")


@dataclass(slots=True)
class Healing:
    """`state` is the folder of a serve's state; `has_gone` says whether a model's folder has gone from a followed repository."""

    triton: TritonProcess
    verifier: Verifier
    pending: PendingRestart
    state: Path
    has_gone: Callable[[str], bool]
    unwell: set[str] = field(default_factory=set, init=False)
    """Those that have died and do not serve again."""
    _reloadable: Reloadable = field(init=False)

    def __post_init__(self) -> None:
        self._reloadable = Reloadable(self.verifier)

    def allowed(self, dead: Sequence[str]) -> list[str]:
        """Those whose files are what was exported.

        One whose folder has gone from a repository that is followed is about to be let go: the follower need not wait for it.
        """
        gone = {model for model in dead if self.has_gone(model)}
        dead = [model for model in dead if model not in gone]
        allowed = self._reloadable.among(dead)
        self.unwell = (self.unwell - gone) | (set(dead) - set(allowed))
        return allowed

    def load(self, models: Sequence[str]) -> None:
        """Bring them back; raises ControlError where that needs another server.

        Requests that such a process had taken on to answer later are never answered by Triton: where there were any (or the
        model's config says `restart_on_death`) the server is to be restarted too, once no other pipeline has requests inside, or
        after a minute.
        """
        self.unwell |= set(models)
        log.warning("the Python process of %s died; reloading the model", ", ".join(models))
        if CONTROL_MODEL in models:
            raise ControlError("the control model's own process died")
        self.verifier.share(self.state)
        held = take_unanswered(self.state, models)
        served = self.triton.models
        for model in models:
            self.triton.control.swap(model, served.configs[model])
        late = [model for model in models if model in held or served.answers_late(model)]
        if late:
            self.pending.ask(late, served)
        self.unwell -= set(models)
