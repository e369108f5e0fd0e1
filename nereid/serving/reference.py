"""Writes docs/reference.md from the tables of fields and errors and the models' config.pbtxt; knows no server.

`python -m nereid.serving.reference` (`make reference`). Nothing is said here that a table says; a test compares the file with
what this writes.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import fields
from pathlib import Path

from nereid.serving.config_lines import inputs, parameters
from nereid.serving.gateway.errors import from_nereid
from nereid.serving.gateway.limits import Limits as ConnectionLimits
from nereid.serving.gateway.unused import UNUSED_FIELDS
from nereid_client.errors import typed
from nereid_protocol.errors import ErrorKind, Status, WireError
from nereid_protocol.field import INT32_MAX, Field, Model
from nereid_protocol.image_fields import IMAGE_FIELDS
from nereid_protocol.layout_fields import LAYOUT_FIELDS
from nereid_protocol.page_fields import PAGE_FIELDS
from nereid_protocol.sampling import SAMPLING_FIELDS, UNREAD_SAMPLING
from nereid_protocol.sampling_field import SamplingField, UnreadField

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "reference.md"
REPOSITORY = ROOT / "model_repository"

_TRITON_HTTP = {Status.INVALID_ARG: 400, Status.UNAVAILABLE: 503, Status.CANCELLED: 400, Status.INTERNAL: 500}
"""What Triton's HTTP server makes of its error codes."""
_WHEN = {
    "invalid": "A field has a value that is not allowed, or the request needs more than the model may ever give. Send another.",
    "too_long": "Prompt and answer together do not fit into the model's context. Send a shorter one.",
    "queue_full": "The queue is full (`max_queue`). Try again later; the SDK does.",
    "stopping": "The model is being unloaded, or the server ends. Try again later; the SDK does.",
    "deadline": "`timeout_seconds`, or the model's `default_timeout_seconds`, has passed, time in the queue included.",
    "cancelled": "The caller has gone, or has cancelled the run by its `run_id`.",
    "lost": "The process that computed it has died. Send the same again; SDK and gateway do.",
    "poisonous": "For the second time, a process died while this was the only request running in it. It is not tried again.",
    "engine": "A model that this one calls has failed, or there is a mistake in this project; the server's log tells more.",
}
_HEAD = """# Reference

Made from the tables in the code by `make reference`; do not edit it by hand. Sources:
[fields of images](../client/nereid_protocol/image_fields.py), [fields of layouts](../client/nereid_protocol/layout_fields.py),
[fields of pages](../client/nereid_protocol/page_fields.py),
[sampling parameters](../client/nereid_protocol/sampling.py),
[errors](../client/nereid_protocol/errors.py), [`denoise`](../model_repository/denoise/config.pbtxt),
[`image_output`](../model_repository/image_output/config.pbtxt), [`llm`](../model_repository/llm/config.pbtxt),
[`layout`](../model_repository/layout/config.pbtxt), [`page`](../model_repository/page/config.pbtxt),
[connection limits](../nereid/serving/gateway/limits.py),
[fields that change nothing](../nereid/serving/gateway/unused.py).
"""
_IMAGES = """Inputs of `text_to_image` (one value for each prompt of the batch), `text_to_image_stream` and `text_to_image_json`;
the same names are arguments of the SDK, where pictures are PIL's or arrays, and a mask may be one of truth values. All but
`prompt` are optional. *Models* says who takes it: e `text_to_image`, s `text_to_image_stream`, j `text_to_image_json`. *One*
means one value for all prompts of a request. *Gateway* marks what `/v1/images/generations`, `edits` and `variations` take under
this name, beside OpenAI's `n`, `size`, `quality`, `response_format`, `output_format`, `output_compression`, `stream`,
`partial_images`; edits and variations take `strength` and `latent_upscale`, too, and edits `inpainting_fill` and a `mask`
([images through the gateway](images-api.md)).
"""
_SAMPLING = """The JSON object in `sampling_parameters`, parameters of the request (Triton's `generate` sends them so), and
arguments of the SDK. Names and defaults are those of vLLM's `SamplingParams`. *Gateway*: `/v1/chat/completions` and
`/v1/completions` take it under this name; `max_tokens` and `logprobs` are there as OpenAI defines them. A name that is not
here is refused; null is as absent. Numbers, truth values, lists and objects may come as text.
"""
_UNUSED = """What the APIs of OpenAI, vLLM and AUTOMATIC1111 have and nothing here reads. These values are taken, for the answer
is the same with them; any other is refused by name, for it would be another. null is as absent, for every optional field. An
unknown field is refused, or with `nereid serve --openai-lenient` ignored and named in the answer's header
`x-nereid-ignored-fields`.
"""
_LAYOUTS = """Inputs of `layout`, one value each; `canvas` and one of `html` and `elements` must be given. The same names
are arguments of the SDK. *Gateway*: `/v1/layouts` takes it under this name, beside `model` and `stream`; `canvas` and `elements`
are JSON there, not texts. [docs/layout.md](layout.md) has the forms of `canvas`, `elements` and the answer.
"""
_PAGES = """Inputs of `page`, one value each; `brief` must be given. The same names are arguments of the SDK. *Gateway*:
`/v1/pages` takes it under this name, beside `model` and `stream`. [docs/page.md](page.md) has the form of the answer.
"""
_ERRORS = f"""Every error is one sentence that names the field, the value and what is allowed. It ends with status, kind and,
where a field is to blame, its name: `{WireError("seed: -1 is not allowed; it must be 0 to 9", ErrorKind.INVALID, "seed")}`.
The SDK raises the class named here, with the sentence and `field`; the gateway answers in OpenAI's form with `param`.
"""
_GATEWAYS_OWN = """Answers of the gateway itself: 400 for a body it cannot read, 401 without a key, 404 for a model that is not
served, 413 for a body that is too large, 408 for one that comes too slowly, 429 (`rate_limit_exceeded`, with `Retry-After`) where
a key has had what it may have, 503 where it drains or has no connection left.
"""
_LIMITS = """Parameters of the models. Change them in the exported repository, then accept the change with `nereid export sign`.
An unknown parameter is refused when the model loads. A request beyond a limit is refused at once, by name.
"""


