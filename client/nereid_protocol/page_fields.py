"""The table of page request fields: read by `page`, its config.pbtxt, SDK, gateway, `nereid page` and docs/reference.md."""

from __future__ import annotations

from dataclasses import replace

from nereid_protocol.field import MAX_SEED, DType, Field, Model
from nereid_protocol.run_fields import CANCEL, PRIORITY, RUN_ID, TIMEOUT_SECONDS, WATCH

_PAGE = frozenset({Model.PAGE})


def _of_pages(field: Field, *, gateway: bool = False) -> Field:
    """A field that images have, too: a request for a page has one brief."""
    return replace(field, models=_PAGE, per_request=False, gateway=gateway)


PAGE_FIELDS: tuple[Field, ...] = (
    Field(
        name="brief",
        dtype=DType.STRING,
        help="What the page is for, in a sentence or a few: 1 to 2000 characters.",
        models=_PAGE,
        gateway=True,
    ),
    Field(
        name="width",
        dtype=DType.INT32,
        help="Of the page, in CSS pixels.",
        default="1280",
        low=240,
        high=2560,
        models=_PAGE,
        option="--width",
        gateway=True,
    ),
    Field(
        name="density",
        dtype=DType.STRING,
        help="compact, normal or spacious.",
        default="normal",
        models=_PAGE,
        option="--density",
        gateway=True,
    ),
    Field(
        name="sections",
        dtype=DType.INT32,
        help="Most sections; the plan has as many of them as the brief asks for.",
        default="the server's default_sections",
        low=1,
        high=24,
        limit="max_sections",
        models=_PAGE,
        option="--sections",
        gateway=True,
    ),
    Field(
        name="pictures",
        dtype=DType.INT32,
        help="Most pictures that are drawn; further places for one stay empty. 0: none is drawn.",
        default="the server's max_pictures",
        low=0,
        high=64,
        limit="max_pictures",
        models=_PAGE,
        option="--pictures",
        gateway=True,
    ),
    Field(
        name="seed",
        dtype=DType.INT64,
        help="The same seed gives the same page again, where no stage was worse than asked for.",
        default="random; the answer tells it",
        low=0,
        high=MAX_SEED,
        models=_PAGE,
        option="--seed",
        gateway=True,
    ),
    Field(
        name="stream_interval",
        dtype=DType.INT32,
        help="An answer with the page so far after every so many pieces of work that are done, before the last one.",
        default="one answer",
        low=1,
        high=10_000,
        models=_PAGE,
    ),
    Field(
        name="deadline_seconds",
        dtype=DType.FP32,
        help="A goal, seconds from arrival: what is not done by then is made by rules or left empty, and the answer says so.",
        default="none",
        low=1e-3,
        high=86_400.0,
        models=_PAGE,
        option="--deadline",
        gateway=True,
    ),
    _of_pages(TIMEOUT_SECONDS),
    _of_pages(PRIORITY, gateway=True),
    _of_pages(RUN_ID),
    _of_pages(WATCH),
    _of_pages(CANCEL),
)

PAGE_BY_NAME = {field.name: field for field in PAGE_FIELDS}
