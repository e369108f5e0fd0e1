"""What commands say on a terminal: one sentence an error, nothing of it read as markup."""

from __future__ import annotations

from pathlib import Path

import pytest

from nereid_client.terminal import say_error


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (FileNotFoundError(2, "No such file or directory", "/nowhere/a"), "error: /nowhere/a: No such file or directory\n"),
        (OSError(28, "No space left on device"), "error: No space left on device\n"),
        (OSError("cannot identify image file"), "error: cannot identify image file\n"),
        (ValueError("[/v1] is not allowed"), "error: [/v1] is not allowed\n"),
        ("a sentence", "error: a sentence\n"),
    ],
)
def test_an_error_is_a_sentence_without_a_number(error: object, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    say_error(error)
    assert capsys.readouterr().err == said


def test_a_file_that_is_really_not_there(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    try:
        (tmp_path / "a").read_text()
    except OSError as error:
        say_error(error)
    assert capsys.readouterr().err == f"error: {tmp_path / 'a'}: No such file or directory\n"
