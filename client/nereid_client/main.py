"""The command `nereid`: the client's verbs, and those of the other distributions where they are installed."""

from __future__ import annotations

import importlib
import importlib.metadata
import json
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Annotated, Any

import typer

from nereid_client.batch_cli import app as batch_app
from nereid_client.chat_cli import chat
from nereid_client.cli_options import Timeout, Url, may_be_drawn, may_be_written
from nereid_client.client import Client
from nereid_client.errors import NereidError
from nereid_client.image_options import with_image_options, with_layout_options
from nereid_client.images import ImageProgress, ImageResult
from nereid_client.options import Protocol
from nereid_client.page_cli import page
from nereid_client.terminal import INTERRUPTED, counting, fail, say, say_error, say_warning
from nereid_client.top import top

# Verbs of other distributions: imported when used, because they need packages that a client does without.
OTHER_ROOMS = {
    "export": ("nereid_export.cli", "app", "Turn a checkpoint into a deployable Triton model repository.", "nereid-export"),
    "calibrate": (
        "nereid_export.calibrate_cli",
        "calibrate",
        "Measure feature caching on an exported pipeline.",
        "nereid-export",
    ),
    "calibrate-layout": (
        "nereid_export.layout_calibrate_cli",
        "calibrate_layout",
        "Measure the reuse of a layout transformer's branches on an exported model.",
        "nereid-export",
    ),
    "serve": ("nereid.serving.cli", "serve", "Serve a model repository with Triton.", "nereid[serve,gateway]"),
    "zoo": ("nereid_zoo.cli", "app", "Train and score this project's own small checkpoints.", "nereid-zoo"),
    "bench": ("nereid_bench.cli", "app", "Measure, peers side by side.", "nereid-bench"),
    "demo": (
        "nereid_bench.demo",
        "demo",
        "Export the shipped models, serve them, draw pictures, write a section, make a page.",
        "nereid-bench nereid[serve]",
    ),
}

app = typer.Typer(
    help="Generative models on Triton: export, serve, generate, chat, watch, measure.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _tell_version(wanted: bool) -> None:
    if wanted:
        print(importlib.metadata.version("nereid-client"))
        raise typer.Exit


@app.callback()
def nereid(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", callback=_tell_version, is_eager=True)
    ] = False,
) -> None:
    """Generative models on Triton: export, serve, generate, chat, watch, measure."""


@app.command()
@with_image_options
def generate(
    prompt: Annotated[str, typer.Argument(help="What to draw.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Where the picture goes (.png, .jpg, ...).", callback=may_be_drawn)
    ] = Path("out.png"),
    url: Url = None,
    protocol: Annotated[Protocol, typer.Option(help="How to reach it.")] = Protocol.GRPC,
    name: Annotated[str, typer.Option(help="Prefix of the pipeline's models.", show_default="none")] = "",
    init_image: Annotated[
        Path | None, typer.Option(help="Start from this picture.", exists=True, dir_okay=False, show_default="none")
    ] = None,
    mask_image: Annotated[
        Path | None,
        typer.Option(
            help="Draw that picture anew only where this one is white.", exists=True, dir_okay=False, show_default="all of it"
        ),
    ] = None,
    timeout: Timeout = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print seed, timings and warnings as JSON.")] = False,
    **fields: Any,
) -> None:
    """Draw a picture on a running server, with a progress bar."""
    try:
        for field, file in (("init_image", init_image), ("mask_image", mask_image)):
            if file is not None:
                fields[field] = _open_picture(file, is_mask=field == "mask_image")
        with Client(url, protocol=protocol, name=name, timeout=timeout) as client:
            result = _draw(client, prompt, fields)
        result.image.save(output)
    except (NereidError, OSError, ValueError) as error:
        fail(error)
    except KeyboardInterrupt:
        say_error("stopped; the server was told so")
        raise typer.Exit(INTERRUPTED) from None
    for warning in result.warnings:
        say_warning(warning)
    if as_json:
        facts = {
            "output": str(output),
            "seed": result.seed,
            "queue_seconds": result.queue_seconds,
            "denoise_seconds": result.denoise_seconds,
            "warnings": result.warnings,
        }
        print(json.dumps(facts))
    else:
        say(f"{output}  seed {result.seed}  {result.denoise_seconds:.2f} s")


