"""A place at `denoise`, asked for before anything is encoded: bad options and full queues are refused at once."""

from __future__ import annotations

import math
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from nereid.flow.errors import QueueFullError
from nereid.flow.fields import Inputs
from nereid_protocol.field import Model
from nereid_protocol.fields import names, passed_on

CallModel = Callable[[str, Mapping[str, np.ndarray], Sequence[str]], dict[str, np.ndarray]]
"""Calls a model by name with inputs and wanted outputs; raises RequestError."""

_ASKED = names(field for field in passed_on(Model.TOKENIZER, Model.DENOISE) if field.name != "ticket")


def take_ticket(inputs: Inputs, prompts: int, denoise: str, call: CallModel, *, watched: bool = False) -> np.ndarray:
    """A ticket of the model `denoise` for these inputs (with a batch dimension), BYTES [prompts, 1]; raises RequestError."""
    ticket = np.array([[secrets.token_urlsafe(18).encode()]] * prompts, np.object_)
    asked = {name: inputs[name] for name in _ASKED if name in inputs}
    if watched:
        asked["after_step"] = np.full((prompts, 1), -1, np.int32)
    call(denoise, {**asked, "ticket": ticket}, ["run_state"])
    return ticket


@dataclass(slots=True, eq=False)
class Admission:
    """Tickets for many requests at once: who had come by the time the queue was seen to be full is refused with it, unasked.

    Asking costs two ways between processes, and where hundreds come at once, most of them would be asked for in vain.
    """

    denoise: str
    call: CallModel
    clock: Callable[[], float] = time.monotonic
    _full: str = ""
    _full_at: float = -math.inf

    def take(self, inputs: Inputs, prompts: int, arrived: float) -> np.ndarray:
        """`take_ticket` for a request that came at `arrived`, on `clock`."""
        if arrived <= self._full_at:
            raise QueueFullError(self._full)
        try:
            return take_ticket(inputs, prompts, self.denoise, self.call)
        except QueueFullError as error:
            self._full, self._full_at = str(error), self.clock()
            raise
