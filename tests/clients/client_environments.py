"""Environments of clients under build/clients, made from pinned versions when they are missing or the pins have changed."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sysconfig
import venv
from pathlib import Path

from client_list import Listed

HERE = Path(__file__).resolve().parent
_STAMP = "installed-from"
_LONGEST = 1800


class EnvironmentFaultError(Exception):
    """A client's environment cannot be made; its sentence says why."""


def program_of(client: Listed, build: Path) -> list[str]:
    """The command that runs the client's script; makes its environment where it is missing. Raises EnvironmentFaultError."""
    script = HERE / "asked" / client.script
    if client.is_node:
        return ["node", str(_with_node(client, build) / client.script)]
    return [str(_with_python(client, build) / "bin" / "python"), "-P", str(script)]


def _with_python(client: Listed, build: Path) -> Path:
    pins = HERE / "requirements" / f"{client.environment}.txt"
    folder = build / client.environment
    if _is_made(folder, pins):
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    venv.create(folder, with_pip=True)
    if client.sees_project:
        site = sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)})
        (Path(site) / "project.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    # The pins are all that it needs: nothing is left to choose, and nothing of the project's packages is replaced.
    words = ["install", "--quiet", "--disable-pip-version-check", "--no-deps", "-r", str(pins)]
    _run([str(folder / "bin" / "pip"), *words], build, client)
    (folder / _STAMP).write_text(_digest(pins))
    return folder


def _with_node(client: Listed, build: Path) -> Path:
    """The folder of its packages, and of copies of its scripts: Node looks for packages beside a script."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        raise EnvironmentFaultError("node and npm are not installed")
    source, folder = HERE / "node" / client.environment, build / f"node-{client.environment}"
    pins = source / "package-lock.json"
    if not _is_made(folder, pins):
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(source, folder)
        _run(["npm", "ci", "--no-audit", "--no-fund", "--prefix", str(folder)], folder, client)
        (folder / _STAMP).write_text(_digest(pins))
    for file in (client.script, "told.mjs"):
        shutil.copy(HERE / "asked" / file, folder / file)
    return folder


def _is_made(folder: Path, pins: Path) -> bool:
    stamp = folder / _STAMP
    return stamp.is_file() and stamp.read_text() == _digest(pins)


def _digest(pins: Path) -> str:
    return hashlib.sha256(pins.read_bytes()).hexdigest()


def _run(words: list[str], folder: Path, client: Listed) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    try:
        done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, timeout=_LONGEST, check=False)
    except subprocess.TimeoutExpired:
        raise EnvironmentFaultError(f"its environment was not made within {_LONGEST} seconds") from None
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        raise EnvironmentFaultError(f"its environment cannot be made: {' '.join(lines[-1:])[:300]}")
