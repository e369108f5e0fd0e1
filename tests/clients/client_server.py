"""The server that clients are run against: the zoo's checkpoints exported, and `nereid serve` as everybody starts it."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
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

from nereid.serving.errors import ServingError
from nereid.serving.installation import perf_analyzer_command
from nereid.serving.options import free_ports

from client_list import HERE

ROOT = Path(__file__).resolve().parents[2]
_EXPORTED_FROM = "exported-from"
LLM, SHAPES = (ROOT / "zoo" / name / "checkpoint" for name in ("sections", "shapes"))
KEY = "a-key-of-the-clients"
_START_SECONDS, _STOP_SECONDS = 600, 60


@dataclass(frozen=True, slots=True)
class Server:
    """Where a running server is asked."""

    gateway: int
    http: int
    grpc: int
    process: subprocess.Popen[bytes]
    log: Path

    def check(self, client: str) -> None:
        """Raise RuntimeError where the server has ended."""
        if (code := self.process.poll()) is not None:
            raise RuntimeError(f"the server ended with {code} while {client} was run; {self.log} says why")

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
            "PYTHONPATH": os.pathsep.join((str(HERE), str(HERE / "asked"))),
            "PYTHONUNBUFFERED": "1",
            "HF_HUB_OFFLINE": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "DO_NOT_TRACK": "1",
            "NO_PROXY": "127.0.0.1,localhost",
        }


def export_zoo(repository: Path, build: Path) -> None:
    """All that clients ask, where it is not there as this exporter makes it; language models in float32: scores are compared."""
    tools, stamp = build / "tools", build / _EXPORTED_FROM
    exports: tuple[tuple[list[str | Path], str], ...] = (
        (["llm", LLM, "--precision", "fp32", "--embeddings"], "llm"),
        (["llm", tools, "--precision", "fp32", "--name", "tools"], "tools_llm"),
        (["diffusion", SHAPES], "text_to_image"),
    )
    made_of = _digest(LLM, SHAPES, ROOT / "zoo" / "sections" / "tools", ROOT / "export" / "nereid_export")
    exported_from = f"{made_of}\n{exports}"
    if not stamp.is_file() or stamp.read_text() != exported_from:
        stamp.unlink(missing_ok=True)
        shutil.rmtree(repository, ignore_errors=True)
    if not (repository / "tools_llm").is_dir():
        shutil.rmtree(tools, ignore_errors=True)
        _merge(tools)
    for words, model in exports:
        if not (repository / model).is_dir():
            _nereid("export", *map(str, words), "--out", str(repository))
    stamp.write_text(exported_from)


def _digest(*folders: Path) -> str:
    """Of all files in these folders but compiled ones."""
    made = hashlib.sha256()
    for folder in folders:
        for file in sorted(folder.rglob("*")):
            if file.is_file() and file.suffix != ".pyc":
                made.update(f"{file.relative_to(folder)}\0".encode() + hashlib.sha256(file.read_bytes()).digest())
    return made.hexdigest()


def _merge(out: Path) -> None:
    """The language model with the weights that teach it tools."""
    from nereid_zoo.tools.train import merge  # needs torch, which nothing else here does

    merge(out)


def _nereid(*words: str) -> None:
    subprocess.run([sys.executable, "-m", "nereid_client.main", *words], check=True)


@contextlib.contextmanager
def alone(build: Path) -> Iterator[None]:
    """The only run in this folder for as long as this lasts; raises RuntimeError where there is another one."""
    with (build / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RuntimeError(f"another run is under way in {build}") from None
        yield


@contextlib.contextmanager
def ended_by_signals() -> Iterator[None]:
    """Signals that would end this process at once end it as an exception does: the server and the clients are ended, too."""

    def end(number: int, frame: object) -> None:
        raise SystemExit(128 + number)

    before = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def serving(repository: Path, build: Path) -> Iterator[Server]:
    """`nereid serve` of this repository on free ports, until the block ends; raises RuntimeError where it does not start."""
    gateway, http, grpc, metrics, health = free_ports(5)
    batches = build / "batches"
    shutil.rmtree(batches, ignore_errors=True)
    words = ["--openai-port", gateway, "--http-port", http, "--grpc-port", grpc, "--metrics-port", metrics]
    words += ["--health-port", health, "--openai-batches", batches, "--log-file", build / "triton.log"]
    words += ["--openai-schema", "--openai-a1111"]
    command = [sys.executable, "-m", "nereid_client.main", "serve", "--repository", str(repository), *map(str, words)]
    own = {name: value for name, value in os.environ.items() if not name.startswith("NEREID_")}  # what a user serves with
    with (build / "serve.log").open("wb") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=subprocess.STDOUT, env={**own, "NEREID_API_KEY": KEY}, start_new_session=True
        )
        try:
            _wait(process, f"http://127.0.0.1:{gateway}/health", build / "serve.log")
            yield Server(gateway, http, grpc, process, build / "serve.log")
        finally:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline = time.monotonic() + _START_SECONDS
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    while process.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(urllib.error.URLError, OSError), direct.open(url, timeout=10):
            return
        time.sleep(0.5)
    raise RuntimeError(f"the server does not start; {log} says why")


def perf_analyzer_program(folder: Path) -> Path:
    """A folder for PATH with the perf_analyzer that comes with Triton: it needs libraries that are found by their folder.

    It is empty where there is none: the one client that needs it says so.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        binary, environment = perf_analyzer_command()
    except ServingError:
        return folder
    words = [f"export {name}='{value}'" for name, value in environment.items() if os.environ.get(name) != value]
    program = folder / "perf_analyzer"
    program.write_text("\n".join(["#!/bin/sh", *words, f'exec "{binary}" "$@"', ""]))
    program.chmod(0o755)
    return folder
