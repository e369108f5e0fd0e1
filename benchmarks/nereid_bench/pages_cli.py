"""`nereid bench page`: the command line of what measures pages."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nereid.serving.errors import ServingError
from nereid_bench.pages import PagesPlan, pages, table, verdict
from nereid_bench.tables import report_rows
from nereid_client import NereidError
from nereid_client.terminal import fail, say

_DEFAULTS = PagesPlan(repository=Path("build/repository"))


def page_command(
    repository: Annotated[
        Path, typer.Option(help="An exported repository with `page`, as `make demo` leaves one; a server is started for it.")
    ] = _DEFAULTS.repository,
    name: Annotated[str, typer.Option(help="Prefix of the model in REPOSITORY.")] = _DEFAULTS.name,
    brief: Annotated[str, typer.Option(help="What the pages are for.")] = _DEFAULTS.brief,
    count: Annotated[int, typer.Option(min=1, help="Pages, each with a seed of its own.")] = _DEFAULTS.count,
    sections: Annotated[int, typer.Option(min=1, help="Most sections of a page.")] = _DEFAULTS.sections,
    pictures: Annotated[int, typer.Option(min=0, help="Most pictures of a page.")] = _DEFAULTS.pictures,
    width: Annotated[int, typer.Option(min=240, max=2560, help="Of the page, in CSS pixels.")] = _DEFAULTS.width,
    out: Annotated[Path, typer.Option(help="Where the report goes as JSON.")] = Path("build/bench/page.json"),
    as_json: Annotated[bool, typer.Option("--json", help="Print only the JSON.")] = False,
) -> None:
    """Seconds until the first section of a page can be seen, and until all is there, beside the aims; and of each stage.

    One page after the other, streamed by the SDK. Pages count for the aim of the whole page where they have as many sections and
    pictures as were asked for, and nothing that rules made.
    """
    plan = PagesPlan(
        repository=repository, name=name, brief=brief, count=count, sections=sections, pictures=pictures, width=width
    )
    try:
        taken = pages(plan, say)
    except (ServingError, NereidError) as error:
        fail(error)
    say(verdict(plan, taken))
    report_rows("pages from a brief: seconds", table(plan, taken), out, as_json)
