"""The layouts that a transformer draws to be calibrated, fine-tuned and measured by, where its products are of 8-bit numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from nereid.diffusion.solvers import noise_levels
from nereid.layout.elements import Box, Section
from nereid.layout.settings import OUT, SAMPLE, TIMESTEP, TRAIN_TIMESTEPS
from nereid_export.components import Component
from nereid_export.engines.check import Check, Inputs, Run, compare_together, references_of, torch_run
from nereid_export.layout_samples import off_pixels, passed_each, passed_shares, sample_sections
from nereid_export.w4a8.layers import QuantisedLayer

if TYPE_CHECKING:
    from nereid_zoo.layout.draw import Flow

LOSS_BOUND = 1.0
"""Points of layouts that pass all error checks that 8-bit products may cost.

After repair, above it nothing is published; before repair, the manifest tells."""
TIMESTEPS = 1000
"""That the layers of time and canvas are calibrated with: those of a run of so many steps."""
_EVERY = 16
"""Calls of which one is kept for the check against PyTorch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LayoutQuality:
    """What 8-bit products cost the layouts of so many briefs, beside PyTorch in float32 with equal seeds.

    Percent of layouts that pass all error checks, before and after repair, and how far boxes are off in CSS pixels: of a section
    the mean over its boxes' four numbers, of all the median and the 95th percentile.
    """

    briefs: int
    steps: int
    passed_before: float
    passed_before_fp32: float
    passed: float
    passed_fp32: float
    off_px: float
    off_px_p95: float

    @classmethod
    def of(
        cls, sections: Sequence[Section], drawn: Sequence[Sequence[Box]], plain: Sequence[Sequence[Box]], steps: int
    ) -> LayoutQuality:
        off = off_pixels(drawn, plain)
        (before, after), (before_fp32, after_fp32) = (passed_shares(passed_each(sections, its)) for its in (drawn, plain))
        return cls(
            briefs=len(sections),
            steps=steps,
            passed_before=before,
            passed_before_fp32=before_fp32,
            passed=after,
            passed_fp32=after_fp32,
            off_px=round(float(np.median(off)), 3),
            off_px_p95=round(float(np.percentile(off, 95)), 3),
        )

    def written(self) -> dict[str, Any]:
        made = {name: getattr(self, name) for name in self.__slots__}
        within = max(self.passed_before_fp32 - self.passed_before, self.passed_fp32 - self.passed) <= LOSS_BOUND
        return {**made, "loss_bound": LOSS_BOUND, "within": within}


