"""Which models that died may be loaded again: those whose files are what was exported; loads none."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from nereid.engines.digests import DigestError, Verifier

log = logging.getLogger("nereid.serve")

REFUSED_SECONDS = 10.0
"""How long until a model whose files were changed is looked at again."""


@dataclass(slots=True)
class Reloadable:
    verifier: Verifier
    _not_until: dict[str, float] = field(default_factory=dict)

    def among(self, dead: Sequence[str]) -> list[str]:
        """Those of them. The others stay down, and are looked at again after a while."""
        allowed, now = [], time.monotonic()
        for model in dead:
            if now < self._not_until.get(model, 0.0):
                continue
            try:
                self.verifier.verify([model])
                allowed.append(model)
            except DigestError as error:
                log.error("%s is not reloaded: %s", model, error)
                self._not_until[model] = now + REFUSED_SECONDS
        return allowed
