"""No test depends on those that ran before it in its process (`conftest`): each finds the same, alone or among thousands."""

from __future__ import annotations

import gc
import logging
import os
import random
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from nereid_zoo.cli import app

from as_ever import RECURSION, left_as_found

torch = pytest.importorskip("torch")

pytestmark = pytest.mark.torch


def draw() -> tuple[float, ...]:
    return random.random(), np.random.random(), torch.rand(()).item()


@pytest.fixture(scope="module")
def drawn() -> tuple[float, ...]:
    return draw()


@pytest.mark.parametrize("time", ["once", "again"])
def test_what_draws_without_a_seed_draws_the_same_whatever_drew_before(drawn: tuple[float, ...], time: str) -> None:
    assert draw() == drawn


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda: os.chdir("/"), "the working folder: /, not "),
        (lambda: signal.signal(signal.SIGTERM, lambda *_: None), "SIGTERM: <function "),
        (lambda: setattr(sys, "stdout", sys.stderr), "sys.stdout: "),
        (lambda: socket.setdefaulttimeout(1), "sockets' timeout: 1.0, not None"),
        (gc.disable, "garbage collection: False, not True"),
        (lambda: torch.set_grad_enabled(False), "torch's gradients: False, not True"),
        (lambda: torch.set_num_threads(torch.get_num_threads() + 1), "torch's threads: "),
    ],
)
def test_what_a_test_leaves_changed_of_the_process_is_named_and_put_back(change: Callable[[], object], said: str) -> None:
    """As this one is, which would fail otherwise."""
    with pytest.raises(AssertionError, match=f"^a test left {said}"), left_as_found("a test"):
        change()


@pytest.mark.parametrize(
    "change",
    [
        lambda handler: handler.setLevel(logging.ERROR),
        lambda handler: logging.root.setLevel(logging.ERROR),
        lambda handler: logging.disable(logging.ERROR),
        lambda handler: logging.root.addFilter(lambda record: False),
    ],
)
def test_a_test_that_leaves_later_ones_to_hear_less_is_named_and_what_fixtures_changed_is_put_back_before(
    change: Callable[[logging.Handler], object], caplog: pytest.LogCaptureFixture
) -> None:
    handlers = (caplog.handler, logging.NullHandler())
    with pytest.raises(AssertionError, match=r"^a test left logging: \("), left_as_found("a test", handlers):
        change(caplog.handler)
    change(caplog.handler)
    with left_as_found("a test", handlers):
        logging.getLogger("nereid.here").warning("heard")
    assert [record.message for record in caplog.records] == ["heard"]


def test_the_environment_and_the_recursion_limit_are_put_back() -> None:
    os.environ["NEREID_KEPT"] = "a"
    sys.setrecursionlimit(RECURSION + 1000)  # as by a fixture of many tests
    try:
        with left_as_found("a test"):
            assert sys.getrecursionlimit() == RECURSION
            os.environ["NEREID_KEPT"], os.environ["NEREID_NEW"] = "b", "c"
            sys.setrecursionlimit(RECURSION + 1000)
        assert (os.environ["NEREID_KEPT"], "NEREID_NEW" in os.environ) == ("a", False)
        assert sys.getrecursionlimit() == RECURSION
    finally:
        del os.environ["NEREID_KEPT"]


def test_what_a_command_says_of_a_long_path_is_in_one_piece() -> None:
    """pytest's folders have a number, and the lines of a box an end."""
    path = "/".join(["nowhere"] * 20)
    done = CliRunner().invoke(app, ["train", "shapes-tiny-vae", "--out", "out", "--teacher", path])
    assert f"{path} is not allowed; it must be a painter of shapes" in done.output


HELP = """
import conftest
conftest.pytest_configure()
from typer.testing import CliRunner
from nereid_client.main import app
print(CliRunner().invoke(app, ["top", "--help"]).output)
"""


def test_what_a_command_says_has_no_colours_where_a_runner_of_tests_wants_some() -> None:
    path = os.pathsep.join([str(Path(__file__).parent), *(folder for folder in sys.path if folder)])
    wants = {"FORCE_COLOR": "1", "GITHUB_ACTIONS": "true", "PYTHONPATH": path}
    said = subprocess.run([sys.executable, "-c", HELP], env={**os.environ, **wants}, capture_output=True, text=True, check=True)
    assert "--interval" in said.stdout
    assert "\x1b" not in said.stdout
