"""A worker that echoes, and does what workers do when they go wrong."""

from __future__ import annotations

import os
import queue
import time

from nereid.engines.channel import Message
from nereid.engines.worker_main import Seat


def run(seat: Seat) -> None:
    if seat.settings.get("refuses"):
        raise ValueError("no such model")
    inbox: queue.SimpleQueue[Message] = queue.SimpleQueue()
    seat.take_into(inbox)
    seat.ready(pid=os.getpid(), settings=dict(seat.settings))
    kept = []
    while True:
        message = inbox.get()
        match message.kind:
            case "hang":
                seat.busy = True
                time.sleep(600)
            case "garbage":
                seat.channel.end.sendall(b"\x00 this is no message \xff" * 8)
            case "exit":
                os._exit(3)
            case "grow":
                kept.append(bytearray(os.urandom(2**20)) * 200)
            case _:
                seat.channel.send(Message("echo", {**message.body, "pid": os.getpid()}, message.arrays))
