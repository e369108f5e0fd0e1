"""Other libraries are silenced while they work, and heard again afterwards, also where exports work on several threads."""

from __future__ import annotations

import importlib
import json
import logging
import subprocess
import sys
import threading
import warnings

import pytest

pytest.importorskip("torch")

from nereid_export.engines.openvino_quantised import import_nncf
from nereid_export.silence import quiet

pytestmark = pytest.mark.torch


def heard() -> tuple[object, ...]:
    levels = [logging.getLogger(name).level for name in ("torch.onnx", "transformers", "onnxscript")]
    return (*levels, list(logging.root.filters), sys.stdout, sys.stderr, list(warnings.filters))


def test_who_leaves_first_does_not_end_the_silence_of_others_nor_does_the_last_keep_it() -> None:
    for name in ("diffusers.utils", "transformers.utils"):  # they set levels of their own when they are first imported
        importlib.import_module(name).logging.get_verbosity()
    before = heard()
    assert logging.ERROR not in before[:3]
    is_inside, may_leave = threading.Event(), threading.Event()

    def another() -> None:
        with quiet(printing=True):
            is_inside.set()
            may_leave.wait(30)

    thread = threading.Thread(target=another)
    with quiet(printing=True):
        thread.start()
        assert is_inside.wait(30)
    assert logging.getLogger("onnxscript").level == logging.ERROR
    assert sys.stdout is not before[4]
    may_leave.set()
    thread.join()
    assert heard() == before


def test_printing_is_silenced_only_where_asked_and_failures_raise(capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        with quiet(printing=True):
            print("silenced")
            raise ValueError("wrong")

    with quiet():
        print("heard")
        with pytest.raises(ValueError, match="wrong"):
            fail()
    assert capsys.readouterr().out == "heard\n"


def test_handlers_that_others_have_added_to_a_silenced_logger_keep_their_levels() -> None:
    """NNCF's own way of silencing it sets those of all its logger's handlers: pytest lends it its own, for one."""
    pytest.importorskip("nncf")
    import_nncf()
    logger, lent = logging.getLogger("nncf"), logging.NullHandler()
    logger.addHandler(lent)
    try:
        import_nncf()
        with quiet():
            assert not logger.isEnabledFor(logging.WARNING)
    finally:
        logger.removeHandler(lent)
    assert lent.level == logging.NOTSET


HEARD = """
import json, logging
from nereid_export.silence import quiet

heard = []

class Hearing(logging.Handler):
    def emit(self, record):
        heard.append(record.getMessage())

logging.root.addHandler(Hearing())
with quiet():
    for name in ("nereid.gateway", "onnxscript", "diffusers", "root"):
        logging.getLogger(name).warning("from %s", name)
    logging.error("an error")
logging.warning("afterwards")
print(json.dumps(heard))
"""


def test_what_this_project_says_is_heard_meanwhile() -> None:
    """An export that goes on in the background takes nobody's warnings, but those of other libraries and of the root.

    In a process of its own: threads of other tests' libraries set the root's level as they like.
    """
    run = subprocess.run([sys.executable, "-c", HEARD], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout) == ["from nereid.gateway", "an error", "afterwards"]
