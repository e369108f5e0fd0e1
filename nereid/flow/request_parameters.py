"""What a request brings beside its tensors: members of a `generate` body that are no input come as parameters of the request."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping

import numpy as np

from nereid.flow.errors import InvalidRequestError
from nereid.flow.parameters import hint_of

REQUEST_PARAMETERS = "request_parameters"
"""Under this name the bridge hands them on among the inputs: a JSON object."""


def refuse_parameters(inputs: Mapping[str, np.ndarray], known: Collection[str]) -> None:
    """Raise InvalidRequestError naming the first that came along, and which of the fields `known` comes nearest."""
    if REQUEST_PARAMETERS not in inputs:
        return
    name = next(iter(json.loads(inputs[REQUEST_PARAMETERS].item())))
    hint = hint_of(name, known, "docs/reference.md lists what is")
    raise InvalidRequestError(f"{name} is not a field of this model; {hint}", name)
