"""Fields that every run has, whatever it draws, as the images' models take them; other tables say by whom else they are taken."""

from __future__ import annotations

from nereid_protocol.field import DType, Field, Model

IMAGE_MODELS = frozenset(Model) - {Model.LAYOUT, Model.PAGE}

TIMEOUT_SECONDS = Field(
    name="timeout_seconds",
    dtype=DType.FP32,
    help="Seconds until the request is given up, waiting included.",
    default="the server's default_timeout_seconds",
    low=1e-3,
    high=86_400.0,
    per_request=True,
    models=IMAGE_MODELS,
)

PRIORITY = Field(
    name="priority",
    dtype=DType.INT32,
    help="0 goes first, 9 last; of equal ones who came first. Waiting raises it, one for every ten seconds.",
    default="5",
    low=0,
    high=9,
    per_request=True,
    models=IMAGE_MODELS,
    option="--priority",
    gateway=True,
)

RUN_ID_FORM = r"[A-Za-z0-9_-]{1,64}"

RUN_ID = Field(
    name="run_id",
    dtype=DType.STRING,
    help="An id for the run that cannot be guessed, to watch or cancel it by: up to 64 of A-Z, a-z, 0-9, _ and -.",
    default="none",
    per_request=True,
    models=IMAGE_MODELS,
)

WATCH = Field(
    name="watch",
    dtype=DType.STRING,
    help="Asks for the state of the run with this id instead of starting one.",
    default="none",
    per_request=True,
    models=frozenset({Model.DENOISE}),
)

CANCEL = Field(
    name="cancel",
    dtype=DType.STRING,
    help="Cancels the run with this id instead of starting one.",
    default="none",
    per_request=True,
    models=frozenset({Model.DENOISE}),
)
