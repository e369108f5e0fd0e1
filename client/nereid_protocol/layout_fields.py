"""The table of layout request fields: read by `layout`, its config.pbtxt, SDK, gateway, `nereid layout` and docs/reference.md."""

from __future__ import annotations

from dataclasses import replace

from nereid_protocol.field import INT32_MAX, MAX_SEED, DType, Field, Model
from nereid_protocol.run_fields import CANCEL, PRIORITY, RUN_ID, TIMEOUT_SECONDS, WATCH

_LAYOUT = frozenset({Model.LAYOUT})

FORMATS = ("json", "css", "figma", "svg")
EFFORTS = ("full", "adaptive")
WIDTHS = ("full", "dynamic")
TOKENS = ("all", "dynamic")


def _of_layouts(field: Field, *, gateway: bool = False) -> Field:
    """A field that images have, too: a request for a layout has one section."""
    return replace(field, models=_LAYOUT, per_request=False, gateway=gateway)


LAYOUT_FIELDS: tuple[Field, ...] = (
    Field(
        name="canvas",
        dtype=DType.STRING,
        help="Where the section stands: a JSON object with width (CSS pixels), and where wanted density, columns, style; or the "
        "width alone.",
        models=_LAYOUT,
        gateway=True,
    ),
    Field(
        name="html",
        dtype=DType.STRING,
        help="The section as HTML: one root, every tag closed. Either this or elements.",
        default="elements",
        models=_LAYOUT,
        gateway=True,
    ),
    Field(
        name="elements",
        dtype=DType.STRING,
        help="The section as a JSON list of elements with id, class, parent, text and the like; fixed says which fields of a box "
        "stay, draft is a box to refine.",
        default="html",
        models=_LAYOUT,
        gateway=True,
    ),
    Field(
        name="format",
        dtype=DType.STRING,
        help="json; css, figma or svg adds the boxes in that form to the answer.",
        default="json",
        models=_LAYOUT,
        option="--format",
        gateway=True,
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
        gateway=True,
    ),
    Field(
        name="num_inference_steps",
        dtype=DType.INT32,
        help="Steps of the flow from noise to boxes.",
        default="the server's default_steps",
        low=1,
        high=INT32_MAX,
        limit="max_steps",
        models=_LAYOUT,
        option="--steps",
        gateway=True,
    ),
    Field(
        name="effort",
        dtype=DType.STRING,
        help="full; or adaptive: the steps, and the width, that a section of this complexity (elements, nesting, text) needs.",
        default="full",
        models=_LAYOUT,
        option="--effort",
        gateway=True,
    ),
    Field(
        name="scheduler",
        dtype=DType.STRING,
        help="A solver of a rectified flow: euler, dpmpp_2m, dpmpp_3m, dpmpp_2s, dpmpp_2m_sde, lcm or unipc.",
        default="the checkpoint's",
        models=_LAYOUT,
        option="--scheduler",
        gateway=True,
    ),
    Field(
        name="cache",
        dtype=DType.STRING,
        or_number=True,
        help="Reuse of attention and MLP between steps: off, light, balanced, aggressive, or how much what they give may change "
        "(0 to 1) before it is computed again.",
        default="off",
        models=_LAYOUT,
        option="--cache",
        gateway=True,
    ),
    Field(
        name="transformer_width",
        dtype=DType.STRING,
        help="full; or dynamic, which leaves out what of the transformer a step's noise level can do without.",
        default="full; with effort adaptive as calibrated",
        models=_LAYOUT,
        option="--transformer-width",
        gateway=True,
    ),
    Field(
        name="transformer_tokens",
        dtype=DType.STRING,
        help="all; or dynamic, which leaves out the MLPs of tokens that can do without, as each block decides.",
        default="all",
        models=_LAYOUT,
        option="--transformer-tokens",
        gateway=True,
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
        gateway=True,
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
        gateway=True,
    ),
    _of_layouts(TIMEOUT_SECONDS),
    _of_layouts(PRIORITY, gateway=True),
    _of_layouts(RUN_ID),
    _of_layouts(WATCH),
    _of_layouts(CANCEL),
)

LAYOUT_BY_NAME = {field.name: field for field in LAYOUT_FIELDS}
