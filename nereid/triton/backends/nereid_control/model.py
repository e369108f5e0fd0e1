"""Loads and unloads models for the supervisor, and for nobody else: it is asked over a socket that only this user can open.

Triton's own interface for that is closed to everybody, because its key would have to stand on a command line.
"""

from nereid.flow.errors import InvalidRequestError
from nereid.triton import bridge
from nereid.triton.control import serve_control


class TritonPythonModel:
    """Answers no requests."""

    def initialize(self, args):
        serve_control(bridge.MODEL_CONTROL)

    def execute(self, requests):
        return [bridge.error_response(InvalidRequestError("this model takes no requests")) for _ in requests]
