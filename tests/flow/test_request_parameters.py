"""Members of a `generate` body that are no input of the model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from nereid.diffusion.json_face import generate_json
from nereid.diffusion.streaming import ImageStream
from nereid.flow.errors import InvalidRequestError

PROMPT = np.array([b"a box"], np.object_)


def never(*arguments: Any, **more: Any) -> Any:
    raise AssertionError("nothing may be called")


def as_json(inputs: dict[str, np.ndarray]) -> None:
    generate_json(inputs, "text_to_image", never)


def as_stream(inputs: dict[str, np.ndarray]) -> None:
    ImageStream(None, None, None).run(inputs, never, lambda: False)  # type: ignore[arg-type]


@pytest.mark.parametrize("model", [as_json, as_stream])
@pytest.mark.parametrize(
    ("sent", "said"),
    [
        ('{"cache_intervall": 2}', "cache_intervall is not a field of this model; did you mean cache_interval?"),
        ('{"zzz": [1]}', "zzz is not a field of this model; docs/reference.md lists what is"),
    ],
)
def test_a_misspelt_field_of_an_image_is_refused_by_name(model: Callable[[Any], None], sent: str, said: str) -> None:
    with pytest.raises(InvalidRequestError) as refused:
        model({"prompt": PROMPT, "request_parameters": np.array([sent.encode()], np.object_)})
    assert str(refused.value) == said
