"""`text_to_image` for callers without batches: adds the batch dimension, answers in base64 PNG; knows no Triton."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from nereid.diffusion.images import png_base64
from nereid.flow.request_parameters import refuse_parameters
from nereid_protocol.field import Model
from nereid_protocol.fields import carried_by, names

_OUTPUTS = ("generated_image", "image_seed", "warnings")


def generate_json(
    inputs: Mapping[str, np.ndarray],
    model: str,
    call: Callable[[str, Mapping[str, np.ndarray], Sequence[str]], dict[str, np.ndarray]],
) -> dict[str, np.ndarray]:
    """Outputs of `text_to_image_json`: base64 texts (images), seeds (images) and warnings (1); raises RequestError."""
    refuse_parameters(inputs, names(carried_by(Model.JSON)))
    made = call(model, {name: value[None] for name, value in inputs.items()}, _OUTPUTS)
    return {
        "generated_image": np.array([png_base64(pixels) for pixels in made["generated_image"]], dtype=np.object_),
        "image_seed": made["image_seed"].reshape(-1),
        "warnings": made["warnings"][0],
    }
