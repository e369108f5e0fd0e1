"""What a page's stages ask of the models that make its pieces, and those models as they stand in a repository.

A stage is a call; whoever makes it waits. Each has the page's priority, the seconds that are left, and a run id of its own, by
which it is cancelled.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol

import numpy as np

from nereid.flow.errors import EngineError
from nereid.layout.canvas import Canvas
from nereid.layout.elements import Box
from nereid.page.grammar import SECTION_GRAMMAR
from nereid.page.plan import PLAN_GRAMMAR, asked_of_planner
from nereid.page.settings import PageModel


class Stage(StrEnum):
    """What a page is made by, in order."""

    PLAN = "plan"
    SECTIONS = "sections"
    LAYOUTS = "layouts"
    PICTURES = "pictures"


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """`seconds` until nobody waits for the call any more; `goal`, seconds until it should be done, None: at any time."""

    run_id: str
    seed: int
    priority: int
    seconds: float
    goal: float | None = None


@dataclass(frozen=True, slots=True)
class Laid:
    """Boxes in the order of the elements that were asked for, by whom, and in sentences why they are not what was asked for."""

    boxes: tuple[Box, ...]
    drawn_by: str
    degraded: tuple[str, ...] = ()


class Stages(Protocol):
    """Calls wait, and raise RequestError. `plans` and `lays_out` say whether there is a planner, and a layout model."""

    @property
    def plans(self) -> bool: ...

    @property
    def lays_out(self) -> bool: ...

    def plan(self, brief: str, terms: Terms) -> str:
        """A line for each section, as nereid.page.plan reads them."""
        ...

    def write(self, brief: str, terms: Terms) -> str:
        """A section's HTML."""
        ...

    def lay_out(self, elements: Sequence[Mapping[str, Any]], canvas: Canvas, terms: Terms) -> Laid: ...

    def draw(self, prompt: str, terms: Terms) -> np.ndarray:
        """A picture: uint8 height x width x 3."""
        ...

    def cancel(self, stage: Stage, run_id: str) -> None:
        """Tell the model that nobody waits any more; raises RequestError where that does not arrive."""
        ...


Call = Callable[..., dict[str, np.ndarray]]
"""nereid.triton.calls.call_model: name, inputs, outputs, and `decoupled` where the model is."""


@dataclass(frozen=True, slots=True)
class SiblingStages:
    """The models beside `page` in its repository."""

    model: PageModel
    call: Call

    @property
    def plans(self) -> bool:
        return bool(self.model.limits.planner_model)

    @property
    def lays_out(self) -> bool:
        return bool(self.model.limits.layout_model)

    def plan(self, brief: str, terms: Terms) -> str:
        limits = self.model.limits
        frame = self.model.facts.planner_chat
        asked = {"temperature": 0, "max_tokens": limits.plan_tokens}
        return self._text(limits.planner_model, frame.prompt(asked_of_planner(brief)), PLAN_GRAMMAR, frame.whole, asked, terms)

    def write(self, brief: str, terms: Terms) -> str:
        limits = self.model.limits
        frame = self.model.facts.chat
        asked = {"temperature": limits.section_temperature, "max_tokens": limits.section_tokens}
        return self._text(limits.llm_model, frame.prompt(brief), SECTION_GRAMMAR, frame.whole, asked, terms)

    def _text(self, model: str, prompt: str, grammar: str, whole: bool, asked: Mapping[str, float], terms: Terms) -> str:
        """`whole`: the prompt has all special tokens; `asked` are sampling parameters, max_tokens among them."""
        sampling = {
            **asked,
            "seed": terms.seed,
            "priority": terms.priority,
            "add_special_tokens": not whole,
            "structured_outputs": {"grammar": grammar},
        }
        made = self.call(
            model,
            {
                "text_input": _text(prompt),
                "sampling_parameters": _text(json.dumps(sampling)),
                "exclude_input_in_output": np.array([True]),
                "return_finish_reason": np.array([True]),
                "timeout_seconds": _seconds(terms.seconds),
                "run_id": _text(terms.run_id),
            },
            ("text_output", "finish_reason"),
            decoupled=True,
        )
        if made["finish_reason"].item() != b"stop":
            raise EngineError(f"{model} has not come to an end within {asked['max_tokens']} tokens")
        return str(made["text_output"].item().decode())

    def lay_out(self, elements: Sequence[Mapping[str, Any]], canvas: Canvas, terms: Terms) -> Laid:
        asked = {"width": canvas.width, "density": str(canvas.density), "columns": canvas.columns, "style": str(canvas.style)}
        inputs = {
            "elements": _text(json.dumps(list(elements))),
            "canvas": _text(json.dumps(asked)),
            **_inputs_of(terms),
        }
        made = json.loads(self.call(self.model.limits.layout_model, inputs, ("layout",), decoupled=True)["layout"].item())
        boxes = {element["id"]: Box(*(float(element[name]) for name in Box._fields)) for element in made["elements"]}
        if not all(math.isfinite(value) for box in boxes.values() for value in box):
            raise EngineError(f"{self.model.limits.layout_model} has answered boxes that are no numbers")
        said = tuple(one["said"] for one in made["degraded"])
        return Laid(tuple(boxes[element["id"]] for element in elements), made["drawn_by"], said)

    def draw(self, prompt: str, terms: Terms) -> np.ndarray:
        inputs = {"prompt": _text(prompt), **_inputs_of(terms)}
        if self.model.limits.picture_steps:
            inputs["num_inference_steps"] = np.array([self.model.limits.picture_steps], np.int32)
        batched = {name: value[None] for name, value in inputs.items()}
        made = self.call(self.model.limits.text_to_image_model, batched, ("generated_image",))
        return np.asarray(made["generated_image"][0])

    def cancel(self, stage: Stage, run_id: str) -> None:
        limits = self.model.limits
        holders = {
            Stage.PLAN: (limits.planner_model, True),
            Stage.SECTIONS: (limits.llm_model, True),
            Stage.LAYOUTS: (limits.layout_model, True),
            Stage.PICTURES: (limits.denoise_model, False),
        }
        model, decoupled = holders[stage]
        asked = _text(run_id)
        self.call(model, {"cancel": asked if decoupled else asked[None]}, ("run_state",), decoupled=decoupled)


def _inputs_of(terms: Terms) -> dict[str, np.ndarray]:
    """As fields that layouts and images have alike."""
    goal = {} if terms.goal is None else {"deadline_seconds": _seconds(terms.goal)}
    return {
        "seed": np.array([terms.seed], np.int64),
        "priority": np.array([terms.priority], np.int32),
        "timeout_seconds": _seconds(terms.seconds),
        "run_id": _text(terms.run_id),
        **goal,
    }


def _text(value: str) -> np.ndarray:
    return np.array([value.encode()], np.object_)


def _seconds(value: float) -> np.ndarray:
    return np.array([max(value, 1e-3)], np.float32)
