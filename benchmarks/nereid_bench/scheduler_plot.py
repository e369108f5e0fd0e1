"""Draws quality over time: every measured setting, and the Pareto front with the settings' names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nereid_bench.scheduler_choice import PSNR, SCORE, Measured, pareto_front

_NAMES = {SCORE: "{scored_by}, %", PSNR: "PSNR against {steps} steps of {scheduler}, dB"}
_MARKERS = {"own": "o", "linspace": "s", "leading": "^", "trailing": "v", "exponential": "D", "eta": "P"}


def plot(rows: Sequence[Mapping[str, Any]], measured: Sequence[Measured], told: Mapping[str, Any], file: Path) -> None:
    """Write a picture to `file`, in the format that its name ends with; `told` has the words of the axes.

    Schedulers are colours, variations are markers; Karras sigmas, which make a scheduler of their own, are hollow.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    kinds = [kind for kind in (SCORE, PSNR) if any(one.quality(kind) > float("-inf") for one in measured)]
    figure, axes = plt.subplots(1, len(kinds), figsize=(7 * len(kinds) + 1.5, 5.5), squeeze=False, layout="constrained")
    families = list(dict.fromkeys(row["scheduler"].removesuffix("_karras") for row in rows))
    colors = {family: plt.get_cmap("tab20")(number % 20) for number, family in enumerate(families)}
    for axis, kind in zip(axes[0], kinds, strict=True):
        for row, one in zip(rows, measured, strict=True):
            family = row["scheduler"].removesuffix("_karras")
            hollow = "none" if row["scheduler"] != family else colors[family]
            marker = _MARKERS[row["variation"].partition("=")[0]]
            axis.scatter(one.seconds, one.quality(kind), s=26, marker=marker, facecolors=hollow, edgecolors=[colors[family]])
        front = pareto_front(measured, kind)
        axis.plot([one.seconds for one in front], [one.quality(kind) for one in front], color="black", lw=1, zorder=0)
        for number, one in enumerate(front):
            above = number % 2 == 1  # names of neighbours do not lie on each other
            axis.annotate(
                one.label,
                (one.seconds, one.quality(kind)),
                xytext=(-4, 6) if above else (5, -10),
                textcoords="offset points",
                ha="right" if above else "left",
                fontsize=7,
            )
        axis.set(xscale="log", xlabel="seconds a picture, median", ylabel=_NAMES[kind].format(**told))
        axis.xaxis.set_major_formatter("{x:g}")
        axis.xaxis.set_minor_formatter("{x:g}")
        axis.tick_params(axis="x", which="minor", labelsize=7)
        axis.margins(x=0.12, y=0.08)
        axis.grid(alpha=0.3, which="both")
    figure.legend(handles=_legend(plt, colors, rows), loc="outside right center", fontsize=8)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=120)
    plt.close(figure)


def _legend(plt: Any, colors: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> list[Any]:
    def entry(label: str, **look: Any) -> Any:
        return plt.Line2D([], [], linestyle="none", label=label, **look)

    found = {row["variation"].partition("=")[0] for row in rows}
    entries = [entry(family, marker="o", color=color) for family, color in colors.items()]
    if any(row["scheduler"].endswith("_karras") for row in rows):
        entries.append(entry("Karras sigmas", marker="o", markerfacecolor="none", color="gray"))
    entries += [entry(name, marker=marker, color="gray") for name, marker in _MARKERS.items() if name in found]
    return [*entries, plt.Line2D([], [], color="black", lw=1, label="Pareto front")]
