"""The server that clients are run against: the zoo's checkpoints exported, and `nereid serve` as everybody starts it."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from nereid.serving.installation import perf_analyzer_command
from nereid.serving.options import free_ports
from nereid_zoo.tools.train import merge

ROOT = Path(__file__).resolve().parents[2]
LLM, SHAPES = (ROOT / "zoo" / name / "checkpoint" for name in ("sections", "shapes"))
KEY = "a-key-of-the-clients"
_START_SECONDS, _STOP_SECONDS = 600, 60


@dataclass(frozen=True, slots=True)
class Server:
    """Where a running server is asked."""

    gateway: int
    http: int
    grpc: int

    def environment(self, folder: Path, programs: Path) -> dict[str, str]:
        """What a client's script is told; `folder` is its own, `programs` holds perf_analyzer."""
        kept = {name: os.environ[name] for name in ("LANG", "SSL_CERT_FILE", "TMPDIR") if name in os.environ}
        url = f"http://127.0.0.1:{self.gateway}"
        return {
            **kept,
            "PATH": f"{programs}:{os.environ['PATH']}",
            "HOME": str(folder),
            "NEREID_URL": url,
            "NEREID_TRITON_HTTP": f"127.0.0.1:{self.http}",
            "NEREID_TRITON_GRPC": f"127.0.0.1:{self.grpc}",
            "NEREID_CHECKPOINT": str(LLM),
            "NEREID_FOLDER": str(folder),
            "OPENAI_API_KEY": KEY,
            "OPENAI_BASE_URL": f"{url}/v1",
            "PYTHONPATH": str(Path(__file__).resolve().parent),
            "PYTHONUNBUFFERED": "1",
            "HF_HUB_OFFLINE": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "DO_NOT_TRACK": "1",
            "NO_PROXY": "127.0.0.1,localhost",
        }


def export_zoo(repository: Path, build: Path) -> None:
    """All that clients ask, where it is not there yet: the language model in full precision, for scores are compared."""
    tools = build / "tools"
    if not (repository / "tools_llm").is_dir():
        merge(tools)
    for words, model in (
        (["llm", LLM, "--precision", "fp32"], "llm"),
        (["llm", tools, "--precision", "fp32", "--name", "tools"], "tools_llm"),
        (["diffusion", SHAPES], "text_to_image"),
    ):
        if not (repository / model).is_dir():
            _nereid("export", *map(str, words), "--out", str(repository))


def _nereid(*words: str) -> None:
    subprocess.run([sys.executable, "-m", "nereid_client.main", *words], check=True)


@contextlib.contextmanager
def serving(repository: Path, build: Path) -> Iterator[Server]:
    """`nereid serve` of this repository on free ports, until the block ends; raises RuntimeError where it does not start."""
    gateway, http, grpc, metrics, health = free_ports(5)
    batches = build / "batches"
    shutil.rmtree(batches, ignore_errors=True)
    words = ["--openai-port", gateway, "--http-port", http, "--grpc-port", grpc, "--metrics-port", metrics]
    words += ["--health-port", health, "--openai-batches", batches, "--openai-schema", "--log-file", build / "triton.log"]
    command = [sys.executable, "-m", "nereid_client.main", "serve", "--repository", str(repository), *map(str, words)]
    with (build / "serve.log").open("wb") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=subprocess.STDOUT, env={**os.environ, "NEREID_API_KEY": KEY}, start_new_session=True
        )
        try:
            _wait(process, f"http://127.0.0.1:{gateway}/health", build / "serve.log")
            yield Server(gateway, http, grpc)
        finally:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(urllib.error.URLError, OSError), urllib.request.urlopen(url, timeout=10):
            return
        time.sleep(0.5)
    raise RuntimeError(f"the server does not start; {log} says why")


def perf_analyzer_program(folder: Path) -> Path:
    """A folder for PATH with the perf_analyzer that comes with Triton: it needs libraries that are found by their folder."""
    binary, environment = perf_analyzer_command()
    folder.mkdir(parents=True, exist_ok=True)
    words = [f"export {name}='{value}'" for name, value in environment.items() if os.environ.get(name) != value]
    program = folder / "perf_analyzer"
    program.write_text("\n".join(["#!/bin/sh", *words, f'exec "{binary}" "$@"', ""]))
    program.chmod(0o755)
    return folder
