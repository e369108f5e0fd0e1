"""`nereid demo`: export the shipped checkpoint, start Triton, draw a handful of pictures through gRPC, stop."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated

import typer
from PIL import Image, ImageDraw
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from nereid.client import Client, ImageProgress, ImageResult, NereidError
from nereid.export.cli import Bar
from nereid.export.diffusion import ExportOptions, export_diffusion
from nereid.export.errors import ExportError
from nereid.serving.errors import ServingError
from nereid.serving.options import ServeOptions
from nereid.serving.supervisor import Supervisor
from nereid.zoo.shapes.score import CHECKPOINT

PROMPTS = (
    "a red circle above a blue square",
    "a large purple triangle on a white background",
    "a small green diamond to the left of an orange cross on a black background",
    "a yellow disc in the top right corner on a gray background",
    "a big blue cross below a tiny red diamond",
    "a green square in the center on beige",
)
ZOOM = 2
console = Console(stderr=True)


def demo(
    out: Annotated[Path, typer.Option(help="Where the pictures go.")] = Path("build/demo"),
    repository: Annotated[Path, typer.Option(help="Where the exported repository goes.")] = Path("build/repository"),
    steps: Annotated[int, typer.Option(help="Denoising steps.")] = 20,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was drawn as JSON.")] = False,
) -> None:
    """Export the shipped checkpoint (unless done before), serve it with Triton, draw six pictures and a contact sheet."""
    try:
        _export(repository)
        drawn = _draw_all(repository, out, steps)
    except (ExportError, ServingError, NereidError) as error:
        console.print(f"[red]error:[/red] {error}", highlight=False, soft_wrap=True)
        raise typer.Exit(1) from None
    sheet = out / "contact-sheet.png"
    _contact_sheet([result for _, result, _ in drawn], sheet)
    rows = [
        {
            "file": str(file),
            "prompt": prompt,
            "seed": result.seed,
            "seconds": round(result.denoise_seconds, 3),
            "milliseconds_a_step": round(1000 * result.denoise_seconds / steps, 1),
        }
        for file, result, prompt in drawn
    ]
    if as_json:
        print(json.dumps({"contact_sheet": str(sheet), "pictures": rows}))
        return
    for row in rows:
        console.print(f"{row['file']}  {row['milliseconds_a_step']} ms a step  {row['prompt']}", highlight=False)
    console.print(f"all of them: {sheet}", highlight=False)


def _export(repository: Path) -> None:
    options = ExportOptions(checkpoint=CHECKPOINT, out=repository)
    manifest = repository / "text_to_image" / "manifest.json"
    if manifest.is_file():
        from nereid.export.checkpoint import Checkpoint

        if json.loads(manifest.read_text())["source"]["sha256"] == Checkpoint.open(CHECKPOINT).digest():
            console.print(f"{repository} is there already", highlight=False)
            return
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        export_diffusion(options, Bar(progress))


def _draw_all(repository: Path, out: Path, steps: int) -> list[tuple[Path, ImageResult, str]]:
    out.mkdir(parents=True, exist_ok=True)
    options = ServeOptions.on_free_ports(repository, out / "triton.log")
    drawn = []
    start = time.monotonic()
    with console.status("starting Triton"), Supervisor(options), Client(f"127.0.0.1:{options.grpc_port}") as client:
        console.print(f"Triton is ready after {time.monotonic() - start:.1f} s")
        for number, prompt in enumerate(PROMPTS):
            for answer in client.stream_image(prompt, seed=number, num_inference_steps=steps, guidance_scale=5.0):
                if isinstance(answer, ImageProgress):
                    continue
                file = out / f"{number + 1}.png"
                answer.image.save(file)
                drawn.append((file, answer, prompt))
    return drawn


def _contact_sheet(results: list[ImageResult], file: Path) -> None:
    """All pictures, twice as large, their prompts below."""
    width, height = (ZOOM * side for side in results[0].image.size)
    sheet = Image.new("RGB", (3 * (width + 12) + 12, 2 * (height + 48) + 12), "white")
    pen = ImageDraw.Draw(sheet)
    for number, (result, prompt) in enumerate(zip(results, PROMPTS, strict=True)):
        x, y = 12 + (number % 3) * (width + 12), 12 + (number // 3) * (height + 48)
        sheet.paste(result.image.resize((width, height), Image.Resampling.LANCZOS), (x, y))
        words, lines = prompt.split(), [""]
        for word in words:
            if pen.textlength(f"{lines[-1]} {word}") > width:
                lines.append("")
            lines[-1] = f"{lines[-1]} {word}".strip()
        pen.text((x, y + height + 4), "\n".join(lines[:3]), fill="black")
    sheet.save(file)
