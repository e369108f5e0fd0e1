"""What a request's option is: its tensor, its bounds, and which models carry it; knows no option."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

INT32_MAX = 2**31 - 1
MAX_SEED = 2**63 - 1
"""Seeds are 0 to this, the non-negative part of Triton's INT64."""


class DType(StrEnum):
    """Triton's names of tensor types."""

    STRING = "STRING"
    INT32 = "INT32"
    INT64 = "INT64"
    FP32 = "FP32"
    UINT8 = "UINT8"


class Model(StrEnum):
    """The models that carry request fields, by the names of their folders in `model_repository/`."""

    ENSEMBLE = "text_to_image"
    STREAM = "text_to_image_stream"
    JSON = "text_to_image_json"
    TOKENIZER = "tokenizer"
    DENOISE = "denoise"
    LAYOUT = "layout"
    PAGE = "page"


@dataclass(frozen=True, slots=True, kw_only=True)
class Field:
    """One request option.

    Attributes:
        shape: without the batch dimension; -1 is any length.
        help: one line, for people.
        default: in words, for the reference; a server resolves it.
        low, high: bounds of every element, both allowed; a server may set narrower ones (`limit`).
        limit: the parameter of `denoise` that bounds it from above.
        limit_length: the parameter of `denoise` that bounds how many values there may be, where any number is allowed.
        beyond: how many more than that there may be.
        per_request: one value for all prompts of a request; otherwise each prompt has its own.
        models: who takes it as an input.
        or_number: a text that may be given as a number.
        option: its name on the command line of its verb (of images: `nereid generate`), where it has one.
        gateway: whether its route of the gateway (of images: /v1/images/generations) takes it under this name.
    """

    name: str
    dtype: DType
    shape: tuple[int, ...] = (1,)
    help: str
    default: str = ""
    low: float | None = None
    high: float | None = None
    limit: str | None = None
    limit_length: str | None = None
    beyond: int = 0
    per_request: bool = False
    models: frozenset[Model]
    or_number: bool = False
    option: str | None = None
    gateway: bool = False

    @property
    def scalar(self) -> bool:
        return self.shape == (1,)

    @property
    def listed(self) -> bool:
        """Whether it is a list of numbers of any length."""
        return self.shape == (-1,)

    @property
    def client_side(self) -> bool:
        """Whether a caller may give it as an option of a request."""
        return Model.ENSEMBLE in self.models or Model.STREAM in self.models
