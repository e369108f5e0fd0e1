"""Engines give way to those who take requests and answer."""

from __future__ import annotations

import subprocess
import sys


def test_a_process_gives_way_once_and_no_further() -> None:
    code = "import os; from nereid.engines.priority import give_way; give_way(); give_way(); print(os.nice(0))"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert int(said) == 10
