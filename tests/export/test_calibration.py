"""Prompts that engines are calibrated and compared on, and pictures that are not drawn twice."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
from nereid_export.calibration import CALLS, SET_APART, calibrate, drawn_prompts, read_prompts
from nereid_export.checkpoint import Checkpoint
from nereid_export.clip_tokenizers import read_tokenizers
from nereid_export.drawing import Drawer, psnr
from nereid_export.errors import ExportError

pytestmark = pytest.mark.torch


@pytest.fixture(scope="module")
def drawer(checkpoints: dict[str, Path]) -> Drawer:
    return Drawer.by_torch(Checkpoint.open(checkpoints["sd"]))


def told(lines: list[str]) -> Callable[[str], None]:
    return lines.append


def test_prompts_are_lines_of_a_file(tmp_path: Path) -> None:
    file = tmp_path / "prompts"
    file.write_text(" a red fish\n\na blue fish\ntwo fish \n", encoding="utf-8")
    assert read_prompts(file) == ("a red fish", "a blue fish", "two fish")


@pytest.mark.parametrize(
    ("content", "refusal"),
    [
        (b"one\ntwo\n", "2 prompts in .* are not allowed; it must be 3 to 200"),
        (b"fish\n" * 201, "201 prompts"),
        (b"\xff\xfe", "cannot be read"),
        (None, "cannot be read"),
    ],
)
def test_a_file_of_too_few_or_no_prompts_is_refused(content: bytes | None, refusal: str, tmp_path: Path) -> None:
    file = tmp_path / "prompts"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ExportError, match=f"--calibration-prompts: .*{refusal}"):
        read_prompts(file)


def test_without_prompts_words_of_the_tokenizer_are_drawn(checkpoints: dict[str, Path]) -> None:
    (tokenizer,) = read_tokenizers(Checkpoint.open(checkpoints["sd"])).values()
    prompts = drawn_prompts(tokenizer)
    assert prompts == drawn_prompts(tokenizer)
    words = {token.removesuffix("</w>") for token in tokenizer.get_vocab()}
    assert all(word in words for prompt in prompts for word in prompt.split())
    assert len(set(prompts)) == len(prompts) == 10


def test_an_interrupted_calibration_goes_on_where_it_stopped(drawer: Drawer, tmp_path: Path) -> None:
    prompts, lines = ("red fish", "blue fish", "one fish", "two fish"), []

    def interrupted(text: str) -> None:
        lines.append(text)
        if text.startswith("drawing picture 3"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        calibrate(lambda: drawer, prompts, tmp_path / "c", "digest", interrupted)
    lines.clear()
    resumed = calibrate(lambda: drawer, prompts, tmp_path / "c", "digest", told(lines))
    assert [line.split()[2] for line in lines] == ["3", "4"]
    whole = calibrate(lambda: drawer, prompts, tmp_path / "other", "digest", told([]))
    assert all(np.array_equal(a.picture, b.picture) for a, b in zip(resumed.pictures, whole.pictures, strict=True))
    again: list[str] = []
    calibrate(lambda: pytest.fail("nothing is left to draw"), prompts, tmp_path / "c", "digest", told(again))
    assert again == []
    calibrate(lambda: drawer, prompts, tmp_path / "c", "another checkpoint", told(again))
    assert len(again) == len(prompts)


def test_pictures_of_other_versions_are_drawn_again(drawer: Drawer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts, lines = ("red fish", "blue fish", "one fish"), []
    calibrate(lambda: drawer, prompts, tmp_path, "digest", told([]))
    monkeypatch.setattr("nereid_export.calibration.versions", lambda packages: {"torch": "another"})
    calibrate(lambda: drawer, prompts, tmp_path, "digest", lines.append)
    assert len(lines) == len(prompts)


def test_ranges_and_checks_are_of_different_prompts_and_of_steps_all_over_the_run(drawer: Drawer, tmp_path: Path) -> None:
    made = calibrate(lambda: drawer, ("red fish", "blue fish", "one fish", "two fish"), tmp_path, "digest", told([]))
    assert len(made.checks["vae_decoder"]) == SET_APART
    assert len(made.ranges["vae_encoder"]) == 4 - SET_APART
    assert len(made.ranges["unet"]) >= CALLS * (4 - SET_APART)
    times = [float(call["timestep"][0, 0]) for call in made.ranges["unet"]]
    assert min(times) < 200 < 800 < max(times)
    assert all(len(call["sample"]) == 2 for call in made.ranges["unet"])  # guided and unguided rows


def test_equal_pictures_have_no_error() -> None:
    picture = np.full((4, 4, 3), 7, dtype=np.uint8)
    assert psnr(picture, picture) == float("inf")
    assert psnr(picture, picture + np.uint8(1)) == pytest.approx(48.13, abs=0.01)
