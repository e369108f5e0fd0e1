"""`nereid zoo score shapes`: a diffusers folder, a repository, or both, each at its own settings."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

pytest.importorskip("torch")
from nereid_export.checkpoint import Checkpoint
from nereid_export.facts import pipeline_facts
from nereid_zoo import cli
from nereid_zoo.shapes.score import CHECKPOINT, STUDENTS, Draw


def exported_facts(checkpoint: Path, repository: Path) -> Path:
    """A repository of which a pipeline's facts alone are there."""
    folder = repository / "denoise" / "1"
    folder.mkdir(parents=True)
    (folder / "pipeline.json").write_text(json.dumps(pipeline_facts(Checkpoint.open(checkpoint), [])))
    return repository


def test_a_repository_alone_is_scored_by_its_own_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def no_server(repository: Path) -> Iterator[object]:
        yield object()

    def blank(client: object, *, steps: int, guidance: float) -> Draw:
        return lambda texts, seeds: (np.zeros((128, 128, 3), np.uint8) for _ in texts)

    def no_torch(path: Path, *, steps: int, guidance: float) -> Draw:
        raise AssertionError("nobody has named a diffusers folder")

    monkeypatch.setattr(cli, "maybe_serving", no_server)
    monkeypatch.setattr(cli, "served_drawer", blank)
    monkeypatch.setattr(cli, "torch_drawer", no_torch)
    student, teacher = exported_facts(STUDENTS[2], tmp_path / "student"), exported_facts(CHECKPOINT, tmp_path / "teacher")
    for repository, scheduler, steps, guidance in ((student, "lcm", 4, [1.0]), (teacher, "dpmpp_2m", 20, [3.0, 5.0, 7.5])):
        asked = ["score", "shapes", "--repository", str(repository), "--count", "2", "--json"]
        made = json.loads(CliRunner().invoke(cli.app, asked).stdout)
        assert (made["scheduler"], made["steps"]) == (scheduler, steps)
        assert [(row["engine"], row["guidance"]) for row in made["scores"]] == [("served", scale) for scale in guidance]


def test_a_repository_of_another_size_is_no_painter_of_shapes(tmp_path: Path) -> None:
    file = exported_facts(CHECKPOINT, tmp_path) / "denoise" / "1" / "pipeline.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "default_width": 512}))
    result = CliRunner().invoke(cli.app, ["score", "shapes", "--repository", str(tmp_path)], env={"COLUMNS": "300"})
    assert result.exit_code == 2
    assert "its pictures of 512 x 128 are not those of a painter of shapes" in result.output
