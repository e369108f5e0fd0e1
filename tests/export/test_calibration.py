"""Prompts that engines are calibrated and compared on, and pictures that are not drawn twice."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
from nereid_export.calibration import CALLS, SET_APART, calibrate, drawn_prompts, read_prompts
from nereid_export.checkpoint import Checkpoint
from nereid_export.clip_tokenizers import read_tokenizers
from nereid_export.drawing import MOST_DB, Drawer, psnr
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
        (
            b"fish\n\nfish\nfish " + 4000 * b"fish " + b"\n",
            "20004 characters in prompt 3 of .* are not allowed; it must be 20000",
        ),
        (b"\xff\xfe", "cannot be read: it is not UTF-8 text"),
        (None, "cannot be read: no such file or directory"),
    ],
)
def test_a_file_of_too_few_or_no_prompts_is_refused(content: bytes | None, refusal: str, tmp_path: Path) -> None:
    file = tmp_path / "prompts"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ExportError, match=f"--calibration-prompts: .*{refusal}"):
        read_prompts(file)


def test_prompts_of_windows_are_the_same(tmp_path: Path) -> None:
    file = tmp_path / "prompts"
    file.write_bytes(b"\xef\xbb\xbfa red fish\r\na blue fish\r\ntwo fish\r\n")
    assert read_prompts(file) == ("a red fish", "a blue fish", "two fish")


def test_what_is_no_file_is_not_read(tmp_path: Path) -> None:
    """A device never ends, and a pipe may never begin."""
    os.mkfifo(tmp_path / "pipe")
    for place in (tmp_path, tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(ExportError, match=f"--calibration-prompts: {place} cannot be read: it is not a file"):
            read_prompts(place)


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
        calibrate(lambda: drawer, drawer.pipeline, prompts, tmp_path / "c", "digest", interrupted)
    lines.clear()
    resumed = calibrate(lambda: drawer, drawer.pipeline, prompts, tmp_path / "c", "digest", told(lines))
    assert lines == [*(f"drawing picture {number} of 4 with PyTorch" for number in (3, 4)), "finishing runs with PyTorch"]
    whole = calibrate(lambda: drawer, drawer.pipeline, prompts, tmp_path / "other", "digest", told([]))
    assert all(np.array_equal(a.picture, b.picture) for a, b in zip(resumed.pictures, whole.pictures, strict=True))
    again: list[str] = []
    calibrate(lambda: pytest.fail("nothing is left to draw"), drawer.pipeline, prompts, tmp_path / "c", "digest", told(again))
    assert again == []
    calibrate(lambda: drawer, drawer.pipeline, prompts, tmp_path / "c", "another checkpoint", told(again))
    assert len(again) == len(prompts) + 1


def test_runs_are_finished_only_where_somebody_measures_their_end(drawer: Drawer, tmp_path: Path) -> None:
    prompts, lines = ("red fish", "blue fish", "one fish"), []
    made = calibrate(lambda: drawer, drawer.pipeline, prompts, tmp_path, "digest", lines.append, whole_runs=False)
    assert made.runs is None
    assert len(lines) == len(prompts)
    again = calibrate(lambda: drawer, drawer.pipeline, prompts, tmp_path, "digest", lines.append)
    assert again.runs is not None
    assert lines[len(prompts) :] == ["finishing runs with PyTorch"]


def test_pictures_of_other_versions_are_drawn_again(drawer: Drawer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts, lines = ("red fish", "blue fish", "one fish"), []
    calibrate(lambda: drawer, drawer.pipeline, prompts, tmp_path, "digest", told([]))
    monkeypatch.setattr("nereid_export.calibration.versions", lambda packages: {"torch": "another"})
    calibrate(lambda: drawer, drawer.pipeline, prompts, tmp_path, "digest", lines.append)
    assert len(lines) == len(prompts) + 1


def test_ranges_and_checks_are_of_different_prompts_and_of_steps_all_over_the_run(drawer: Drawer, tmp_path: Path) -> None:
    made = calibrate(
        lambda: drawer, drawer.pipeline, ("red fish", "blue fish", "one fish", "two fish"), tmp_path, "digest", told([])
    )
    assert len(made.checks["vae_decoder"]) == SET_APART
    assert len(made.ranges["vae_encoder"]) == 4 - SET_APART
    assert len(made.ranges["unet"]) >= CALLS * (4 - SET_APART)
    times = [float(call["timestep"][0, 0]) for call in made.ranges["unet"]]
    assert min(times) < 200 < 800 < max(times)
    assert all(len(call["sample"]) == 2 for call in made.ranges["unet"])  # guided and unguided rows


def test_equal_pictures_have_no_error() -> None:
    picture = np.full((4, 4, 3), 7, dtype=np.uint8)
    assert psnr(picture, picture) == MOST_DB
    assert psnr(picture, picture + np.uint8(1)) == pytest.approx(48.13, abs=0.01)


def test_a_damaged_picture_is_drawn_again(drawer: Drawer, tmp_path: Path) -> None:
    prompts = ("red fish", "blue fish", "one fish")
    whole = calibrate(lambda: drawer, drawer.pipeline, prompts, tmp_path / "c", "digest", told([]))
    file = tmp_path / "c" / "1.npz"
    data = file.read_bytes()
    for damaged in (data[: len(data) // 2], data[:2000] + bytes([data[2000] ^ 1]) + data[2001:], b""):
        file.write_bytes(damaged)
        lines: list[str] = []
        again = calibrate(lambda: drawer, drawer.pipeline, prompts, tmp_path / "c", "digest", told(lines))
        assert lines == ["drawing picture 2 of 3 with PyTorch"]
        assert np.array_equal(again.pictures[1].picture, whole.pictures[1].picture)
        assert file.read_bytes() == data


@pytest.mark.parametrize(
    ("component", "sentence"),
    [
        ("text_encoder", "prompt_embeds: 'NaN or infinite' is not allowed"),
        ("unet", "unet: the output holds NaN or infinite values"),
        ("vae_decoder", "vae_decoder: the image holds NaN"),
    ],
)
def test_what_no_picture_can_be_made_of_is_one_sentence(component: str, sentence: str, drawer: Drawer) -> None:
    """Weights that are finite may overflow on the way."""
    run = drawer.runs[component]

    def overflowing(inputs: object, names: object) -> dict[str, np.ndarray]:
        return {name: np.full_like(value, np.nan) for name, value in run(inputs, names).items()}  # type: ignore[arg-type]

    broken = replace(drawer, runs={**drawer.runs, component: overflowing})
    with pytest.raises(ExportError, match=f"^a picture cannot be drawn: {sentence}"):
        broken.draw(["red fish"], [0])