def page() -> str:
    """The whole page."""
    return "\n".join((_HEAD, *_images(), *_texts(), *_layouts(), *_pages(), *_errors(), *_limits()))


def _images() -> Iterator[str]:
    callers = [field for field in IMAGE_FIELDS if field.client_side]
    internal = [field for field in IMAGE_FIELDS if not field.client_side]
    yield "## Image requests"
    yield _IMAGES
    yield _table(
        ("field", "type", "allowed", "default", "models", "one", "`nereid generate`", "gateway", "meaning"),
        (
            (
                f"`{field.name}`",
                _type(field),
                _allowed(field),
                field.default or "required",
                _letters(field),
                "one" if field.per_request else "",
                f"`{field.option}`" if field.option else "",
                "yes" if field.gateway else "",
                field.help,
            )
            for field in callers
        ),
    )
    yield "### Between the models"
    yield "Inputs of `denoise` and `tokenizer` that other models, the SDK and the gateway send.\n"
    yield _table(
        ("field", "type", "allowed", "default", "meaning"),
        ((f"`{field.name}`", _type(field), _allowed(field), field.default, field.help) for field in internal),
    )


def _texts() -> Iterator[str]:
    yield "## Text requests"
    yield "Inputs of `llm`; exactly one of `text_input` and `input_ids`, all others are optional.\n"
    tensors = (entry for entry in inputs(REPOSITORY / "llm"))
    yield _table(("input", "type", "meaning"), ((f"`{entry.name}`", entry.value, entry.comment) for entry in tensors))
    yield "### Sampling parameters"
    yield _SAMPLING
    yield _unread("Members of `SamplingParams` that nothing here reads may have the value that changes nothing", UNREAD_SAMPLING)
    yield _sampling(SAMPLING_FIELDS)
    structured = next(field for field in SAMPLING_FIELDS if field.members)
    yield f"### Members of `{structured.name}`"
    older = f"beside `{structured.name}`, as vLLM took it before; it is taken here, too"
    yield f"*Older name*: {older}, and so is the object as `{structured.alias}`.\n"
    yield _unread("Members of vLLM's that nothing here reads", structured.unread)
    yield _table(
        ("member", "allowed", "default", "older name", "meaning"),
        (
            (f"`{field.name}`", field.allowed, _default(field), f"`{field.alias}`" if field.alias else "", field.help)
            for field in structured.members
        ),
    )
    yield "### Fields of the gateway that change nothing"
    yield _UNUSED
    yield _table(
        ("field", "of", "may be", "meaning"),
        ((f"`{row.name}`", ", ".join(row.within), row.allowed, row.help) for row in UNUSED_FIELDS),
    )


