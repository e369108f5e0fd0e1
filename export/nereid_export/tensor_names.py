"""Tells those that call an engine what its backend calls the tensors: maps of ensembles, and a parameter of Python models."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from nereid.flow.parameters import TENSOR_NAMES
from nereid_export.components import Component


def tell_names(component: Component, engine: Any, callers: Iterable[Any]) -> None:
    """Edit the configs among `callers` that call `engine` (the component's config), where its names are not the component's."""
    sides = ((component.inputs, engine.input), (component.outputs, engine.output))
    names = {
        spec.name: tensor.name
        for specs, tensors in sides
        for spec, tensor in zip(specs, tensors, strict=True)
        if spec.name != tensor.name
    }
    if not names:
        return
    for caller in callers:
        for step in caller.ensemble_scheduling.step:
            if step.model_name == engine.name:
                _rename(step.input_map, names)
                _rename(step.output_map, names)
        if _calls(caller, engine.name):
            known = json.loads(caller.parameters[TENSOR_NAMES].string_value or "{}")
            caller.parameters[TENSOR_NAMES].string_value = json.dumps({**known, engine.name: names})


def _rename(entries: Any, names: dict[str, str]) -> None:
    """Of a step's map, whose keys are the engine's own names."""
    renamed = {names.get(key, key): value for key, value in entries.items()}
    entries.clear()
    entries.update(renamed)


def _calls(caller: Any, engine: str) -> bool:
    """A parameter names each model that is called, and a further text encoder by the beginning of its name."""
    called = (value.string_value for key, value in caller.parameters.items() if key.endswith("_model"))
    return any(engine == name or engine.startswith(f"{name}_") for name in called)
