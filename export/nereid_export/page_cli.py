"""`nereid export page`: its command line."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from nereid_client.terminal import say
from nereid_export.bar import with_bar
from nereid_export.page import PageExportOptions, export_page


def page(
    planner: Annotated[
        str,
        typer.Option(
            help="The language model of this repository that plans pages, as `nereid zoo train planner` makes one; where absent, "
            "plans are made by rules, and answers say so."
        ),
    ] = "",
    layout: Annotated[
        bool, typer.Option("--layout/--no-layout", help="Without a layout model, boxes are placed by rules, and answers say so.")
    ] = True,
    picture_prompts: Annotated[
        Path | None,
        typer.Option(
            help="JSON file: the language that pictures are asked for in, like zoo/shapes/page-prompts.json. Where absent, "
            "prompts are what a picture shows and the page's topic."
        ),
    ] = None,
    name: Annotated[str, typer.Option(help="Prefix of the model's name, and of the models that it calls.")] = "",
    out: Annotated[Path, typer.Option(help="The repository, which has llm, layout and text_to_image; they are kept.")] = Path(
        "build/repository"
    ),
    as_json: Annotated[bool, typer.Option("--json", help="Print the manifest as JSON.")] = False,
) -> None:
    """Add the model that makes pages to a repository whose models write sections, lay them out and draw pictures."""
    asked = PageExportOptions(out=out, planner=planner, layout=layout, picture_prompts=picture_prompts, name=name)

    def show(manifest: dict[str, Any]) -> None:
        say(f"{manifest['models'][0]} -> {out}; plans by {planner or 'rules'}")

    with_bar(lambda bar: export_page(asked, bar), show, as_json)
