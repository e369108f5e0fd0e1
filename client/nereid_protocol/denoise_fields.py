"""Fields that the models before `denoise` send to it, and those who watch a run; no caller of a pipeline sends them."""

from __future__ import annotations

from nereid_protocol.field import INT32_MAX, DType, Field, Model
from nereid_protocol.run_fields import CANCEL, WATCH

DENOISE_FIELDS: tuple[Field, ...] = (
    Field(
        name="ticket",
        dtype=DType.STRING,
        help="A place in the queue taken in advance; alone (without embeddings) it asks for that place and checks the options.",
        default="a place of its own",
        per_request=True,
        models=frozenset({Model.TOKENIZER, Model.DENOISE}),
    ),
    WATCH,
    CANCEL,
    Field(
        name="decoding",
        dtype=DType.STRING,
        help="Says that the picture of the run with this id is being decoded; the answer is failed where it was cancelled.",
        default="none",
        per_request=True,
        models=frozenset({Model.DENOISE}),
    ),
    Field(
        name="after_step",
        dtype=DType.INT32,
        help="With watch: answer once the run is beyond this step, with a preview. With ticket: the run will be watched.",
        default="at once",
        low=-1,
        high=INT32_MAX,
        per_request=True,
        models=frozenset({Model.DENOISE}),
    ),
    Field(
        name="tokenizer_warnings",
        dtype=DType.STRING,
        help="The tokenizer's warnings about each prompt; they become warnings of the answer.",
        default="nothing",
        models=frozenset({Model.DENOISE}),
    ),
    Field(
        name="step_begin",
        dtype=DType.INT32,
        help="First step of a segment of a run; needs latents and solver_memory where it is not the run's first.",
        default="the run's first",
        low=0,
        high=INT32_MAX,
        models=frozenset({Model.DENOISE}),
    ),
    Field(
        name="step_end",
        dtype=DType.INT32,
        help="Step at which a segment of a run ends.",
        default="the run's end",
        low=1,
        high=INT32_MAX,
        models=frozenset({Model.DENOISE}),
    ),
    Field(
        name="solver_memory",
        dtype=DType.FP32,
        shape=(4, -1, -1, -1),
        help="What the solver remembers at step_begin, as an earlier segment gave it.",
        default="nothing",
        models=frozenset({Model.DENOISE}),
    ),
)
