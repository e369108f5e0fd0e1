"""The table of layout request fields: read by `layout`, its config.pbtxt, the SDK, `nereid layout` and docs/reference.md."""

from __future__ import annotations

from nereid_protocol.field import MAX_SEED, DType, Field, Model

_LAYOUT = frozenset({Model.LAYOUT})
_INT32_MAX = 2**31 - 1

FORMATS = ("json", "css", "figma", "svg")

LAYOUT_FIELDS: tuple[Field, ...] = (
    Field(
        name="canvas",
        dtype=DType.STRING,
        help="Where the section stands: a JSON object with width (CSS pixels), and where wanted density, columns, style; or the "
        "width alone.",
        models=_LAYOUT,
    ),
    Field(
        name="html",
        dtype=DType.STRING,
        help="The section as HTML: one root, every tag closed. Either this or elements.",
        default="elements",
        models=_LAYOUT,
    ),
    Field(
        name="elements",
        dtype=DType.STRING,
        help="The section as a JSON list of elements with id, class, parent, text and the like; fixed says which fields of a box "
        "stay, draft is a box to refine.",
        default="html",
        models=_LAYOUT,
    ),
    Field(
        name="format",
        dtype=DType.STRING,
        help="json; css, figma or svg adds the boxes in that form to the answer.",
        default="json",
        models=_LAYOUT,
        option="--format",
    ),
    Field(
        name="n",
        dtype=DType.INT32,
        help="Candidates that are drawn, each with a seed of its own; the one of the best score is answered.",
        default="1",
        low=1,
        high=64,
        limit="max_candidates",
        models=_LAYOUT,
        option="-n",
    ),
    Field(
        name="num_inference_steps",
        dtype=DType.INT32,
        help="Steps of the flow from noise to boxes.",
        default="the server's default_steps",
        low=1,
        high=_INT32_MAX,
        limit="max_steps",
        models=_LAYOUT,
        option="--steps",
    ),
    Field(
        name="scheduler",
        dtype=DType.STRING,
        help="A solver of a rectified flow: euler, dpmpp_2m, dpmpp_3m, dpmpp_2s, dpmpp_2m_sde or unipc.",
        default="the checkpoint's",
        models=_LAYOUT,
        option="--scheduler",
    ),
    Field(
        name="seed",
        dtype=DType.INT64,
        help="The same seed gives the same layout again.",
        default="random; the answer tells it",
        low=0,
        high=MAX_SEED,
        models=_LAYOUT,
        option="--seed",
    ),
    Field(
        name="stream_interval",
        dtype=DType.INT32,
        help="An answer after every so many steps, with what the boxes are predicted to be, before the last one.",
        default="one answer",
        low=1,
        high=10_000,
        models=_LAYOUT,
    ),
    Field(
        name="deadline_seconds",
        dtype=DType.FP32,
        help="A goal, seconds from arrival: where it would be missed fewer steps are taken, and the answer says so.",
        default="none",
        low=1e-3,
        high=86_400.0,
        models=_LAYOUT,
        option="--deadline",
    ),
    Field(
        name="timeout_seconds",
        dtype=DType.FP32,
        help="Seconds until the request is given up, waiting included.",
        default="the server's default_timeout_seconds",
        low=1e-3,
        high=86_400.0,
        models=_LAYOUT,
    ),
    Field(
        name="priority",
        dtype=DType.INT32,
        help="0 goes first, 9 last; of equal ones who came first. Waiting raises it, one for every ten seconds.",
        default="5",
        low=0,
        high=9,
        models=_LAYOUT,
        option="--priority",
    ),
    Field(
        name="run_id",
        dtype=DType.STRING,
        help="An id for the run that cannot be guessed, to watch or cancel it by: up to 64 of A-Z, a-z, 0-9, _ and -.",
        default="none",
        models=_LAYOUT,
    ),
    Field(
        name="watch",
        dtype=DType.STRING,
        help="Asks for the state of the run with this id instead of starting one.",
        default="none",
        models=_LAYOUT,
    ),
    Field(
        name="cancel",
        dtype=DType.STRING,
        help="Cancels the run with this id instead of starting one.",
        default="none",
        models=_LAYOUT,
    ),
)

LAYOUT_BY_NAME = {field.name: field for field in LAYOUT_FIELDS}
