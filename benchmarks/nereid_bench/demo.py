"""`nereid demo`: export the shipped checkpoints, start Triton, draw pictures, write a section, make a page through gRPC, stop."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from PIL import Image, ImageDraw

from nereid.serving.errors import ServingError
from nereid.serving.options import ServeOptions
from nereid.serving.supervisor import Supervisor
from nereid_bench.pages import BRIEF as PAGE_BRIEF
from nereid_client import Client, ImageProgress, ImageResult, NereidError
from nereid_client.browser import BrowserError, find_browser, screenshot
from nereid_client.terminal import console, fail, say
from nereid_export.bar import progress_bar
from nereid_export.checkpoint import Checkpoint
from nereid_export.configs import prefixed
from nereid_export.diffusion import export_diffusion
from nereid_export.engines import Engine
from nereid_export.errors import ExportError
from nereid_export.frame import MANIFEST
from nereid_export.layout import LayoutExportOptions, export_layout
from nereid_export.layout_checkpoint import LayoutCheckpoint
from nereid_export.llm import LlmExportOptions, export_llm
from nereid_export.llm_checkpoint import LlmCheckpoint
from nereid_export.options import ExportOptions
from nereid_export.page import PageExportOptions, export_page
from nereid_zoo.layout import score as layout
from nereid_zoo.page import score as pages
from nereid_zoo.sections import score as sections
from nereid_zoo.sections.chat import conversation
from nereid_zoo.shapes.score import CHECKPOINT

PROMPTS = (
    "a red circle above a blue square",
    "a large purple triangle on a white background",
    "a small green diamond to the left of an orange cross on a black background",
    "a yellow disc in the top right corner on a gray background",
    "a big blue cross below a tiny red diamond",
    "a green square in the center on beige",
)
BRIEF = 'pricing section for a bakery, three tiers, a "Order now" button'
PLANNER = "planner"
"""The name that the language model which plans pages is exported under."""
ZOOM = 2


def demo(
    out: Annotated[Path, typer.Option(help="Where the pictures go.")] = Path("build/demo"),
    repository: Annotated[Path, typer.Option(help="Where the exported repository goes.")] = Path("build/repository"),
    steps: Annotated[int, typer.Option(help="Denoising steps of a picture.", min=1, max=200)] = 20,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was drawn as JSON.")] = False,
) -> None:
    """Export the shipped checkpoints (unless done before), serve them, draw six pictures, write a section, make a page."""
    try:
        _export(repository)
        drawn, section, page = _run_all(repository, out, steps, not as_json)
    except (ExportError, ServingError, NereidError, BrowserError) as error:
        fail(error)
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
        print(json.dumps({"contact_sheet": str(sheet), "pictures": rows, "section": section, "page": page}))
        return
    say(
        f"\n\n{section['file']}  {section['tokens']} tokens, the first after {section['milliseconds_to_first_token']} ms, "
        f"{section['tokens_per_second']} a second"
    )
    for row in rows:
        say(f"{row['file']}  {row['milliseconds_a_step']} ms a step  {row['prompt']}")
    say(f"all of them: {sheet}")
    for said in page["degraded"]:
        say(f"{PAGE_BRIEF}: {said}")
    say(f"{' '.join(page['files'])}  the first section after {page['first_section']} s, all after {page['page']} s")


def _export(repository: Path) -> None:
    """The shipped checkpoints, unless they stand there already; the image pipeline's engines are the fastest ones here."""
    if _is_exported(repository / "text_to_image", Checkpoint.open(CHECKPOINT).digest()):
        say(f"{repository} has the image pipeline already")
    else:
        with progress_bar() as bar:
            export_diffusion(ExportOptions(checkpoint=CHECKPOINT, out=repository, engine=Engine.AUTO), bar)
    for name, checkpoint in (("", sections.CHECKPOINT), (PLANNER, pages.CHECKPOINT)):
        model = prefixed("llm", name)
        if _is_exported(repository / model, LlmCheckpoint.open(checkpoint).digest()):
            say(f"{repository} has the language model {model} already")
        else:
            with progress_bar() as bar:
                export_llm(LlmExportOptions(checkpoint=checkpoint, out=repository, name=name), bar)
    _export_page(repository)


def _export_page(repository: Path) -> None:
    """The model that makes pages of the others, and their layouts."""
    if not _is_exported(repository / "layout", LayoutCheckpoint.open(layout.CHECKPOINT).digest()):
        with progress_bar() as bar:
            export_layout(LayoutExportOptions(checkpoint=layout.CHECKPOINT, out=repository), bar)
    with progress_bar() as bar:
        export_page(PageExportOptions(out=repository, planner=prefixed("llm", PLANNER), picture_prompts=pages.PROMPTS), bar)


def _is_exported(home: Path, digest: str) -> bool:
    manifest = home / MANIFEST
    return manifest.is_file() and bool(json.loads(manifest.read_text())["source"]["sha256"] == digest)


def _run_all(
    repository: Path, out: Path, steps: int, show: bool
) -> tuple[list[tuple[Path, ImageResult, str]], dict[str, Any], dict[str, Any]]:
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
        section = _write_section(client, out / "section.html", show)
        page = _make_page(client, out / "page.html")
    return drawn, section, page


def _make_page(client: Client, file: Path) -> dict[str, Any]:
    """A page of all three models, and where Chromium is installed its picture."""
    made = client.generate_page(PAGE_BRIEF, seed=1)
    file.write_text(made.html, encoding="utf-8")
    files, browser = [str(file)], find_browser()
    if browser is not None:
        picture = file.with_suffix(".png")
        screenshot(file, picture, made.width, made.height, browser)
        files.append(str(picture))
    return {"brief": PAGE_BRIEF, "files": files, "passed": made.passed, "degraded": list(made.degraded), **made.seconds}


def _write_section(client: Client, file: Path, show: bool) -> dict[str, Any]:
    """Stream a web-page section for BRIEF to the terminal and to a file."""
    if show:
        console.print(f"\n{BRIEF}", style="bold", highlight=False)
    start, first, tokens, written = time.monotonic(), 0.0, 0, ""
    for delta in client.stream_text(conversation(BRIEF), temperature=0, max_tokens=400):
        first = first or time.monotonic() - start
        tokens += len(delta.token_ids)
        written += delta.text
        if show:
            console.print(delta.text, end="", highlight=False, markup=False)
    seconds = time.monotonic() - start
    file.write_text(written + "\n")
    return {
        "file": str(file),
        "brief": BRIEF,
        "tokens": tokens,
        "milliseconds_to_first_token": round(1000 * first, 1),
        "tokens_per_second": round(tokens / seconds, 1),
    }


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
