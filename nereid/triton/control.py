"""The control model's socket: one line of JSON in, one out, mode 0600; knows the verbs only as callables."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import struct
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

log = logging.getLogger(__name__)

CONTROL_SOCKET = "NEREID_CONTROL_SOCKET"
MAX_LINE = 4 * 2**20


def serve_control(verbs: Mapping[str, Callable[..., object]]) -> None:
    """Listen on a thread of its own, for as long as the process lives."""
    path = Path(os.environ[CONTROL_SOCKET])
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX)
    # The folder is private (0700) already; the mode is set before anyone can connect.
    listener.bind(str(path))
    path.chmod(0o600)
    listener.listen(8)
    threading.Thread(target=_accept, args=(listener, verbs), name="control", daemon=True).start()


def _accept(listener: socket.socket, verbs: Mapping[str, Callable[..., object]]) -> None:
    while True:
        connection, _ = listener.accept()
        threading.Thread(target=_answer, args=(connection, verbs), name="control request", daemon=True).start()


def _answer(connection: socket.socket, verbs: Mapping[str, Callable[..., object]]) -> None:
    with contextlib.suppress(OSError), connection, connection.makefile("rwb") as file:
        if _peer(connection) not in (0, os.getuid()):
            return
        try:
            question = json.loads(file.readline(MAX_LINE))
            verbs[question.pop("verb")](**question)
            answer: dict[str, str] = {}
        except Exception as error:
            log.warning("loading or unloading a model failed: %s", error)
            answer = {"error": str(error)}
        file.write(json.dumps(answer).encode() + b"\n")


def _peer(connection: socket.socket) -> int:
    """The user at the other end."""
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    return int(struct.unpack("3i", credentials)[1])
