"""Environments of clients under build/clients, made from pinned versions when they are missing or those, or what runs them, have
changed."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Sequence
from pathlib import Path

from client_list import HERE, Listed

_STAMP = "installed-from"
_LONGEST = 1800


class EnvironmentFaultError(Exception):
    """A client's environment cannot be made; its sentence says why."""


def program_of(client: Listed, build: Path) -> list[str]:
    """The command that runs the client's script; makes its environment where it is missing. Raises EnvironmentFaultError."""
    script = HERE / "asked" / client.script
    try:
        if client.is_node:
            return ["node", str(_with_node(client, build) / client.script)]
        return [str(_with_python(client, build) / "bin" / "python"), "-P", str(script)]
    except OSError as error:
        raise EnvironmentFaultError(f"its environment cannot be made: {error}") from None


def _with_python(client: Listed, build: Path) -> Path:
    folder = build / client.environment
    site = sysconfig.get_path("purelib") if client.sees_project else ""
    made_of = _digest(client.pins, sys.version, sys.base_prefix, str(folder), site)
    if _is_made(folder, made_of):
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    try:
        venv.create(folder, with_pip=True)
    except subprocess.CalledProcessError as error:
        raise EnvironmentFaultError(f"its environment cannot be made: {' '.join(map(str, error.cmd))[:200]} fails") from None
    if client.sees_project:
        own = sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)})
        (Path(own) / "project.pth").write_text(f"{site}\n")
    # The pins are all that it needs: nothing is left to choose, and nothing of the project's packages is replaced.
    words = ["install", "--quiet", "--disable-pip-version-check", "--no-deps", "-r", str(client.pins)]
    _run([str(folder / "bin" / "pip"), *words], build)
    (folder / _STAMP).write_text(made_of)
    return folder


def _with_node(client: Listed, build: Path) -> Path:
    """The folder of its packages, and of copies of its scripts: Node looks for packages beside a script."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        raise EnvironmentFaultError("node and npm are not installed")
    source, folder = HERE / "node" / client.environment, build / f"node-{client.environment}"
    made_of = _digest(client.pins, _run(["node", "--version"], build), str(folder))
    if not _is_made(folder, made_of):
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(source, folder)
        _run(["npm", "ci", "--no-audit", "--no-fund", "--prefix", str(folder)], folder)
        (folder / _STAMP).write_text(made_of)
    for file in (client.script, *client.beside, "told.mjs"):
        shutil.copy(HERE / "asked" / file, folder / file)
    return folder


def _is_made(folder: Path, made_of: str) -> bool:
    stamp = folder / _STAMP
    return stamp.is_file() and stamp.read_text() == made_of


def _digest(pins: Path, *facts: str) -> str:
    """Of what an environment is made of: the pins, and what runs it and where."""
    return hashlib.sha256("\0".join([pins.read_text(), *facts]).encode()).hexdigest()


def _run(words: Sequence[str], folder: Path) -> str:
    """What a command says; raises EnvironmentFaultError where it fails."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    try:
        done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, timeout=_LONGEST, check=False)
    except subprocess.TimeoutExpired:
        raise EnvironmentFaultError(f"its environment was not made within {_LONGEST} seconds") from None
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        told = [line for line in lines if "error" in line.lower()] or lines  # warnings may come after it
        raise EnvironmentFaultError(f"its environment cannot be made: {' '.join(told[-1:])[:300]}")
    return done.stdout
