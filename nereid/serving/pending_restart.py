"""A restart of Triton that ends requests which would never be answered: whom it is for, and when it is due; restarts nothing."""

from __future__ import annotations

import logging
from collections.abc import Collection
from dataclasses import dataclass, field

from nereid.flow.awake_time import AwakeTime
from nereid.serving.activity import is_idle
from nereid.serving.models import ServedModels

log = logging.getLogger("nereid.serve")

WITHIN_SECONDS = 60.0
"""How long it waits for other pipelines to be idle."""
_ROUND_SECONDS = 10.0
"""What a round of supervision may last, in which Triton is asked this and that."""


@dataclass(slots=True)
class PendingRestart:
    """Once no pipeline but those that it is for has requests inside, or after a minute."""

    by: float | None = None
    """When it is due in any case, in the time of who asks whether it is; None where there is none."""
    _models: set[str] = field(default_factory=set)
    _time: AwakeTime = field(default_factory=lambda: AwakeTime(_ROUND_SECONDS))

    def ask(self, models: Collection[str], served: ServedModels) -> None:
        """Have one for these, too."""
        if self.by is None:
            self.by, self._models = self._time.look() + WITHIN_SECONDS, set()
        # Whatever is inside a pipeline passes through its loop; what is beside a dead stream goes on to its end first.
        self._models |= set(models) | served.pipeline_of([name for name in models if served.answers_late(name)])
        log.warning(
            "requests inside %s will never be answered: Triton is restarted when other pipelines are idle, or in %g s",
            ", ".join(models),
            self.by - self._time.now(),
        )

    @property
    def is_overdue(self) -> bool:
        return self.by is not None and self._time.look() >= self.by

    def is_due(self, metrics_url: str) -> bool:
        return self.is_overdue or (self.by is not None and is_idle(metrics_url, besides=self._models))

    def forget(self) -> None:
        """It has been, or another one."""
        self.by = None
