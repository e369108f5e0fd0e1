"""One Triton process: started, spoken to through its model-control interface, stopped without remains."""

from __future__ import annotations

import secrets
import shutil
import subprocess
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import psutil
import tritonclient.grpc as grpcclient
from tritonclient.utils import InferenceServerException

from nereid.serving.errors import ServingError
from nereid.serving.installation import Installation
from nereid.serving.options import ServeOptions

STUB = "triton_python_backend_stub"
ADMIN_HEADER = "nereid-admin"
RESTRICTED = "model-repository,shared-memory,trace,logging"
SHARED_MEMORY = Path("/dev/shm")
EXIT_SECONDS = 2
"""How long Triton may finish what is in flight when it is asked to stop."""


@dataclass(slots=True)
class TritonProcess:
    """A running tritonserver with its stubs. Its model control answers only to a key made here."""

    installation: Installation
    options: ServeOptions
    _key: str = field(default_factory=lambda: secrets.token_urlsafe(24), repr=False)
    _process: subprocess.Popen[bytes] | None = None
    _folder: Path | None = None
    _log: IO[bytes] | None = None
    _regions: set[str] = field(default_factory=set)
    _client: Any = None

    def start(self) -> None:
        """Launch; returns at once, see `ready_models`."""
        self._folder = Path(tempfile.mkdtemp(prefix="nereid-serve-"))
        backends = self._folder / "backends"
        self.installation.lay_out_backends(backends)
        if self.options.log_file is not None:
            self.options.log_file.parent.mkdir(parents=True, exist_ok=True)
            self._log = self.options.log_file.open("ab")
        self._process = subprocess.Popen(
            [str(self.installation.server), *self._arguments(backends)],
            env=self.installation.environment(),
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=subprocess.STDOUT if self._log else None,
            # Of its own: a Ctrl-C at the terminal reaches the supervisor alone, which then stops everything in order.
            start_new_session=True,
        )
        address = self.options.host if ":" not in self.options.host else f"[{self.options.host}]"
        self._client = grpcclient.InferenceServerClient(f"{address}:{self.options.grpc_port}")

    def _arguments(self, backends: Path) -> list[str]:
        options = self.options
        restricted = f"{RESTRICTED}:{ADMIN_HEADER}={self._key}"
        return [
            f"--model-repository={options.repository.resolve()}",
            f"--backend-directory={backends}",
            "--model-control-mode=explicit",
            "--load-model=*",
            "--disable-auto-complete-config",
            f"--http-address={options.host}",
            f"--grpc-address={options.host}",
            f"--metrics-address={options.host}",
            f"--http-port={options.http_port}",
            f"--grpc-port={options.grpc_port}",
            f"--metrics-port={options.metrics_port}",
            f"--http-restricted-api={restricted}",
            f"--grpc-restricted-protocol={restricted}",
            f"--exit-timeout-secs={EXIT_SECONDS}",
            "--backend-config=python,shm-default-byte-size=16777216",
            "--backend-config=python,shm-growth-byte-size=16777216",
            "--backend-config=python,stub-timeout-seconds=300",
            f"--log-verbose={int(options.verbose)}",
        ]

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def returncode(self) -> int | None:
        return self._process.poll() if self._process else None

    # --- model control ---

    def _headers(self) -> dict[str, str]:
        return {f"triton-grpc-protocol-{ADMIN_HEADER}": self._key}

    def model_states(self) -> dict[str, str]:
        """Every model of the repository and its state (READY, LOADING, ...); {} while the server does not answer."""
        try:
            index = self._client.get_model_repository_index(headers=self._headers(), client_timeout=5)
        except InferenceServerException:
            return {}
        return {model.name: model.state for model in index.models}

    def load(self, model: str) -> None:
        self._client.load_model(model, headers=self._headers(), client_timeout=self.options.start_timeout)

    def unload(self, model: str) -> None:
        self._client.unload_model(model, headers=self._headers(), client_timeout=60)

    # --- stubs ---

    def stubs(self) -> Counter[str]:
        """How many live Python stubs each model has; remembers their shared memory, to remove what a crash leaves."""
        count: Counter[str] = Counter()
        if self.pid is None:
            return count
        try:
            children = psutil.Process(self.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return count
        for child in children:
            try:
                if child.status() == psutil.STATUS_ZOMBIE:
                    continue
                arguments = child.cmdline()
            except psutil.Error:
                continue
            if len(arguments) > 4 and arguments[0].endswith(STUB):
                self._regions.add(arguments[2])
                # The last but one argument is the instance's name: model, group and number, joined by underscores.
                count[arguments[-2].rsplit("_", 2)[0]] += 1
        return count

    def stop(self) -> None:
        """Ask the server to exit, then make it; no process, shared memory or temporary file stays."""
        if self._process is not None:
            self.stubs()
            family = _family(self._process.pid)
            if self._process.poll() is None:
                self._process.terminate()
                try:
                    self._process.wait(EXIT_SECONDS + 1)
                except subprocess.TimeoutExpired:
                    self._process.kill()
            for process in family:
                if process.is_running():
                    process.kill()
            psutil.wait_procs(family, timeout=5)
            self._process.wait()
        for region in self._regions:
            for file in SHARED_MEMORY.glob(f"{region}*"):
                file.unlink(missing_ok=True)
        self._regions.clear()
        if self._client is not None:
            self._client.close()
        if self._log is not None:
            self._log.close()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def wait_until_ready(self, on_progress: Any = None) -> None:
        """Block until every model is READY; raises ServingError when the server exits or time runs out."""
        deadline = time.monotonic() + self.options.start_timeout
        while time.monotonic() < deadline:
            if not self.is_running():
                raise ServingError(f"Triton stopped while loading (exit code {self.returncode}){self._last_error()}")
            states = self.model_states()
            if on_progress is not None:
                on_progress(states)
            if states and all(state == "READY" for state in states.values()):
                self.stubs()
                return
            time.sleep(0.1)
        raise ServingError(f"Triton was not ready within {self.options.start_timeout:g} s{self._last_error()}")

    def _last_error(self) -> str:
        """The first thing that went wrong, if the log is a file."""
        if self.options.log_file is None or not self.options.log_file.is_file():
            return "; see its messages above"
        lines = self.options.log_file.read_text(errors="replace").splitlines()
        wrong = [line for line in lines if line.startswith("E") and "failed to load" in line]
        return f": {wrong[0].split('] ', 1)[1]}" if wrong else f"; see {self.options.log_file}"


def _family(pid: int) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []
