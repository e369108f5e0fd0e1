"""The exporter's tables: what a terminal of 80 columns shows whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from nereid_export.shown import show_diffusion

REASON = "bf16 needs a processor with bfloat16 instructions, which this one lacks; use fp32"


def row(engine: str, precision: str, **given: Any) -> dict[str, Any]:
    measured = {"milliseconds": {"1": 7.7, "2": 11.7, "4": 18.7, "8": 134.3}, "error": 1e-6, "bytes": 20e6}
    return {"engine": engine, "precision": precision, "threads": 0, "chosen": False, **measured, **given}


def engine(**given: Any) -> dict[str, Any]:
    checked = {"checked": True, "milliseconds": 8.1, "checks": [{"relative_error": 8.2e-7}], "error_bound": 1e-4}
    built = {"engine": "onnxruntime", "precision": "int8-weights", "bytes": 1e6, "batch_invariant_from_rows": 2}
    return {**built, **checked, **given}


def test_engines_and_candidates_are_shown_whole_in_80_columns(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    dropped = {"engine": "torch", "precision": "bf16", "threads": 0, "chosen": False, "dropped": REASON}
    candidates = [row("onnxruntime", "fp32", chosen=True), row("openvino", "int8", threads=2, memory_bytes=2**27), dropped]
    engines = {"unet": engine(end_error=0.0834), "text_encoder_2": engine(checked=False, reason="no card is here")}
    show_diffusion({"source": {"name": "shapes"}, "engines": engines, "candidates": {"unet": candidates}}, Path("out"))
    lines = capsys.readouterr().out.splitlines()
    assert all(len(line) <= 80 for line in lines if REASON not in line)
    text = "\n".join(lines)
    for whole in (
        "text_encoder_2",
        "onnxruntime int8-weights",
        "8e-07",
        "1e-04",
        "8e-02",
        "from 2",
        "> onnxruntime fp32",
        "134@8",
    ):
        assert whole in text
    assert f"unet: torch bf16 was dropped: {REASON}" in lines


def test_reasons_are_said_as_they_are_whatever_brackets_they_have(capsys: pytest.CaptureFixture[str]) -> None:
    reason = "int8 needs NNCF; install it with `pip install -e './export[nncf]'`, and not [/opt]"
    dropped = {"engine": "openvino", "precision": "int8", "threads": 0, "chosen": False, "dropped": reason}
    engines = {"vae_decoder": engine(checked=False, reason=reason)}
    show_diffusion({"source": {"name": "shapes"}, "engines": engines, "candidates": {"unet": [dropped]}}, Path("out"))
    lines = capsys.readouterr().out.splitlines()
    assert f"unet: openvino int8 was dropped: {reason}" in lines
    assert f"not checked against PyTorch: {reason}" in lines
