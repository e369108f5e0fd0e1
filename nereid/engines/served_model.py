"""What the stand-ins of Triton's backends share: start arguments, config against graph, warm-up, requests as one batch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

Tensors = Mapping[str, np.ndarray]

STAND_IN_CONFIG = "stand_in"
"""Name of the further config of a model whose own one the Triton from pip refuses, whoever would serve it."""


_WARM_UP_TYPES = {
    "TYPE_FP16": "float16",
    "TYPE_FP32": "float32",
    "TYPE_FP64": "float64",
    "TYPE_INT8": "int8",
    "TYPE_INT32": "int32",
    "TYPE_INT64": "int64",
    "TYPE_UINT8": "uint8",
    "TYPE_BOOL": "bool",
}


class Arguments(Protocol):
    """The part of a model's start arguments that is read here."""

    @property
    def name(self) -> str: ...
    @property
    def version_folder(self) -> Path: ...
    @property
    def config(self) -> Mapping[str, Any]: ...
    @property
    def parameters(self) -> Mapping[str, str]: ...
    @property
    def instance_kind(self) -> str: ...
    @property
    def device_id(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Port:
    """An input or output of a graph: its type in the library's words and in Triton's ("" for none), and its rank.

    A rank of None is not known, and not compared.
    """

    name: str
    type: str
    data_type: str
    rank: int | None


def check_signature(
    name: str, config: Mapping[str, Any], inputs: Iterable[Port], outputs: Iterable[Port], *, may_be_optional: bool
) -> None:
    """Config and graph must name the same tensors, with the same types and ranks; raises ValueError with the first that differs.

    Where the batch is Triton's, no input may be optional, whatever `may_be_optional` says of the backend.
    """
    batched = int(config.get("max_batch_size", 0)) > 0
    for kind, declared, real in (("input", config["input"], inputs), ("output", config["output"], outputs)):
        graph = {port.name: port for port in real}
        names = {item["name"] for item in declared}
        if (kind == "input" and names != set(graph)) or not names <= set(graph):
            raise ValueError(f"{name}: the config's {kind}s {sorted(names)} are not the graph's {sorted(graph)}")
        for item in declared:
            if item.get("optional") and (batched or not may_be_optional):
                because = " with max_batch_size > 0" if batched else ""
                raise ValueError(f"{name}: input {item['name']} cannot be optional{because}")
            port, rank = graph[item["name"]], len(item["dims"]) + batched
            if port.data_type != item["data_type"]:
                raise ValueError(f"{name}: {kind} {item['name']} is {port.type} in the graph, {item['data_type']} in config")
            if port.rank is not None and port.rank != rank:
                raise ValueError(f"{name}: {kind} {item['name']} has rank {port.rank} in the graph, {rank} in config")


class Runs(Protocol):
    """A loaded model."""

    def run(self, requests: Sequence[Tensors]) -> Sequence[Mapping[str, np.ndarray] | Exception]: ...


def warm_up(model: Runs, arguments: Arguments) -> None:
    """Run every sample of the config's `model_warmup`; raises ValueError naming the one that failed.

    Triton runs them as well, once the model is loaded, but Triton 24.10 crashes where one fails.
    """
    batched = int(arguments.config.get("max_batch_size", 0)) > 0
    names = sorted(item["name"] for item in arguments.config["input"])
    for sample in arguments.config.get("model_warmup", []):
        where = f"{arguments.name}: model_warmup {sample['name']!r}"
        if sorted(sample["inputs"]) != names:
            raise ValueError(f"{where}: inputs {sorted(sample['inputs'])} are not allowed; they must be the model's {names}")
        feeds = {name: _warm_up_tensor(where, name, entry, batched) for name, entry in sample["inputs"].items()}
        for result in model.run([feeds] * max(1, int(sample.get("batch_size", 1)))):
            if isinstance(result, Exception):
                raise ValueError(f"{where} failed: {str(result).removeprefix(f'{arguments.name}: ')}")


def _warm_up_tensor(where: str, name: str, entry: Mapping[str, Any], batched: bool) -> np.ndarray:
    if not entry.get("zero_data"):
        raise ValueError(f"{where}: input {name} must have zero_data: true, the only data that this backend warms up with")
    if entry["data_type"] not in _WARM_UP_TYPES:
        raise ValueError(f"{where}: input {name}: {entry['data_type']} is not allowed; it must be {', '.join(_WARM_UP_TYPES)}")
    return np.zeros([1] * batched + [int(size) for size in entry["dims"]], _WARM_UP_TYPES[entry["data_type"]])


def run_as_one(
    requests: Sequence[Tensors], inputs: Sequence[str], outputs: Sequence[str], call: Callable[[Tensors], Sequence[np.ndarray]]
) -> list[dict[str, np.ndarray]]:
    """Requests of equal row shapes in one call; each gets its own rows back."""
    feeds = {name: np.concatenate([tensors[name] for tensors in requests]) for name in inputs}
    made = call(feeds)
    ends = np.cumsum([len(tensors[inputs[0]]) for tensors in requests])[:-1]
    parts = [np.split(value, ends) for value in made]
    return [dict(zip(outputs, row, strict=True)) for row in zip(*parts, strict=True)]