@app.command()
@with_layout_options
def layout(
    section: Annotated[
        Path, typer.Argument(help="The section: HTML, or (.json) a list of elements.", exists=True, dir_okay=False)
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="Where a picture of the boxes goes, or what --format asks for.",
            show_default="none is written",
            callback=may_be_written,
        ),
    ] = None,
    url: Url = None,
    protocol: Annotated[Protocol, typer.Option(help="How to reach it.")] = Protocol.GRPC,
    name: Annotated[str, typer.Option(help="Prefix of the model's name.", show_default="none")] = "",
    width: Annotated[int, typer.Option(help="Of the canvas, in CSS pixels, 240 to 2560.")] = 1280,
    density: Annotated[
        str | None, typer.Option(help="Of the canvas: compact, normal or spacious.", show_default="normal")
    ] = None,
    columns: Annotated[int | None, typer.Option(help="Of the canvas' grid, 1 to 24.", show_default="4, 8 or 12 by width")] = None,
    style: Annotated[
        str | None, typer.Option(help="Of the canvas: stacked, centered, grid, cards, split or sidebar.", show_default="stacked")
    ] = None,
    timeout: Timeout = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the answer as JSON.")] = False,
    **fields: Any,
) -> None:
    """Lay out a section of a web page on a running server, and look at the boxes."""
    given = {"width": width, "density": density, "columns": columns, "style": style}
    form = fields["format"]
    try:
        with Client(url, protocol=protocol, name=name, timeout=timeout) as client:
            result = client.generate_layout(
                _read_section(section), {key: value for key, value in given.items() if value is not None}, **fields
            )
        if output is not None:
            output.write_text(_written(result.answer, form), encoding="utf-8")
    except (NereidError, OSError, ValueError) as error:
        fail(error)
    except KeyboardInterrupt:
        say_error("stopped; the server was told so")
        raise typer.Exit(INTERRUPTED) from None
    for said in result.degraded:
        say_warning(said)
    if as_json:
        print(json.dumps(result.answer))
        return
    for check in result.checks:
        elements = ", ".join(check["elements"])
        say(f"{check['severity']}: {check['check']} of {elements}: {check['value']:g}, limit {check['limit']:g}")
    moved = len(result.answer["repaired"])
    where = f"{output}  " if output is not None else ""
    say(f"{where}score {result.score:.3f}  seed {result.seed}  {moved} boxes moved by repair")


def _read_section(file: Path) -> str | list[dict[str, Any]]:
    """HTML as it is, and of a .json file its list; raises ValueError where it has none, or is no text."""
    try:
        text = file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not UTF-8 text: {error.reason} at byte {error.start}") from None
    if file.suffix.lower() != ".json":
        return text
    try:
        found = json.loads(text)
    except RecursionError:
        raise ValueError(f"{file} is nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"{file} is not JSON: {error}") from None
    if not isinstance(found, list) or not all(isinstance(element, dict) for element in found):
        raise ValueError(f"{file} must hold a JSON list of elements")
    return found


def _written(answer: Mapping[str, Any], form: str) -> str:
    """What goes into the file: one form of the boxes, or the whole answer."""
    found = answer.get(form, answer)
    return found if isinstance(found, str) else json.dumps(found, indent=1) + "\n"


def _open_picture(file: Path, *, is_mask: bool) -> Any:
    """Upright, and in the colours of sRGB, as a viewer shows it; of a mask the values are what they are."""
    from PIL import Image

    from nereid_client.picture_files import in_srgb, upright

    with Image.open(file) as opened:
        picture = upright(opened)
    return (picture if is_mask else in_srgb(picture)).convert("RGB")


def _draw(client: Client, prompt: str, options: dict[str, Any]) -> ImageResult:
    with counting() as bar:
        task = bar.add_task("drawing", total=None)
        with closing(client.stream_image(prompt, **options)) as answers:  # whatever ends the loop, the server hears of it
            for answer in answers:
                if isinstance(answer, ImageProgress):
                    bar.update(task, completed=answer.step, total=answer.num_inference_steps)
                else:
                    return answer
    raise NereidError("the stream ended without an image")


def _forward(verb: str) -> None:
    """Register a verb that hands all its arguments to another distribution, imported only then."""
    module, attribute, summary, distributions = OTHER_ROOMS[verb]

    def forward(context: typer.Context) -> None:
        try:
            found: Any = getattr(importlib.import_module(module), attribute)
        except ModuleNotFoundError as error:
            text = f'`nereid {verb}` needs {error.name}; install {distributions} (README, "Install")'
            fail(text)
        if not isinstance(found, typer.Typer):
            single = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
            single.command()(found)
            found = single
        found(context.args, prog_name=f"nereid {verb}")

    settings = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}
    app.command(verb, help=summary, context_settings=settings)(forward)


app.command()(chat)
app.command()(page)
app.add_typer(batch_app, name="batch")
app.command()(top)
for _verb in OTHER_ROOMS:
    _forward(_verb)


def run() -> None:
    """Entry point."""
    app()


if __name__ == "__main__":
    run()
