"""onnxruntime-genai's builder in forks of a process that has imported it once: its start takes ten times a tiny build."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
import tempfile
from multiprocessing import get_context
from pathlib import Path

BUILDER = "onnxruntime_genai.models.builder"


def run_builder(arguments: list[str]) -> subprocess.CompletedProcess[str]:
    """As `nereid_export.llm_genai.run_builder`, by a fork."""
    context = get_context("forkserver")
    context.set_forkserver_preload([BUILDER])
    with tempfile.TemporaryDirectory() as folder:
        out, err = (Path(folder) / name for name in ("out", "err"))
        process = context.Process(target=_build, args=(arguments, str(out), str(err)))
        process.start()
        process.join()
        assert process.exitcode is not None
        return subprocess.CompletedProcess(arguments, process.exitcode, out.read_text(), err.read_text())


def _build(arguments: list[str], out: str, err: str) -> None:
    for number, file in ((1, out), (2, err)):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT), number)
    os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1")
    sys.argv = ["builder.py", *arguments]
    del sys.modules[BUILDER]  # which runpy warns of
    runpy.run_module(BUILDER, run_name="__main__")
