"""The worker's own side: `python -m nereid.engines.worker_main MODULE:FUNCTION --name NAME ...`; knows no model.

The function gets a Seat, builds what it serves, says `ready`, and takes messages until the pair closes. The process ends when
its parent does: by the closed pair, and by the kernel's signal should the process be too busy to read.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib
import logging
import os
import queue
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from nereid.engines.channel import Channel, Message
from nereid.engines.priority import give_way

_PR_SET_PDEATHSIG = 1
BEAT_SECONDS = 0.25

log = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class Seat:
    """What a worker's function is given: its settings, its channel, and the counter that the watchdog reads.

    Count `ticks` up while `busy`: a worker that is busy and does not count is taken for hung.
    """

    name: str
    settings: Mapping[str, Any]
    channel: Channel
    ticks: int = 0
    busy: bool = False

    def ready(self, **facts: Any) -> None:
        """Tell that everything is loaded; from now on the watchdog watches."""
        self.channel.send(Message("ready", facts))
        threading.Thread(target=self._beat_forever, name="beat", daemon=True).start()

    def take_into(self, inbox: queue.SimpleQueue[Message]) -> None:
        """Read messages on a thread of their own; the process ends when the parent's end has closed."""

        def read() -> None:
            for message in self.channel.receive():
                inbox.put(message)
            os._exit(0)

        threading.Thread(target=read, name="inbox", daemon=True).start()

    def _beat_forever(self) -> None:
        while True:
            self.channel.send(Message("beat", {"ticks": self.ticks, "busy": self.busy}))
            time.sleep(BEAT_SECONDS)


def die_with_parent(parent: int) -> None:
    """Ask the kernel for SIGKILL when the thread that started this process ends; leave at once where it already has."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(0)


def main() -> None:
    """Join the pair, get the settings, and hand over to the named function."""
    parser = argparse.ArgumentParser(prog="nereid worker", description=__doc__)
    parser.add_argument("function", metavar="MODULE:FUNCTION")
    parser.add_argument("--name", required=True)
    parser.add_argument("--socket", type=int, required=True)
    parser.add_argument("--parent", type=int, required=True)
    options = parser.parse_args()
    die_with_parent(options.parent)
    give_way()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C is for the parent, which then closes the pair
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format=f"%(levelname)s {options.name} worker: %(message)s")
    channel = Channel(socket.socket(fileno=options.socket), f"{options.name}-worker")
    settings = next(channel.receive())
    module, _, name = options.function.partition(":")
    function: Callable[[Seat], None] = getattr(importlib.import_module(module), name)
    code = 0
    try:
        function(Seat(options.name, settings.body, channel))
    except (ValueError, OSError) as error:  # a mistake in what is to be served: a sentence, no traceback
        log.error("%s", error)
        channel.send(Message("broken", {"sentence": str(error)}))
        code = 1
    except Exception:
        log.exception("the worker ends")
        code = 1
    time.sleep(0.05 if code else 0)  # the writer's last message
    os._exit(code)  # at once: threads may hang in native code


if __name__ == "__main__":
    main()
