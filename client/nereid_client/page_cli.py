"""`nereid page`: a page from a brief, and its picture."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.status import Status

from nereid_client.browser import BrowserError, find_browser, screenshot
from nereid_client.cli_options import Timeout, Url, may_be_written
from nereid_client.client import Client
from nereid_client.errors import NereidError
from nereid_client.image_options import with_page_options
from nereid_client.options import Protocol
from nereid_client.pages import PageProgress, PageResult
from nereid_client.terminal import INTERRUPTED, console, fail, say, say_error, say_warning


@with_page_options
def page(
    brief: Annotated[str, typer.Argument(help="What the page is for, like `landing page for a bakery`.")],
    output: Annotated[
        Path,
        typer.Option("--output", "-o", help="Where the page goes; its picture goes beside it, as .png.", callback=may_be_written),
    ] = Path("page.html"),
    url: Url = None,
    protocol: Annotated[Protocol, typer.Option(help="How to reach it; over http there is no progress.")] = Protocol.GRPC,
    name: Annotated[str, typer.Option(help="Prefix of the model's name.", show_default="none")] = "",
    timeout: Timeout = None,
    picture: Annotated[
        bool, typer.Option("--png/--no-png", help="Draw a picture by headless Chromium, where it is installed.")
    ] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print the answer as JSON.")] = False,
    **fields: Any,
) -> None:
    """Make a web page from a brief on a running server: one HTML file, written as it comes."""
    if picture and output == output.with_suffix(".png"):
        raise typer.BadParameter(
            f"{output} is not allowed; it must be another file than the picture's (--no-png draws none)", param_hint="--output"
        )
    try:
        with Client(url, protocol=protocol, name=name, timeout=timeout) as client:
            if protocol is Protocol.HTTP:
                made = client.generate_page(brief, **fields)
            else:
                made = _streamed(client, brief, fields, output)
        output.write_text(made.html, encoding="utf-8")
        drawn = _drawn(made, output) if picture else None
    except (NereidError, OSError, BrowserError) as error:
        fail(error)
    except KeyboardInterrupt:
        say_error("stopped; the server was told so")
        raise typer.Exit(INTERRUPTED) from None
    for said in made.degraded:
        say_warning(said)
    if as_json:
        print(json.dumps(made.answer))
        return
    for check in made.checks:
        if check["severity"] == "error":
            say(f"error: {check['check']} of {', '.join(check['elements'])}: {check['value']:g}, limit {check['limit']:g}")
    where = f"{output}  {drawn}" if drawn is not None else f"{output}"
    sections = len(made.answer["sections"])
    first, whole = made.seconds["first_section"], made.seconds["page"]
    say(f"{where}  {sections} sections, the first after {first:.2f} s, all after {whole:.2f} s")


def _streamed(client: Client, brief: str, fields: dict[str, Any], output: Path) -> PageResult:
    """The page, each state of it in the file on its way."""
    with console.status("planning") as status, closing(client.stream_page(brief, **fields)) as answers:
        for answer in answers:
            if isinstance(answer, PageResult):
                return answer
            _show(status, answer, output)
    raise NereidError("the stream ended without a page")


def _show(status: Status, answer: PageProgress, output: Path) -> None:
    status.update(", ".join(f"{stage} {count['done']} of {count['of']}" for stage, count in answer.progress.items()))
    if answer.html:
        output.write_text(answer.html, encoding="utf-8")


def _drawn(made: PageResult, output: Path) -> Path | None:
    browser = find_browser()
    if browser is None:
        say("no picture is drawn: there is no Chromium on the path (--no-png does without)")
        return None
    target = output.with_suffix(".png")
    screenshot(output, target, made.width, made.height, browser)
    return target