@dataclass(slots=True)
class Drawing:
    """A transformer's module in float32, and how its layouts are drawn."""

    component: Component
    module: nn.Module
    flow: Flow
    briefs: int
    """Sections whose layouts engines are measured by, drawn in `steps` steps."""
    steps: int
    parameters: int = field(init=False)
    _plain: tuple[list[list[Box]], list[Inputs]] | None = None

    def __post_init__(self) -> None:
        self.parameters = sum(parameter.numel() for parameter in self.module.parameters())

    @classmethod
    def of(cls, checkpoint: Path, component: Component, briefs: int, steps: int) -> Drawing:
        from nereid_zoo.layout.draw import flow_of

        return cls(component, component.load(), flow_of(checkpoint), briefs, steps)

    def quantised(
        self, briefs: int, numbers_of_steps: Sequence[int], ranges: int, told: Callable[[str], None]
    ) -> tuple[nn.Module, dict[str, QuantisedLayer], Sequence[float]]:
        """The same with 8-bit products, calibrated on layouts of so many sections that this one draws; its layers.

        Last what is between the `ranges` of timesteps that its inputs are rounded by.
        """
        from nereid_zoo.layout.component import Velocity
        from nereid_zoo.layout.draw import draw
        from nereid_zoo.layout.observed import Observer
        from nereid_zoo.layout.quantised import QuantisedTransformer
        from nereid_zoo.layout.rounding import quantised_layers
        from nereid_zoo.layout.timestep_ranges import bounds_of

        assert isinstance(self.module, Velocity)
        transformer = self.module.transformer
        sections, bounds = sample_sections(briefs, 17), bounds_of(self.flow, numbers_of_steps, ranges)
        levels = noise_levels(TIMESTEPS, self.flow.shift)[:-1] * TRAIN_TIMESTEPS
        observer, turns = Observer(transformer, bounds, levels.tolist()), len(numbers_of_steps)
        with observer.watching() as predict:
            for turn, steps in enumerate(numbers_of_steps):
                told(f"drawing layouts of {briefs} briefs: {steps} steps, {turn + 1} of {turns}")
                chosen = range(turn, len(sections), turns)
                draw(predict, [sections[place] for place in chosen], chosen, steps=steps, flow=self.flow)
        layers = quantised_layers(transformer, observer.statistics(), observer.calls, told)
        return Velocity(QuantisedTransformer.of(transformer, layers, bounds)).eval(), layers, bounds

    def fine_tuned(self, module: nn.Module, minutes: float, told: Callable[[str], None]) -> tuple[nn.Module, int]:
        """A module of 8-bit products after so many minutes of relation distillation from this one; its steps."""
        from nereid_zoo.layout.component import Velocity
        from nereid_zoo.layout.distil import fine_tune
        from nereid_zoo.layout.quantised import QuantisedTransformer

        assert isinstance(self.module, Velocity)
        assert isinstance(module, Velocity)
        assert isinstance(module.transformer, QuantisedTransformer)
        made, steps = fine_tune(module.transformer, self.module.transformer, minutes, told, flow=self.flow)
        return Velocity(made).eval(), steps

    def measured(self, run: Run, rows: int, told: Callable[[str], None]) -> tuple[LayoutQuality, list[Check]]:
        """What an engine's layouts are, and how far it is off in calls of PyTorch's; `rows` are those of one call.

        Padded tokens, whose outputs mean nothing, do not count.
        """
        from nereid_zoo.layout.draw import draw

        sections = sample_sections(self.briefs, 19)
        plain, calls = self._in_float32(sections, told)
        told(f"drawing layouts of {self.briefs} briefs with the engine")
        drawn = draw(
            lambda inputs: run(as_called(inputs), [OUT])[OUT],
            sections,
            range(len(sections)),
            steps=self.steps,
            flow=self.flow,
            rows=rows,
        )
        references = references_of(self.component, self.module, calls)
        for reference in references:
            reference.outputs[OUT] *= reference.inputs["valid"][..., None]
        checks = compare_together(references, lambda inputs, names: {OUT: run(inputs, names)[OUT] * inputs["valid"][..., None]})
        return LayoutQuality.of(sections, drawn, plain, self.steps), checks

    def _in_float32(self, sections: Sequence[Section], told: Callable[[str], None]) -> tuple[list[list[Box]], list[Inputs]]:
        """Layouts, and some of the calls."""
        from nereid_zoo.layout.draw import draw

        if self._plain is None:
            told(f"drawing layouts of {self.briefs} briefs in float32")
            calls = _Calls(torch_run(self.component, self.module))
            self._plain = draw(calls, sections, range(len(sections)), steps=self.steps, flow=self.flow), calls.kept
        return self._plain


@dataclass(slots=True)
class _Calls:
    """What draws, and keeps some of its calls' inputs."""

    run: Run
    kept: list[Inputs] = field(default_factory=list)
    _count: int = 0

    def __call__(self, inputs: Mapping[str, NDArray]) -> NDArray[np.float32]:
        called = as_called(inputs)
        if self._count % _EVERY == self._count // _EVERY % _EVERY:  # another step each time
            self.kept.append(called)
        self._count += 1
        made: NDArray[np.float32] = self.run(called, [OUT])[OUT]
        return made


def as_called(inputs: Mapping[str, NDArray]) -> Inputs:
    """As `nereid_zoo.layout.draw` calls a transformer, to an engine's inputs."""
    told = {name: value for name, value in inputs.items() if name not in ("boxes", TIMESTEP)}
    return {**told, SAMPLE: inputs["boxes"], TIMESTEP: inputs[TIMESTEP][:, None]}
