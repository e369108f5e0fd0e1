"""Tells those that call an engine what its backend calls the tensors: maps of ensembles, and a parameter of Python models."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from nereid.flow.parameters import TENSOR_NAMES
from nereid_export.components import Component


def tell_names(component: Component, engine: Any, callers: Iterable[Any], *, before: Any = None) -> None:
    """Edit the configs among `callers` that call `engine` (the component's config), where its names are not the component's.

    `before` is the config of the engine whose names they have been told earlier.
    """
    names, known = _names(component, engine), _names(component, before) if before is not None else {}
    if names == known:
        return
    own = (spec.name for spec in (*component.inputs, *component.outputs))
    renamed = {known.get(name, name): names.get(name, name) for name in own}
    for caller in callers:
        for step in caller.ensemble_scheduling.step:
            if step.model_name == engine.name:
                _rename(step.input_map, renamed)
                _rename(step.output_map, renamed)
        if _calls(caller, engine.name):
            told = json.loads(caller.parameters[TENSOR_NAMES].string_value or "{}")
            told = {**told, engine.name: names} if names else {name: its for name, its in told.items() if name != engine.name}
            caller.parameters[TENSOR_NAMES].string_value = json.dumps(told)
            if not told:
                del caller.parameters[TENSOR_NAMES]


def _names(component: Component, engine: Any) -> dict[str, str]:
    """Those of the engine's tensors by the component's, where they are others."""
    sides = ((component.inputs, engine.input), (component.outputs, engine.output))
    return {
        spec.name: tensor.name
        for specs, tensors in sides
        for spec, tensor in zip(specs, tensors, strict=True)
        if spec.name != tensor.name
    }


def _rename(entries: Any, names: dict[str, str]) -> None:
    """Of a step's map, whose keys are the engine's own names."""
    renamed = {names.get(key, key): value for key, value in entries.items()}
    entries.clear()
    entries.update(renamed)


def _calls(caller: Any, engine: str) -> bool:
    """A parameter names each model that is called, and a further text encoder by the beginning of its name."""
    called = (value.string_value for key, value in caller.parameters.items() if key.endswith("_model"))
    return any(engine == name or engine.startswith(f"{name}_") for name in called)
