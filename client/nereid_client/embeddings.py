"""A request to embed a text and its result as types, and their translation to and from the model's tensors."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nereid_client.errors import InvalidRequestError
from nereid_client.images import Tensors
from nereid_client.texts import fingerprint, prompt_tensors


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class EmbeddingResult:
    """The mean of a prompt's last hidden states (float32, as long as the model is wide), and how many tokens it has."""

    embedding: NDArray[np.float32]
    num_input_tokens: int
    run_id: str = ""
    system_fingerprint: str | None = None

    @classmethod
    def from_tensors(cls, tensors: Tensors) -> EmbeddingResult:
        return cls(
            embedding=np.array(tensors["embedding"], np.float32).reshape(-1),
            num_input_tokens=int(tensors["num_input_tokens"][0]),
            system_fingerprint=fingerprint(tensors),
        )


def embedding_tensors(prompt: str | Sequence[int], options: Mapping[str, Any]) -> Tensors:
    """Inputs of `llm`; `options` are those of its sampling parameters that mean something here, and are checked by the server."""
    try:
        parameters = json.dumps(dict(options))
    except (TypeError, ValueError) as error:
        raise InvalidRequestError(f"sampling parameters: {error}") from None
    return {
        "task": np.array([b"embed"], np.object_),
        "sampling_parameters": np.array([parameters.encode()], np.object_),
        "return_num_input_tokens": np.array([True]),
        **prompt_tensors(prompt),
    }
