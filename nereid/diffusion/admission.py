"""A place at `denoise`, asked for before anything is encoded: bad options and full queues are refused at once."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from nereid.flow.fields import Inputs
from nereid_protocol.fields import Model, names, passed_on

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
