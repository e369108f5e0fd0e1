"""What each test finds as if it ran alone: random numbers, and what belongs to the whole process. `conftest` takes it in."""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import random
import signal
import socket
import sys
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

RECURSION = sys.getrecursionlimit()
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD, signal.SIGPIPE)


def seed_as_ever() -> None:
    """Whoever draws without a seed of its own draws what it would alone, whatever drew before."""
    random.seed(0)
    np.random.seed(0)
    if generator := getattr(sys.modules.get("torch"), "default_generator", None):
        generator.manual_seed(67280421310721)  # as a process begins (c10::detail::default_rng_seed_val)


@pytest.hookimpl(tryfirst=True)
def pytest_fixture_setup(fixturedef: pytest.FixtureDef[Any]) -> None:
    if fixturedef.scope != "function":
        seed_as_ever()


@pytest.fixture(autouse=True)
def random_as_ever() -> None:
    """After fixtures of many tests, which only the first of them sets up."""
    seed_as_ever()


Logging = tuple[int, int, bool, list[Any], list[int]]
HEARD: Logging = (logging.WARNING, logging.NOTSET, False, [], [logging.NOTSET] * 2)
"""Of logging: the root's level, what is disabled, whether the root is, its filters, and the levels of pytest's handlers.

pytest's two handlers live as long as it does, and it hands them to loggers that do not propagate: a library that sets its own
handlers' levels sets theirs as well, for all later tests.
"""


def heard(handlers: Sequence[logging.Handler]) -> Logging:
    root = logging.root
    return root.level, root.manager.disable, root.disabled, list(root.filters), [handler.level for handler in handlers]


def hear(handlers: Sequence[logging.Handler], as_before: Logging) -> None:
    level, disabled, logging.root.disabled, filters, levels = as_before
    logging.root.filters = list(filters)
    logging.disable(disabled)
    logging.root.setLevel(level)
    for handler, its_level in zip(handlers, levels, strict=True):
        handler.setLevel(its_level)


def kept(handlers: Sequence[logging.Handler]) -> dict[str, tuple[object, Callable[[Any], object]]]:
    """Of the process, by name: what there is, and how it is put back."""
    found: dict[str, tuple[object, Callable[[Any], object]]] = {
        "the working folder": (Path.cwd(), os.chdir),
        "sockets' timeout": (socket.getdefaulttimeout(), socket.setdefaulttimeout),
        "garbage collection": (gc.isenabled(), lambda on: gc.enable() if on else gc.disable()),
        "tracemalloc": (tracemalloc.is_tracing(), lambda on: tracemalloc.start() if on else tracemalloc.stop()),
    }
    for name in ("stdin", "stdout", "stderr"):
        found[f"sys.{name}"] = getattr(sys, name), lambda stream, name=name: setattr(sys, name, stream)
    for number in SIGNALS:
        found[number.name] = signal.getsignal(number), lambda handler, number=number: signal.signal(number, handler)
    if handlers:
        found["logging"] = heard(handlers), partial(hear, handlers)
    if (torch := sys.modules.get("torch")) and hasattr(torch, "set_grad_enabled"):
        found["torch's threads"] = torch.get_num_threads(), torch.set_num_threads
        found["torch's default dtype"] = torch.get_default_dtype(), torch.set_default_dtype
        found["torch's gradients"] = torch.is_grad_enabled(), torch.set_grad_enabled
    return found


@contextlib.contextmanager
def left_as_found(where: str, handlers: Sequence[logging.Handler] = ()) -> Iterator[None]:
    """Fails where something of the process is another afterwards; for those that follow it is put back.

    The environment and the recursion limit are put back in silence: libraries change them for good when they are first used
    (torch's compiler both). What is logged through these handlers of pytest is as ever from the beginning, whatever a fixture of
    many tests has changed.
    """
    if handlers:
        hear(handlers, HEARD)
    environment, before = dict(os.environ), kept(handlers)
    sys.setrecursionlimit(RECURSION)  # whatever a fixture of many tests has compiled
    yield
    after, changed = kept(handlers), []
    for name, (value, put_back) in before.items():
        if after[name][0] != value:
            changed.append(f"{name}: {after[name][0]}, not {value}")
            put_back(value)
    sys.setrecursionlimit(RECURSION)
    for name in {*environment, *os.environ} - {"PYTEST_CURRENT_TEST"}:
        if name not in environment:
            del os.environ[name]
        elif os.environ.get(name) != environment[name]:
            os.environ[name] = environment[name]
    assert not changed, f"{where} left {', '.join(changed)}"


@pytest.fixture(autouse=True)
def process_as_ever(request: pytest.FixtureRequest) -> Iterator[None]:
    plugin = request.config.pluginmanager.get_plugin("logging-plugin")
    # `--log-level` sets them for each test.
    handlers = () if plugin.log_level is not None else (plugin.caplog_handler, plugin.report_handler)
    with left_as_found(request.node.nodeid, handlers):
        # A path that is longer than a line is folded: the number of pytest's folder decides whether a sentence is found in it.
        os.environ["COLUMNS"] = "300"
        yield
