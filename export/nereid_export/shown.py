"""The exporter's tables for people; what they say is in the manifest, too."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

_SAME_BITS = {None: "no", 1: "yes", 2: "from 2"}


LIKELY_PSNR = 15.0
"""Of the pictures of a tiny VAE that was distilled for these latents, at least: SD's and XL's are of one form, but not alike."""


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
    if "embedding_error" in engine:
        Console().print(f"embeddings: the mean of the sample's last hidden states differs by {engine['embedding_error']:.1e}")
    if "adapters" in engine:
        _show_adapters(engine["adapters"])
    if "candidates" in manifest:
        _show_candidates(manifest["candidates"])


def _show_adapters(adapters: Sequence[dict[str, Any]]) -> None:
    table = Table(title="adapters")
    for column in ("name", "layers", "rank", "logits error", "next-token agreement", "perplexity (fp32)"):
        table.add_column(column, justify="left" if column == "name" else "right")
    for its in adapters:
        table.add_row(
            its["name"],
            str(its["layers"]),
            str(its["rank"]),
            f"{its['logits_error']:.1e}",
            f"{100 * its['next_token_agreement']:.1f}%",
            f"{its['perplexity']:.3f} ({its['perplexity_fp32']:.3f})",
        )
    Console().print(table)


def show_diffusion(manifest: dict[str, Any], out: Path) -> None:
    """A pipeline's engines, what they were chosen from, and what whole pictures say of them."""
    table = _table(f"{manifest['source']['name']} -> {out}")
    for column in ("model", "engine", "MB", "ms", "error", "bound", "at end", "bits"):
        table.add_column(column, justify="left" if column in ("model", "engine") else "right", overflow="fold")
    for name, engine in manifest["engines"].items():
        table.add_row(
            name,
            f"{engine['engine']} {engine['precision']}",
            f"{engine['bytes'] / 1e6:.1f}",
            "-" if not engine["checked"] else f"{engine['milliseconds']:.1f}",
            *_findings(engine),
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
    if (decoders := manifest.get("decoders")) is not None:
        said = (
            f"{decoders['pictures']} pictures by the tiny decoder against the full one's: PSNR {decoders['psnr']:.1f} dB in the "
        )
        said += f"median, {decoders['psnr_lowest']:.1f} dB at least"
        if decoders["psnr"] < LIKELY_PSNR:
            said += " (so unlike that it may be another family's tiny VAE)"
        if "score_tiny" in decoders:
            said += f"; {decoders['scored_by']}: {decoders['score_tiny']:.1f}% ({decoders['score_full']:.1f}% by the full one)"
        Console().print(said, highlight=False, soft_wrap=True)
    if "candidates" in manifest:
        _show_candidates(manifest["candidates"])
    for reason in dict.fromkeys(engine["reason"] for engine in manifest["engines"].values() if not engine["checked"]):
        Console().print(f"not checked against PyTorch: {reason}", highlight=False, markup=False, soft_wrap=True)


def _findings(engine: dict[str, Any]) -> tuple[str, str, str, str]:
    """Largest relative error and its bound, that of finished latents, and whether rows are the same in any batch."""
    if not engine["checked"]:
        return "-", "-", "-", "-"
    worst = max(check["relative_error"] for check in engine["checks"])
    end = f"{engine['end_error']:.0e}" if "end_error" in engine else "-"
    return f"{worst:.0e}", f"{engine['error_bound']:.0e}", end, _SAME_BITS[engine["batch_invariant_from_rows"]]


def _table(title: str) -> Table:
    """Without frames, which take a terminal's width."""
    return Table(title=title, box=None, padding=(0, 1), pad_edge=False, collapse_padding=True)


def _show_candidates(candidates: dict[str, list[dict[str, Any]]]) -> None:
    """What was measured, within 80 columns; what was dropped, and why, in lines below."""
    table = _table("measured (> is chosen)")
    for column in ("engine, threads", "ms a call@rows", "error", "MB", "MiB run", "same bits"):
        table.add_column(column, justify="right" if column in ("error", "MB", "MiB run") else "left", overflow="fold")
    for model, rows in candidates.items():
        table.add_section()
        table.add_row(f"[bold]{model}[/]")
        for row in rows:
            if "dropped" in row and "milliseconds" not in row:
                continue
            table.add_row(
                f"{'>' if row['chosen'] else ' '} {row['engine']} {row['precision']}"
                + (f", {row['threads']}" if row["threads"] else ""),
                " ".join(f"{took:.3g}@{count}" for count, took in row.get("milliseconds", {}).items()),
                f"{row['error']:.0e}" if "error" in row else "",
                f"{row['bytes'] / 1e6:.0f}" if "bytes" in row else "",
                f"{row['memory_bytes'] / 2**20:.0f}" if "memory_bytes" in row else "",
                _SAME_BITS[row["batch_invariant_from_rows"]] if "batch_invariant_from_rows" in row else "",
            )
    Console().print(table)
    for model, rows in candidates.items():
        for row in rows:
            if "dropped" in row:
                said = f"{model}: {row['engine']} {row['precision']} was dropped: {row['dropped']}"
                Console().print(said, highlight=False, markup=False, soft_wrap=True)
