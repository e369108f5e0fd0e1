"""What the documents say can be run is there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_make_verbs_of_the_readme_exist() -> None:
    targets = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"`?make ([a-z0-9-]+)", README))
    assert {"demo", "test", "setup", "export", "serve", "bench", "perf", "lint", "clean"} <= named
    assert named <= targets


def test_gate_runs_the_readmes_test_command() -> None:
    assert "make test" in README
    assert "make test" in (ROOT / ".ci" / "run").read_text()


def test_files_the_documents_point_to_exist() -> None:
    for document in (ROOT / "README.md", ROOT / "ARCHITECTURE.md"):
        for target in re.findall(r"\]\((?!http)([^)#]+)\)", document.read_text()):
            assert (ROOT / target).exists(), f"{document.name}: {target}"


@pytest.mark.parametrize(
    "command", sorted(set(re.findall(r"nereid ((?:export|zoo|bench) [a-z0-9]+|generate|serve|demo|chat)", README)))
)
def test_commands_of_the_readme_have_help_that_lists_their_options(command: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "nereid_client.main", *command.split(), "--help"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    shown = set(re.findall(r"--[a-z][a-z-]+", done.stdout))
    for line in README.splitlines():
        if f"nereid {command}" in line and "`" not in line:
            assert set(re.findall(r"--[a-z][a-z-]+", line)) <= shown, line


@pytest.mark.parametrize(
    "command",
    [
        ["generate", "a box", "--url", "127.0.0.1:1"],
        ["chat", "hello", "--url", "127.0.0.1:1"],
        ["serve", "--repository", "/nowhere"],
        ["serve", "--repository", "model_repository", "--openai-port", "8089", "--openai-host", "0.0.0.0"],
    ],
)
def test_mistakes_are_one_sentence_and_no_traceback(command: list[str], tmp_path: Path) -> None:
    (tmp_path / "model_repository").symlink_to(ROOT / "model_repository")
    environment = {name: value for name, value in os.environ.items() if name != "NEREID_API_KEY"}
    done = subprocess.run(
        [sys.executable, "-m", "nereid_client.main", *command],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=tmp_path,
        env=environment,
    )
    assert done.returncode == 1
    assert done.stderr.strip().startswith("error:")
    assert "Traceback" not in done.stderr