def _layouts() -> Iterator[str]:
    yield "## Layout requests"
    yield _LAYOUTS
    yield _lone(LAYOUT_FIELDS, "`nereid layout`")


def _pages() -> Iterator[str]:
    yield "## Page requests"
    yield _PAGES
    yield _lone(PAGE_FIELDS, "`nereid page`")


def _lone(fields: Sequence[Field], verb: str) -> str:
    """Fields of a model that takes one value of each."""
    return _table(
        ("field", "type", "allowed", "default", verb, "gateway", "meaning"),
        (
            (
                f"`{field.name}`",
                _type(field),
                _allowed(field),
                field.default or "required",
                f"`{field.option}`" if field.option else "",
                "yes" if field.gateway else "",
                field.help,
            )
            for field in fields
        ),
    )


def _sampling(table: Sequence[SamplingField]) -> str:
    return _table(
        ("parameter", "allowed", "default", "gateway", "meaning"),
        ((f"`{field.name}`", field.allowed, _default(field), "yes" if field.gateway else "", field.help) for field in table),
    )


def _unread(lead: str, fields: Sequence[UnreadField]) -> str:
    taken = ", ".join(f"`{field.name}` ({field.allowed.removesuffix(' or absent')})" for field in fields)
    return textwrap.fill(f"{lead}: {taken}.", 130, break_on_hyphens=False) + "\n"


def _errors() -> Iterator[str]:
    yield "## Errors"
    yield _ERRORS
    yield _table(
        ("kind", "Triton status", "Triton over HTTP", "gateway", "SDK", "when"),
        (
            (
                f"`{kind}`",
                kind.status,
                str(_TRITON_HTTP[kind.status]),
                str(from_nereid(typed(str(WireError("", kind)))).status),
                f"`{type(typed(str(WireError('', kind)))).__name__}`",
                _WHEN[kind],
            )
            for kind in ErrorKind
        ),
    )
    yield _GATEWAYS_OWN


def _limits() -> Iterator[str]:
    yield "## Limits"
    yield _LIMITS
    for model in ("denoise", "image_output", "llm", "layout", "page"):
        yield f"### `{model}`"
        rows = ((f"`{entry.name}`", entry.value, entry.comment) for entry in parameters(REPOSITORY / model))
        yield _table(("parameter", "value", "meaning"), rows)
    yield "### Connections of the gateway"
    yield "Each one ends or refuses a connection, and nothing else. They are not options.\n"
    limits = ConnectionLimits()
    yield _table(("limit", "value"), ((f"`{field.name}`", _number(getattr(limits, field.name))) for field in fields(limits)))


def _type(field: Field) -> str:
    return str(field.dtype) if field.scalar else f"{field.dtype} {list(field.shape)}"


def _allowed(field: Field) -> str:
    if field.low is None:
        return ""
    low, high = _number(field.low), field.high
    if field.limit:
        return f"{low} to `{field.limit}`"
    return f"at least {low}" if high in (None, INT32_MAX) else f"{low} to {_number(high or 0)}"


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:,g}"


def _letters(field: Field) -> str:
    letters = ((Model.ENSEMBLE, "e"), (Model.STREAM, "s"), (Model.JSON, "j"))
    return " ".join(letter for model, letter in letters if model in field.models)


def _default(field: SamplingField) -> str:
    if field.default is None or field.default == ():
        return "none"
    return str(field.default).lower() if isinstance(field.default, bool) else str(field.default)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page())
