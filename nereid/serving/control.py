"""Speaks to the control model inside Triton over its private socket: load, swap, unload; knows nothing of when to."""

from __future__ import annotations

import json
import shutil
import socket
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from google.protobuf import json_format
from tritonclient.grpc.model_config_pb2 import ModelConfig

from nereid.flow.awake_time import AwakeTime

CONTROL_MODEL = "nereid_control"
CONTROL_SOCKET = "NEREID_CONTROL_SOCKET"
"""Environment variable of Triton's processes: where the control model listens."""
RELOAD_PARAMETER = "nereid.reload"
"""Differs with each reload: Triton does not load a model again whose config is what it was. Models do not see it."""

_MODEL = Path(__file__).resolve().parent.parent / "triton" / "control_model.py"
_CONFIG = f"""name: "{CONTROL_MODEL}"
backend: "python"
max_batch_size: 0
output [ {{ name: "nothing" data_type: TYPE_INT32 dims: [ 1 ] }} ]
instance_group [ {{ count: 1 kind: KIND_CPU }} ]
"""


class ControlError(Exception):
    """Triton has refused, or the control model is not there."""


def write_control_repository(folder: Path) -> None:
    """A second model repository that holds the control model alone."""
    version = folder / CONTROL_MODEL / "1"
    version.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(_MODEL, version / "model.py")
    (folder / CONTROL_MODEL / "config.pbtxt").write_text(_CONFIG)


@dataclass(frozen=True, slots=True)
class ModelControl:
    """The supervisor's end of the socket."""

    path: Path
    stopping: threading.Event
    timeout: float

    def swap(self, model: str, config: ModelConfig) -> None:
        """Load the model again beside the one that serves, then put it in its place; ensembles follow. Raises ControlError."""
        changed: Any = ModelConfig()
        changed.CopyFrom(config)
        changed.parameters[RELOAD_PARAMETER].string_value = str(time.time_ns())
        self._ask("load_model", model_name=model, config=json_format.MessageToJson(changed, preserving_proto_field_name=True))

    def load(self, model: str, config: ModelConfig) -> None:
        """Load a model that is not loaded. Raises ControlError."""
        self.swap(model, config)

    def unload(self, model: str) -> None:
        self._ask("unload_model", model_name=model)

    def _ask(self, verb: str, **arguments: str) -> None:
        try:
            with socket.socket(socket.AF_UNIX) as connection:
                connection.settimeout(5)
                connection.connect(str(self.path))
                connection.sendall(json.dumps({"verb": verb, **arguments}).encode() + b"\n")
                answer = json.loads(self._receive(connection))
        except (OSError, ValueError) as error:
            raise ControlError(f"the control model does not answer: {error}") from None
        if answer.get("error"):
            raise ControlError(answer["error"])

    def _receive(self, connection: socket.socket) -> bytes:
        """One line; the wait ends early when the supervisor is to stop."""
        connection.settimeout(0.1)
        awake = AwakeTime()
        deadline = awake.now() + self.timeout
        received = b""
        while not received.endswith(b"\n"):
            if self.stopping.is_set() or awake.look() > deadline:
                raise TimeoutError("given up")
            try:
                part = connection.recv(65536)
            except TimeoutError:
                continue
            if not part:
                raise ConnectionError("connection closed")
            received += part
        return received
