"""What the bridge needs of `triton_python_backend_utils`, of plain Python."""

from __future__ import annotations

import importlib
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass
class Tensor:
    _name: str
    value: Any

    def name(self) -> str:
        return self._name

    def as_numpy(self) -> Any:
        return self.value

    def is_cpu(self) -> bool:
        return True

    @classmethod
    def from_dlpack(cls, name: str, array: Any) -> Tensor:
        return cls(name, array)


class TritonError:
    INVALID_ARG, UNAVAILABLE, CANCELLED, INTERNAL = range(4)

    def __init__(self, sentence: str, code: int = INTERNAL) -> None:
        self.sentence, self._code = sentence, code

    def message(self) -> str:
        return self.sentence

    def code(self) -> int:
        return self._code


@dataclass
class InferenceResponse:
    tensors: list[Tensor]
    error: TritonError | None = None

    @classmethod
    def made(cls, output_tensors: list[Tensor], error: TritonError | None = None) -> InferenceResponse:
        """As a model makes one."""
        return cls(output_tensors, error)

    def output_tensors(self) -> list[Tensor]:
        return self.tensors

    def has_error(self) -> bool:
        return self.error is not None


@dataclass
class Sender:
    sent: list[Any] = field(default_factory=list)

    def send(self, answer: Any = None, flags: int = 0) -> None:
        self.sent.append(answer)


@dataclass
class Request:
    """One that came."""

    own_id: str = ""
    tensors: list[Tensor] = field(default_factory=list)
    brought: str = "{}"
    sender: Sender = field(default_factory=Sender)

    def request_id(self) -> str:
        return self.own_id

    def inputs(self) -> list[Tensor]:
        return self.tensors

    def parameters(self) -> str:
        return self.brought

    def requested_output_names(self) -> list[str]:
        return ["y"]

    def get_response_sender(self) -> Sender:
        return self.sender


class InferenceRequest:
    """One that is made; the last is kept."""

    last: dict[str, Any] = {}  # noqa: RUF012
    answer = InferenceResponse([Tensor("y", np.array([1]))])
    answers: list[InferenceResponse] = []  # noqa: RUF012

    def __init__(self, **arguments: Any) -> None:
        InferenceRequest.last = arguments

    def exec(self, decoupled: bool = False) -> Any:
        """Of a decoupled model, one after the other."""
        return iter(self.answers) if decoupled else self.answer


def _fake_utils() -> types.ModuleType:
    """The module, with tensors that lie on the host unless they say otherwise."""
    fake = types.ModuleType("triton_python_backend_utils")
    for name, value in {
        "Tensor": Tensor,
        "TritonError": TritonError,
        "InferenceResponse": InferenceResponse.made,
        "InferenceRequest": InferenceRequest,
        "PreferredMemory": lambda kind, device: (kind, device),
        "TRITONSERVER_MEMORY_CPU": "cpu",
        "TRITONSERVER_MEMORY_GPU": "gpu",
        "TRITONSERVER_RESPONSE_COMPLETE_FINAL": 1,
        "get_output_tensor_by_name": lambda answer, name: next((t for t in answer.tensors if t.name() == name), None),
    }.items():
        setattr(fake, name, value)
    return fake


@contextmanager
def stub_modules() -> Iterator[tuple[Any, Any]]:
    """`bridge` and `calls`, imported over the fake, and forgotten afterwards."""
    names = ("nereid.triton.bridge", "nereid.triton.calls")
    sys.modules["triton_python_backend_utils"] = _fake_utils()
    try:
        yield importlib.import_module(names[0]), importlib.import_module(names[1])
    finally:
        for name in (*names, "triton_python_backend_utils"):
            sys.modules.pop(name, None)
