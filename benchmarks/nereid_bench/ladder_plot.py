"""Draws the ladder: bars of speed-up by rung, alone and under load, with score or PSNR beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

_BARS = {"speedup": "a picture alone", "load_speedup": "under load"}


def plot(rows: Sequence[Mapping[str, Any]], file: Path) -> None:
    """Write a picture to `file`, in the format that its name ends with: one column of bars a model, the plainest rung on top."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    models = list(dict.fromkeys(row["model"] for row in rows))
    most = max(sum(row["model"] == model for row in rows) for model in models)
    size = (6.5 * len(models), 1.5 + 0.55 * most)
    figure, axes = plt.subplots(1, len(models), figsize=size, squeeze=False, layout="constrained")
    for axis, model in zip(axes[0], models, strict=True):
        ours = [row for row in rows if row["model"] == model]
        for number, (column, label) in enumerate(_BARS.items()):
            places = [place + 0.4 * (number - 0.5) for place in range(len(ours))]
            axis.barh(places, [row[column] or 0.0 for row in ours], height=0.38, label=label)
        for place, row in enumerate(ours):
            longest = max(row[column] or 0.0 for column in _BARS)
            axis.annotate(beside(row), (longest, place), xytext=(4, 0), textcoords="offset points", va="center", fontsize=8)
        axis.set(title=model, xlabel="times as fast as the plainest way", xscale="log")
        axis.set_yticks(range(len(ours)), [row["rung"] for row in ours])
        axis.invert_yaxis()
        axis.xaxis.set_major_formatter("{x:g}")
        axis.margins(x=0.45)  # room for the words
        axis.grid(alpha=0.3, axis="x", which="both")
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=len(_BARS), fontsize=8)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=120)
    plt.close(figure)


def beside(row: Mapping[str, Any]) -> str:
    """What a bar's quality is, in words; nothing where it was not measured."""
    score = [] if row["score"] is None else [f"score {row['score']:.1f}%"]
    return ", ".join(score + ([] if row["psnr"] is None else [f"{row['psnr']:.1f} dB"]))
