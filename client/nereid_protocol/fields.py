"""The table of image request fields: each option is written here once, and read by everything that knows options.

Layouts have a table of their own (nereid_protocol.layout_fields). From both come the server's validation (nereid.flow.fields),
the inputs of every config.pbtxt that carries a field (written at export), the SDK's and the gateway's request models, the options
of `nereid generate` and `nereid layout`, and docs/reference.md.
"""

from __future__ import annotations

from collections.abc import Iterable

from nereid_protocol.field import MAX_SEED, DType, Field, Model
from nereid_protocol.layout_fields import LAYOUT_FIELDS
from nereid_protocol.page_fields import PAGE_FIELDS
from nereid_protocol.run_fields import CANCEL, IMAGE_MODELS, PRIORITY, RUN_ID, TIMEOUT_SECONDS, WATCH

_NO_PICTURES = frozenset({Model.ENSEMBLE, Model.STREAM, Model.DENOISE})
_INT32_MAX = 2**31 - 1

IMAGE_FIELDS: tuple[Field, ...] = (
    Field(
        name="prompt",
        dtype=DType.STRING,
        help="What to draw.",
        models=IMAGE_MODELS - {Model.DENOISE},
    ),
    Field(
        name="negative_prompt",
        dtype=DType.STRING,
        help="What not to draw; used where guidance_scale is above 1.",
        default="an empty text",
        models=IMAGE_MODELS - {Model.DENOISE},
        option="--negative-prompt",
        gateway=True,
    ),
    Field(
        name="num_inference_steps",
        dtype=DType.INT32,
        help="Denoising steps.",
        default="the checkpoint's",
        low=1,
        high=_INT32_MAX,
        limit="max_steps",
        models=IMAGE_MODELS,
        option="--steps",
        gateway=True,
    ),
    Field(
        name="guidance_scale",
        dtype=DType.FP32,
        help="Classifier-free guidance; 1 or less switches it off.",
        default="the checkpoint's",
        low=0.0,
        high=1e6,
        limit="max_guidance",
        models=IMAGE_MODELS,
        option="--guidance",
        gateway=True,
    ),
    Field(
        name="guidance_interval",
        dtype=DType.FP32,
        shape=(2,),
        help="Two fractions of the run, first and last; guidance is off before the first and from the last on.",
        default="0 and 1",
        low=0.0,
        high=1.0,
        models=IMAGE_MODELS,
        option="--guidance-interval",
        gateway=True,
    ),
    Field(
        name="seed",
        dtype=DType.INT64,
        help="The same seed gives the same picture again.",
        default="random; image_seed of the answer tells it",
        low=0,
        high=MAX_SEED,
        models=IMAGE_MODELS,
        option="--seed",
        gateway=True,
    ),
    Field(
        name="scheduler",
        dtype=DType.STRING,
        help="ddim, euler, dpmpp_2m, unipc, ...; with Karras sigmas where `_karras` is appended.",
        default="the checkpoint's",
        models=IMAGE_MODELS,
        option="--scheduler",
        gateway=True,
    ),
    Field(
        name="timesteps",
        dtype=DType.INT32,
        shape=(-1,),
        help="Training timesteps that the run visits, falling; instead of num_inference_steps.",
        default="the scheduler's",
        low=0,
        high=_INT32_MAX,
        limit_length="max_steps",
        per_request=True,
        models=IMAGE_MODELS,
        option="--timesteps",
        gateway=True,
    ),
    Field(
        name="sigmas",
        dtype=DType.FP32,
        shape=(-1,),
        help="Noise levels that the run visits, falling, the last where it ends, usually 0; for scheduler euler.",
        default="the scheduler's",
        low=0.0,
        high=1e4,
        limit_length="max_steps",
        beyond=1,  # the last is no step's
        per_request=True,
        models=IMAGE_MODELS,
        option="--sigmas",
        gateway=True,
    ),
    Field(
        name="timestep_spacing",
        dtype=DType.STRING,
        help="linspace, leading or trailing: which timesteps a run of so many steps visits; few steps want trailing.",
        default="the checkpoint's",
        models=IMAGE_MODELS,
        option="--timestep-spacing",
        gateway=True,
    ),
    Field(
        name="eta",
        dtype=DType.FP32,
        help="Share of fresh noise in a step of ddim (0 where absent) and tcd (0.3).",
        default="the scheduler's",
        low=0.0,
        high=1.0,
        models=IMAGE_MODELS,
        option="--eta",
        gateway=True,
    ),
    Field(
        name="cache",
        dtype=DType.STRING,
        or_number=True,
        help="Feature caching: off, light, balanced, aggressive, or how much the features may change (0 to 1) before all is "
        "computed again.",
        default="off",
        models=IMAGE_MODELS,
        option="--cache",
        gateway=True,
    ),
    Field(
        name="cache_interval",
        dtype=DType.INT32,
        help="Feature caching at a fixed pace: every so many steps the whole UNet is computed.",
        default="as cache says",
        low=1,
        high=1000,
        models=IMAGE_MODELS,
        option="--cache-interval",
        gateway=True,
    ),
    Field(
        name="guidance_cache",
        dtype=DType.STRING,
        help="Reuse of what guidance adds to a step in later ones, of one row each: off, light, balanced or aggressive.",
        default="off",
        models=IMAGE_MODELS,
        option="--guidance-cache",
        gateway=True,
    ),
    Field(
        name="guidance_cache_interval",
        dtype=DType.INT32,
        help="The same at a fixed pace: every so many steps it is computed anew.",
        default="as guidance_cache says",
        low=1,
        high=1000,
        models=IMAGE_MODELS,
        option="--guidance-cache-interval",
        gateway=True,
    ),
    Field(
        name="width",
        dtype=DType.INT32,
        help="Pixels.",
        default="the checkpoint's, or init_image's",
        low=1,
        high=65_536,
        per_request=True,
        models=IMAGE_MODELS,
        option="--width",
    ),
    Field(
        name="height",
        dtype=DType.INT32,
        help="Pixels.",
        default="the checkpoint's, or init_image's",
        low=1,
        high=65_536,
        per_request=True,
        models=IMAGE_MODELS,
        option="--height",
    ),
    Field(
        name="num_images_per_prompt",
        dtype=DType.INT32,
        help="Pictures of each prompt, each with a seed of its own.",
        default="1",
        low=1,
        high=64,
        limit="max_images_per_request",
        per_request=True,
        models=IMAGE_MODELS - {Model.STREAM},
    ),
    Field(
        name="init_image",
        dtype=DType.UINT8,
        shape=(-1, -1, 3),
        help="Start from this picture: height x width x 3.",
        default="none",
        models=_NO_PICTURES,
    ),
    Field(
        name="strength",
        dtype=DType.FP32,
        help="How much of init_image is replaced, 0 to 1.",
        default="0.8",
        low=0.0,
        high=1.0,
        models=_NO_PICTURES,
        option="--strength",
    ),
    Field(
        name="latents",
        dtype=DType.FP32,
        shape=(-1, -1, -1),
        help="Starting noise instead of the seed's own: channels x height/8 x width/8, standard normal.",
        default="made from the seed",
        models=frozenset({Model.ENSEMBLE, Model.DENOISE}),
    ),
    Field(
        name="tile_sample_min_size",
        dtype=DType.INT32,
        help="Pictures of more pixels than a square of this side are encoded and decoded by tiles of that side.",
        default="the server's tile_sample_min_size",
        low=64,
        high=65_536,
        per_request=True,
        models=IMAGE_MODELS,
        option="--tile-size",
        gateway=True,
    ),
    Field(
        name="decoder",
        dtype=DType.STRING,
        help="Which VAE decoder makes the picture: full, or tiny where the pipeline was exported with one, fast and less exact.",
        default="full",
        per_request=True,
        models=IMAGE_MODELS,
        option="--decoder",
        gateway=True,
    ),
    TIMEOUT_SECONDS,
    PRIORITY,
    Field(
        name="deadline_seconds",
        dtype=DType.FP32,
        help="A soft goal, seconds from arrival: work is ordered so that it is met where it can be; once lost, others go first.",
        default="the server's latency_target times what the picture takes alone",
        low=1e-3,
        high=86_400.0,
        per_request=True,
        models=IMAGE_MODELS,
        option="--deadline",
        gateway=True,
    ),
    Field(
        name="preview_interval",
        dtype=DType.INT32,
        help="Steps between two previews of a stream.",
        default="1",
        low=1,
        high=10_000,
        models=frozenset({Model.STREAM}),
    ),
    RUN_ID,
    # What follows is said to `denoise` by the models before it, and by those who watch a run.
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
        high=_INT32_MAX,
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
        high=_INT32_MAX,
        models=frozenset({Model.DENOISE}),
    ),
    Field(
        name="step_end",
        dtype=DType.INT32,
        help="Step at which a segment of a run ends.",
        default="the run's end",
        low=1,
        high=_INT32_MAX,
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

RUN_ID_FORM = r"[A-Za-z0-9_-]{1,64}"

BY_NAME = {field.name: field for field in IMAGE_FIELDS}


def carried_by(model: Model) -> tuple[Field, ...]:
    """The fields that a model takes as inputs, in the table's order."""
    return tuple(field for field in (*IMAGE_FIELDS, *LAYOUT_FIELDS, *PAGE_FIELDS) if model in field.models)


def passed_on(source: Model, target: Model) -> tuple[Field, ...]:
    """The fields that both models carry: the one hands them to the other."""
    return tuple(field for field in carried_by(source) if target in field.models)


def names(fields: Iterable[Field]) -> tuple[str, ...]:
    return tuple(field.name for field in fields)
