"""The one place that knows where Triton lies on disk: the one that pip installs, or NVIDIA's container's."""

from __future__ import annotations

import os
import shutil
import sys
from dataclasses import dataclass
from enum import StrEnum
from importlib.util import find_spec
from pathlib import Path

from nereid.serving.errors import ServingError

CONTAINER_ROOT = Path("/opt/tritonserver")
STAND_INS = Path(__file__).resolve().parent.parent / "triton" / "backends"
"""Python-based backends of this project, by name of the C++ backend that each stands in for."""


class Source(StrEnum):
    AUTO = "auto"
    PIP = "pip"
    PATH = "path"


@dataclass(frozen=True, slots=True)
class Installation:
    """A Triton that can be started; `loopback_only` for the pip one, whose HTTP server has known holes."""

    server: Path
    backends: Path
    stubs: Path | None
    libraries: Path | None
    loopback_only: bool

    def environment(self) -> dict[str, str]:
        """The environment that the server starts in: this interpreter's packages for its Python models."""
        environment = dict(os.environ)
        environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment.get('PATH', '')}"
        if self.libraries is not None:
            known = environment.get("LD_LIBRARY_PATH")
            environment["LD_LIBRARY_PATH"] = f"{self.libraries}{os.pathsep}{known}" if known else str(self.libraries)
        return environment

    def lay_out_backends(self, folder: Path) -> None:
        """Fill a backend directory: this installation's own backends, and stand-ins for those it lacks."""
        folder.mkdir(parents=True, exist_ok=True)
        for backend in sorted(path for path in self.backends.iterdir() if path.is_dir() and path.name != "__pycache__"):
            if backend.name != "python" or self.stubs is None:
                (folder / backend.name).symlink_to(backend)
        if self.stubs is not None:
            self._copy_python(folder / "python")
        for stand_in in sorted(STAND_INS.iterdir()):
            if self._stands_in(stand_in):
                shutil.copytree(stand_in, folder / stand_in.name, ignore=shutil.ignore_patterns("__pycache__"))

    def python_backends(self) -> list[str]:
        """Names of the backends whose models run in Python processes."""
        return ["python", *(path.name for path in sorted(STAND_INS.iterdir()) if self._stands_in(path))]

    def _stands_in(self, stand_in: Path) -> bool:
        return (stand_in / "model.py").is_file() and not (self.backends / stand_in.name).exists()

    def _copy_python(self, folder: Path) -> None:
        """pytriton keeps a stub a Python version; the server wants this version's beside the backend's library."""
        assert self.stubs is not None
        stub = self.stubs / f"{sys.version_info.major}.{sys.version_info.minor}" / "triton_python_backend_stub"
        if not stub.is_file():
            raise ServingError(f"{stub} is missing: nvidia-pytriton has no Python backend for this Python")
        folder.mkdir()
        # Copies: Triton refuses a library of a Python-based backend that a link takes out of the backend directory.
        for file in (*(self.backends / "python").iterdir(), stub):
            if file.is_file():
                shutil.copy2(file, folder / file.name)


def find_triton(source: Source = Source.AUTO) -> Installation:
    """The Triton to start; raises ServingError where there is none. `auto` prefers one on PATH, as in the container."""
    if source is not Source.PIP:
        found = shutil.which("tritonserver") or shutil.which(str(CONTAINER_ROOT / "bin" / "tritonserver"))
        if found is not None:
            server = Path(found).resolve()
            return Installation(server, server.parent.parent / "backends", None, None, loopback_only=False)
        if source is Source.PATH:
            raise ServingError("no tritonserver on PATH; run in NVIDIA's container, or use --triton pip")
    spec = find_spec("pytriton")
    if spec is None or not spec.submodule_search_locations:
        raise ServingError("Triton is not installed here; install it with `pip install nereid[serve]`")
    package = Path(next(iter(spec.submodule_search_locations)))
    home = package / "tritonserver"
    return Installation(
        server=home / "bin" / "tritonserver",
        backends=home / "backends",
        stubs=home / "python_backend_stubs",
        libraries=package.parent / "nvidia_pytriton.libs",
        loopback_only=True,
    )


def perf_analyzer_command() -> tuple[Path, dict[str, str]]:
    """perf_analyzer and the environment it needs; raises ServingError where it is not installed.

    The one that tritonclient ships wants two libraries that nvidia-pytriton has under other names; they are linked.
    """
    beside = Path(sys.executable).parent / "perf_analyzer"
    found = str(beside) if beside.is_file() else shutil.which("perf_analyzer")
    if found is None:
        raise ServingError("perf_analyzer is not installed; install it with `pip install 'nereid[serve]'`")
    environment = dict(os.environ)
    installation = find_triton(Source.AUTO)
    if installation.libraries is not None:
        links = Path(sys.prefix) / "lib" / "perf_analyzer_libs"
        links.mkdir(parents=True, exist_ok=True)
        for wanted, pattern in (("libb64.so.0d", "libb64-*.so.0d"), ("libcudart.so.12", "libcudart-*.so.12*")):
            target = next(iter(sorted(installation.libraries.glob(pattern))), None)
            if target is not None and not (links / wanted).exists():
                (links / wanted).symlink_to(target)
        environment["LD_LIBRARY_PATH"] = os.pathsep.join(
            part for part in (str(links), str(installation.libraries), environment.get("LD_LIBRARY_PATH")) if part
        )
    return Path(found), environment
