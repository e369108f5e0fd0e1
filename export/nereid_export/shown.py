"""The exporter's tables for people; what they say is in the manifest, too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table


def show_llm(manifest: dict[str, Any], out: Path) -> None:
    """A language model's engine, and what it was chosen from."""
    engine = manifest["engine"]
    table = Table(title=f"{manifest['source']['name']} -> {out}")
    for column in (
        "engine",
        "precision",
        "MB",
        "compression",
        "logits error",
        "next-token agreement",
        "perplexity (fp32)",
        "in 8 bits",
    ):
        table.add_column(column, justify="right")
    table.add_row(
        engine["engine"],
        manifest["arguments"]["precision"],
        f"{engine['engine_bytes'] / 1e6:.1f}",
        f"{engine['compression']:.2f}x",
        f"{engine['logits_error']:.1e}",
        f"{100 * engine['next_token_agreement']:.1f}%",
        f"{engine['perplexity']:.3f} ({engine['perplexity_fp32']:.3f})",
        f"{len(engine['eight_bit'])} of {len(engine['matrices'])}",
    )
    Console().print(table)
    if "candidates" in manifest:
        _show_candidates(manifest["candidates"])


def show_diffusion(manifest: dict[str, Any], out: Path) -> None:
    """A pipeline's engines, what they were chosen from, and what whole pictures say of them."""
    table = Table(title=f"{manifest['source']['name']} -> {out}")
    columns = ("model", "engine", "precision", "MB", "ms a call", "largest relative error", "bound", "same bits in any batch")
    for column in (*columns, "built in s"):
        table.add_column(column, justify="left" if column in ("model", "engine", "precision") else "right")
    for name, engine in manifest["engines"].items():
        table.add_row(
            name,
            engine["engine"],
            engine["precision"],
            f"{engine['bytes'] / 1e6:.1f}",
            "-" if not engine["checked"] else f"{engine['milliseconds']:.1f}",
            *_findings(engine),
            f"{engine['seconds']:.1f}",
        )
    Console().print(table)
    for name, engine in manifest["engines"].items():
        if kept := engine.get("quantization", {}).get("kept"):
            Console().print(f"{name}: not rounded to 8 bits: {', '.join(kept)}", highlight=False, soft_wrap=True)
    if (pictures := manifest.get("pictures")) is not None:
        said = f"{pictures['pictures']} pictures against PyTorch's: PSNR {pictures['psnr']:.1f} dB in the median, "
        said += f"{pictures['psnr_lowest']:.1f} dB at least (bound of the median: {pictures['psnr_bound']:g})"
        if "score" in pictures:
            said += f"; {pictures['scored_by']}: {pictures['score']:.1f}% ({pictures['score_fp32']:.1f}% by PyTorch)"
        Console().print(said, highlight=False, soft_wrap=True)
    if "candidates" in manifest:
        _show_candidates(manifest["candidates"])
    for reason in dict.fromkeys(engine["reason"] for engine in manifest["engines"].values() if not engine["checked"]):
        Console().print(f"not checked against PyTorch: {reason}", highlight=False, soft_wrap=True)


def _findings(engine: dict[str, Any]) -> tuple[str, str, str]:
    """Error, bound, and whether rows are the same in any batch."""
    if not engine["checked"]:
        return "not checked", "-", "-"
    worst = max(check["relative_error"] for check in engine["checks"])
    invariant = {None: "no", 1: "yes"}.get(engine["batch_invariant_from_rows"], "from 2 rows")
    return f"{worst:.1e}", f"{engine['error_bound']:g}", invariant


def _show_candidates(candidates: dict[str, list[dict[str, Any]]]) -> None:
    table = Table(title="measured")
    for column in ("model", "engine", "precision", "threads", "ms a call (rows)", "error", "MB", "memory MiB", "same bits", ""):
        table.add_column(column, justify="right" if column in ("error", "MB", "memory MiB") else "left")
    for model, rows in candidates.items():
        for row in rows:
            same = {None: "no", 1: "yes", 2: "from 2 rows"}
            table.add_row(
                model,
                row["engine"],
                row["precision"],
                str(row["threads"] or "its own"),
                ", ".join(f"{took:.4g} ({count})" for count, took in row.get("milliseconds", {}).items()),
                f"{row['error']:.1e}" if "error" in row else "",
                f"{row['bytes'] / 1e6:.1f}" if "bytes" in row else "",
                f"{row['memory_bytes'] / 2**20:.0f}" if "memory_bytes" in row else "",
                same[row["batch_invariant_from_rows"]] if "batch_invariant_from_rows" in row else "",
                "chosen" if row["chosen"] else row.get("dropped", ""),
            )
    Console().print(table)
