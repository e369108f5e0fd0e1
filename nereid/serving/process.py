"""One Triton process: started, watched, asked for models through its control model, stopped without remains."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import psutil
import tritonclient.grpc as grpcclient
from tritonclient.utils import InferenceServerException

from nereid.engines.compile_cache import CACHE_FOLDER, choose_folder
from nereid.engines.served_model import STAND_IN_CONFIG
from nereid.flow.awake_time import LATE_SECONDS, AwakeTime
from nereid.serving.child import Child, said_of_exit
from nereid.serving.control import CONTROL_MODEL, CONTROL_SOCKET, ModelControl, write_control_repository
from nereid.serving.errors import ServingError
from nereid.serving.installation import Installation
from nereid.serving.models import ServedModels
from nereid.serving.options import ServeOptions
from nereid.serving.remains import ServeFolder, end_marked

STUB = "triton_python_backend_stub"
UNSENDABLE = "nereid\n\x01"
"""Name and value of a header that no client can send, since it holds a line feed: what wants it is closed to everybody."""
RESTRICTED = f"model-repository,shared-memory,trace,logging:{UNSENDABLE}={UNSENDABLE}"
EXIT_SECONDS = 2
"""How long Triton may finish what is in flight when it is asked to stop."""
_ANSWER_SECONDS = 5
"""How long Triton may take to say whether a model is ready."""
DEAD_SECONDS = 10.0
"""How long Triton has to say by itself why a Python process ended while it loaded; for one that was killed it waits minutes."""


@dataclass(slots=True)
class TritonProcess:
    """A running tritonserver with its stubs. Models are loaded and unloaded by its control model, for this process alone."""

    installation: Installation
    options: ServeOptions
    folder: ServeFolder
    models: ServedModels
    stopping: threading.Event = field(default_factory=threading.Event)
    control: ModelControl = field(init=False)
    _cache: Path = field(init=False)
    _child: Child | None = field(default=None, init=False)
    _log: IO[bytes] | None = field(default=None, init=False)
    _log_start: int = field(default=0, init=False)
    _client: Any = field(default=None, init=False)

    def __post_init__(self) -> None:
        self._cache = choose_folder(self.options.cache_dir, self.folder.state / "cache")
        self.control = ModelControl(self.folder.path / "control", self.stopping, self.options.start_timeout)

    def start(self) -> None:
        """Launch; returns at once, see `wait_until_ready`. Raises ServingError where that is not possible."""
        try:
            if not (self.folder.path / "backends").is_dir():
                self.installation.lay_out_backends(self.folder.path / "backends")
                write_control_repository(self.folder.path / "models")
        except OSError as error:
            raise ServingError(f"{self.folder.path} cannot be written: {error.strerror}") from None
        self._open_log()
        environment = {**self.installation.environment(), **self.folder.environment("triton")}
        environment.pop("NEREID_API_KEY", None)  # the gateway's alone
        environment[CACHE_FOLDER] = str(self._cache)
        environment[CONTROL_SOCKET] = str(self.control.path)
        self._child = Child(
            [str(self.installation.server), *self._arguments()], environment, folder=self.folder.path, output=self._log
        )
        self._child.start()
        self._client = grpcclient.InferenceServerClient(self.options.grpc_url)

    def _open_log(self) -> None:
        file = self.options.log_file
        if file is None:
            return
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            self._log = file.open("ab")
        except OSError as error:
            raise ServingError(f"--log-file: {file} cannot be written: {error.strerror}") from None
        self._log_start = self._log.tell()

    def _arguments(self) -> list[str]:
        options = self.options
        return [
            f"--model-repository={options.repository.resolve()}",
            f"--model-repository={self.folder.path / 'models'}",
            f"--backend-directory={self.folder.path / 'backends'}",
            "--model-control-mode=explicit",
            *self._loaded_at_once(),
            "--disable-auto-complete-config",
            *([f"--model-config-name={STAND_IN_CONFIG}"] if "pytorch" in self.installation.python_backends() else []),
            f"--http-address={options.host}",
            f"--grpc-address={options.address}",
            f"--metrics-address={options.host}",
            f"--http-port={options.http_port}",
            f"--grpc-port={options.grpc_port}",
            f"--metrics-port={options.metrics_port}",
            f"--http-restricted-api={RESTRICTED}",
            f"--grpc-restricted-protocol={RESTRICTED}",
            f"--exit-timeout-secs={EXIT_SECONDS}",
            # Names that tell whose they are: what a stub leaves that was killed is removed by its name.
            *(
                f"--backend-config={backend},shm-region-prefix-name={self.folder.regions}{backend}_"
                for backend in self.installation.python_backends()
            ),
            "--backend-config=python,shm-default-byte-size=16777216",
            "--backend-config=python,shm-growth-byte-size=16777216",
            "--backend-config=python,stub-timeout-seconds=300",
            # Calls of siblings and late answers share these.
            f"--backend-config=python,thread-pool-size={self.models.threads}",
            f"--log-verbose={int(options.verbose)}",
        ]

    def _loaded_at_once(self) -> list[str]:
        """Where the repository is followed, what has just appeared there is loaded by name, once it is known to be whole."""
        if not self.options.follow:
            return ["--load-model=*"]
        return [f"--load-model={model}" for model in (*self.models.configs, CONTROL_MODEL)]

    @property
    def pid(self) -> int | None:
        return self._child.pid if self._child else None

    def is_running(self) -> bool:
        return self._child is not None and self._child.is_running()

    @property
    def lived(self) -> float:
        """Seconds since it was started."""
        return time.monotonic() - self._child.started if self._child else 0.0

    @property
    def ending(self) -> str:
        """How it ended, in words; waits for its keeper, which knows."""
        if self._child is None:
            return said_of_exit(None)
        self._child.wait(5)
        return said_of_exit(self._child.returncode)

    def is_stopped(self) -> bool:
        """Whether a signal holds it."""
        return self._child is not None and self._child.is_stopped()

    def kill(self) -> None:
        if self._child is not None:
            self._child.kill()

    def unready_models(self) -> list[str]:
        """Models that Triton does not call ready; all of them while it does not answer."""
        unready = []
        for model in self.models.configs:
            try:
                if not self._client.is_model_ready(model, client_timeout=_ANSWER_SECONDS):
                    unready.append(model)
            except InferenceServerException:
                return list(self.models.configs)
        return unready

    # --- stubs ---

    def stubs(self) -> dict[int, str]:
        """Model of each living Python stub, by pid; a stub that a signal holds is ended."""
        alive: dict[int, str] = {}
        for child in self._family():
            try:
                if child.status() == psutil.STATUS_ZOMBIE:
                    continue
                arguments = child.cmdline()
                if len(arguments) < 5 or not arguments[0].endswith(STUB):
                    continue
                if child.status() == psutil.STATUS_STOPPED:
                    child.kill()
                    continue
            except psutil.Error:
                continue
            # The last but one argument is the instance's name.
            instance = arguments[-2]
            model = CONTROL_MODEL if instance.startswith(f"{CONTROL_MODEL}_") else self.models.of_instance(instance)
            if model is not None:
                alive[child.pid] = model
        return alive

    def count_stubs(self) -> Counter[str]:
        """How many living stubs each model has."""
        return Counter(self.stubs().values())

    def _has_dead_child(self) -> bool:
        """Whether a process that Triton has started has ended, and Triton has not looked at it."""
        with contextlib.suppress(psutil.Error):
            return any(child.status() == psutil.STATUS_ZOMBIE for child in psutil.Process(self.pid).children())
        return False

    def _family(self) -> list[psutil.Process]:
        try:
            return psutil.Process(self.pid).children(recursive=True) if self.pid is not None else []
        except psutil.NoSuchProcess:
            return []

    def stop(self, grace_seconds: float = EXIT_SECONDS + 1) -> None:
        """Ask the server to exit, then make it; no process or shared memory stays."""
        if self._child is not None:
            self._child.stop(grace_seconds)
            end_marked(self.folder.mark("triton"))
        self.folder.remove_regions()
        if self._client is not None:
            self._client.close()
            self._client = None
        if self._log is not None:
            self._log.close()
            self._log = None

    def wait_until_ready(self, on_wait: Callable[[int], None]) -> None:
        """Block until every model is ready; raises ServingError when the server exits, time runs out, or the end is asked for.

        `on_wait` is called again and again with the number of Python processes that run already.
        """
        awake = AwakeTime(_ANSWER_SECONDS + LATE_SECONDS)
        all_live = awake.now()
        deadline = all_live + self.options.start_timeout
        while awake.look() < deadline:
            if self.stopping.is_set():
                raise ServingError("stopped while Triton was starting")
            if not self.is_running():
                raise ServingError(f"Triton stopped while loading ({self.ending}){self._last_error()}")
            on_wait(len(self.stubs()))
            if not self.unready_models():
                return
            if not self._has_dead_child():
                all_live = awake.now()
            elif awake.silent_since(all_live) > DEAD_SECONDS:
                raise ServingError(f"a model's Python process died while Triton loaded it{self._last_error()}")
            time.sleep(0.1)
        raise ServingError(f"Triton was not ready within {self.options.start_timeout:g} s{self._last_error()}")

    def _last_error(self) -> str:
        """The first thing that went wrong in this run, if the log is a file."""
        file = self.options.log_file
        if file is None or not file.is_file():
            return "; see its messages above"
        with file.open("rb") as log:
            log.seek(self._log_start)
            lines = log.read().decode(errors="replace").splitlines()
        failure = first_failure(lines)
        return f": {failure}" if failure else f"; see {file}"


def first_failure(lines: Iterable[str]) -> str:
    """The first model that failed to load, by the lines of Triton's log, and why; without a Python model's traceback."""
    for line in lines:
        if line.startswith("E") and "failed to load" in line:
            # Triton writes a message of several lines as one, in quotes.
            return line.split("] ", 1)[-1].split("\\n\\nAt:", 1)[0].strip('"')
    return ""
