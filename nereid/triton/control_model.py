"""The model through which the supervisor loads and unloads models; copied into a repository of its own, see serving/control.py.

It is asked over a socket that only this user can open. Triton's own interface for that is closed to everybody, because its
key would have to stand on a command line.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from nereid.flow.errors import InvalidRequestError
from nereid.triton import bridge
from nereid.triton.control import serve_control


class TritonPythonModel:
    """Answers no requests."""

    def initialize(self, args: dict[str, str]) -> None:
        serve_control(bridge.MODEL_CONTROL)

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        return [bridge.error_response(InvalidRequestError("this model takes no requests")) for _ in requests]
