"""Messages between two processes over a socket pair: a JSON header and raw arrays; knows nothing of what they mean.

No pickles cross: what is read can be numbers, text, lists, maps and numeric arrays, whoever wrote it. Who sends writes as much as
the socket takes at once, and a thread of the channel's own the rest, so that a full socket never holds up the sender.
"""

from __future__ import annotations

import contextlib
import json
import math
import queue
import socket
import struct
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

_LENGTHS = struct.Struct("<4sII")
_MARK = b"NRD1"
"""Begins every message: what does not begin with it was not written by a channel."""
_MOST_BYTES = 2**30
_ARRAYS = "arrays"
_READ_BYTES = 2**16
"""Asked for at once where less is missing: a step's message comes whole."""


class BrokenChannelError(Exception):
    """What arrived is no message: the other side has gone mad, or is no channel."""


@dataclass(frozen=True, slots=True)
class Message:
    """`kind` says what it is, `body` is plain JSON, `arrays` are numeric."""

    kind: str
    body: Mapping[str, Any] = field(default_factory=dict)
    arrays: Mapping[str, NDArray[Any]] = field(default_factory=dict)

    def pack(self) -> bytes:
        """The message as bytes."""
        arrays = {name: np.ascontiguousarray(value) for name, value in self.arrays.items()}
        shapes = [(name, value.dtype.str, value.shape) for name, value in arrays.items()]
        header = json.dumps({"kind": self.kind, "body": self.body, _ARRAYS: shapes}).encode()
        data = b"".join(value.tobytes() for value in arrays.values())
        if max(len(header), len(data)) > _MOST_BYTES:
            raise ValueError(f"a message of {len(header) + len(data)} bytes is too large")
        return _LENGTHS.pack(_MARK, len(header), len(data)) + header + data

    @staticmethod
    def unpack(header: bytes, data: bytes) -> Message:
        """Raises BrokenChannelError for what `pack` did not write."""
        try:
            raw = json.loads(header)
            arrays, start = {}, 0
            for name, code, shape in raw[_ARRAYS]:
                dtype = np.dtype(code)
                if dtype.kind not in "biuf":
                    raise ValueError(code)
                value = np.frombuffer(data, dtype, math.prod(shape), start).reshape(shape)
                arrays[name], start = value, start + value.nbytes
            return Message(str(raw["kind"]), raw["body"], arrays)
        except (ValueError, KeyError, TypeError) as error:
            raise BrokenChannelError(f"a message that cannot be read: {error}") from None


@dataclass(slots=True, eq=False)
class Channel:
    """One end of a socket pair. `send` returns at once; `receive` is for one thread."""

    end: socket.socket
    name: str = "channel"
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False)
    _outgoing: queue.SimpleQueue[memoryview | None] = field(default_factory=queue.SimpleQueue, init=False)
    _queued: int = field(default=0, init=False)
    """Messages and parts of them that the writer has not written yet: others go behind them."""
    _writer: threading.Thread = field(init=False)
    _read_ahead: bytearray = field(default_factory=bytearray, init=False)

    def __post_init__(self) -> None:
        self._writer = threading.Thread(target=self._write_forever, name=f"{self.name}-write", daemon=True)
        self._writer.start()

    def send(self, message: Message) -> None:
        """Write a message, or queue what the socket does not take; one that can no longer be delivered is dropped.

        Raises ValueError for one that is too large.
        """
        rest = memoryview(message.pack())
        with self._lock:
            if not self._queued:
                try:
                    rest = rest[self.end.send(rest, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL) :]
                except BlockingIOError:
                    pass
                except OSError:  # the other end is gone, which its reader tells
                    return
            if rest:
                self._queued += 1
                self._outgoing.put(rest)

    def receive(self) -> Iterator[Message]:
        """Messages as they come, until the other end closes; raises BrokenChannelError for anything else."""
        while (start := self._read(_LENGTHS.size)) is not None:
            mark, header_size, data_size = _LENGTHS.unpack(start)
            if mark != _MARK or max(header_size, data_size) > _MOST_BYTES:
                raise BrokenChannelError("bytes that begin no message")
            header, data = self._read(header_size), self._read(data_size)
            if header is None or data is None:
                return
            yield Message.unpack(header, data)

    def close(self) -> None:
        """Close both ways; whoever waits in `receive` returns."""
        self._outgoing.put(None)
        with contextlib.suppress(OSError):  # it is closed already
            self.end.shutdown(socket.SHUT_RDWR)
        self._writer.join()
        self.end.close()

    def _read(self, size: int) -> bytes | None:
        """Exactly so many bytes; None where the other end has closed."""
        ahead = self._read_ahead
        while len(ahead) < size:
            try:
                part = self.end.recv(max(_READ_BYTES, min(size - len(ahead), 2**20)))
            except OSError:
                return None
            if not part:
                return None
            ahead += part
        made = bytes(memoryview(ahead)[:size])
        del ahead[:size]
        return made

    def _write_forever(self) -> None:
        while (rest := self._outgoing.get()) is not None:
            try:
                self.end.sendall(rest)
            except OSError:  # the other end is gone, which its reader tells
                return
            with self._lock:
                self._queued -= 1
