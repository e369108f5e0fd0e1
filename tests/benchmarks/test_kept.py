"""What the benchmark of kept features is asked for, and how modes take turns."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

pytest.importorskip("torch")
from nereid_bench import kept_cli
from nereid_bench.cli import app
from nereid_bench.kept import KeptPlan, _draw, _turned, parse_modes


def test_modes_are_fields_of_requests_and_the_first_is_without_any() -> None:
    modes = parse_modes("cache_interval=3; cache=light,guidance_cache_interval=2;off;guidance_interval=0.1:0.6")
    assert modes == {
        "off": {},
        "cache_interval=3": {"cache_interval": 3},
        "cache=light,guidance_cache_interval=2": {"cache": "light", "guidance_cache_interval": 2},
        "guidance_interval=0.1:0.6": {"guidance_interval": (0.1, 0.6)},
    }
    assert next(iter(modes)) == "off"


@pytest.mark.parametrize("text", ["cache", "cache=", "steps=3", "cache_interval=3,x=1"])
def test_what_is_no_mode_is_refused_by_name(text: str) -> None:
    with pytest.raises(ValueError, match="is not allowed; it must be like cache=light"):
        parse_modes(text)


@pytest.mark.parametrize("text", ["guidance_interval=1", "guidance_interval=0.1:x", "guidance_interval=0:1:2"])
def test_an_interval_is_two_fractions(text: str) -> None:
    with pytest.raises(ValueError, match=r"is not allowed; it must be like guidance_interval=0.1:0.6"):
        parse_modes(text)


def test_each_round_begins_with_another_mode() -> None:
    modes = {"off": {}, "a": {}, "b": {}}
    assert [[name for name, _ in _turned(modes, turn)] for turn in range(3)] == [
        *(["off", "a", "b"], ["a", "b", "off"], ["b", "off", "a"]),
    ]


def test_a_picture_is_waited_for_however_slow_the_machine_is() -> None:
    waits: list[float] = []

    class Slow:
        def generate_image(self, prompt: str, *, timeout: float, **options: Any) -> Any:
            waits.append(timeout)
            return SimpleNamespace(pixels=[np.zeros((8, 8, 3), np.uint8)])

    plan = KeptPlan(repository=Path("nowhere"), modes=parse_modes(""), prompts=["a", "b"], steps=30)
    assert len(_draw(plan, Slow(), {}, 2, plan.prompts)) == 2  # type: ignore[arg-type]
    assert min(waits) >= 86_400  # eight of 512 x 512 pixels at once take longer than a server waits where nothing is said


@pytest.mark.parametrize(
    ("at_once", "sentence"),
    [
        ("0", "0 is not allowed; it must be 1 to 64"),
        ("1,65", "65 is not allowed; it must be 1 to 64"),
        ("1,x", "'1,x' is not a list of numbers such as 1,2,4"),
    ],
)
def test_a_load_that_cannot_be_is_refused(at_once: str, sentence: str) -> None:
    result = CliRunner().invoke(app, ["cache", "--at-once", at_once], env={"COLUMNS": "300"})
    assert result.exit_code == 2
    assert sentence in result.output


def test_pictures_that_are_not_of_shapes_are_not_scored(monkeypatch: pytest.MonkeyPatch) -> None:
    def drawn(plan: KeptPlan, say: Any) -> list[dict[str, Any]]:
        assert plan.right is not None
        return [{"right": plan.right(0, np.zeros((64, 96, 3), np.uint8))}]

    monkeypatch.setattr(kept_cli, "kept", drawn)
    result = CliRunner().invoke(app, ["cache", "--score"], env={"COLUMNS": "300"})
    assert result.exit_code == 1
    assert "--score: pictures of 96 x 64 are not allowed; it must be 128 x 128" in result.output
