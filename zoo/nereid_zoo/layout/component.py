"""The transformer of `layout` as a component to export, and an exported graph as what `draw` calls."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from pathlib import Path

import torch
from torch import Tensor, nn

from nereid.diffusion.branch_cache import Branch, BranchEngine
from nereid.diffusion.dynamic_width import TokenEngine, WidthEngine, WidthTable
from nereid.layout.elements import MAX_ELEMENTS, ElementClass
from nereid.layout.settings import ENGINE_NAME, KEPT, OUT, SAMPLE, TIMESTEP
from nereid.layout.tokens import BUCKETS, CANVAS, CONTENT, MOST_DEPTH
from nereid_export.components import Component, TensorSpec, finite
from nereid_export.engines.check import random_inputs
from nereid_zoo.layout.draw import DYNAMIC
from nereid_zoo.layout.dynamic import DynamicLayoutTransformer, Width, load_dynamic
from nereid_zoo.layout.folders import load
from nereid_zoo.layout.model import NUMBERED, LayoutTransformer
from nereid_zoo.layout.skipping import Routing, above, counted

NEARLY = 1e-3
"""Of a logit: an engine's are hardly ever so far from PyTorch's."""
GELU_OPSET = 20
"""From which on GELU by tanh is one node, and not eight."""
TOKENS = "tokens"
PLACES = "places"
"""One more than tokens: the canvas' is the first."""


class Velocity(nn.Module):
    """The transformer as the denoising loop calls a network: noisy boxes, timesteps of a row each, and what is given."""

    def __init__(self, transformer: LayoutTransformer) -> None:
        super().__init__()
        self.transformer = transformer

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor,
        known: Tensor,
        field_mask: Tensor,
        classes: Tensor,
        parents: Tensor,
        depths: Tensor,
        content: Tensor,
        canvas: Tensor,
        valid: Tensor,
    ) -> Tensor:
        made: Tensor = self.transformer(
            sample, timestep[:, 0], known, field_mask, classes, parents, depths, content, canvas, valid
        )
        return made


class BranchedVelocity(nn.Module):
    """The same with the branches that it reuses as further inputs, and those that it computes as further outputs.

    Takes what `inputs` names.
    """

    def __init__(self, transformer: LayoutTransformer, inputs: tuple[str, ...], engine: BranchEngine) -> None:
        super().__init__()
        self.transformer, self.inputs, self.engine = transformer, inputs, engine

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        given = dict(zip(self.inputs, inputs, strict=True))
        numbers = self.transformer.numbers(given[SAMPLE], *(given[name] for name in NUMBERED))
        hidden, made = self.transformer.branched(
            numbers,
            given[TIMESTEP][:, 0],
            given["classes"],
            given["parents"],
            given["depths"],
            given["canvas"],
            given.get("valid"),
            (given.get(Branch.ATTENTION), given.get(Branch.MLP)),
        )
        branches = dict(zip(Branch, zip(*made, strict=True), strict=True))
        computed = (torch.stack(branches[branch], 1) for branch in self.engine.computed)
        return self.transformer.last(hidden[:, 1:]), *computed


class SkippingVelocity(nn.Module):
    """A slice whose MLPs pass over tokens, and how many of each row each block's MLP was computed for (B x blocks)."""

    def __init__(self, transformer: LayoutTransformer, inputs: tuple[str, ...]) -> None:
        super().__init__()
        self.transformer, self.inputs = transformer, inputs

    def forward(self, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        return self.decided(above, *inputs)

    def decided(self, decide: Callable[[Tensor], Tensor], *inputs: Tensor) -> tuple[Tensor, Tensor]:
        given = dict(zip(self.inputs, inputs, strict=True))
        boxes, timestep = given.pop(SAMPLE), given.pop(TIMESTEP)[:, 0]
        routing = Routing(counted(given["valid"]), decide)
        opened = [(None, routing)] * len(self.transformer.blocks)
        made = self.transformer(boxes=boxes, timestep=timestep, **given, opened=opened)
        return made, torch.stack(routing.gates, 1).sum(-1)


def layout_component(folder: Path) -> Component:
    """Of a diffusers folder as `zoo train layout` writes it; batch and tokens are dynamic, up to 32 tokens."""
    return Component(
        name=ENGINE_NAME,
        source="transformer",
        inputs=(
            TensorSpec(name=SAMPLE, dims=(TOKENS, 4)),
            TensorSpec(name=TIMESTEP, dims=(1,), scale=300.0),
            TensorSpec(name="known", dims=(TOKENS, 4)),
            TensorSpec(name="field_mask", dims=(TOKENS, 4)),
            TensorSpec(name="classes", dims=(TOKENS,), dtype=torch.int64, high=len(ElementClass)),
            TensorSpec(name="parents", dims=(TOKENS,), dtype=torch.int64, high=MAX_ELEMENTS),
            TensorSpec(name="depths", dims=(TOKENS,), dtype=torch.int64, high=MOST_DEPTH),
            TensorSpec(name="content", dims=(TOKENS, CONTENT)),
            TensorSpec(name="canvas", dims=(CANVAS,)),
            TensorSpec(name="valid", dims=(TOKENS,), high=2),
        ),
        outputs=(TensorSpec(name=OUT, dims=(TOKENS, 4)),),
        load=lambda: Velocity(_transformer(folder)),
        keep_fp32=True,
        opset=GELU_OPSET,
        example={TOKENS: 13},
        checks=tuple((rows, {TOKENS: size}) for rows, size in zip((1, 3, 2, 4), BUCKETS, strict=True)),
    )


def branch_components(folder: Path) -> dict[BranchEngine, Component]:
    """The engines of runs that reuse branches of earlier steps (nereid.diffusion.branch_cache)."""
    plain = layout_component(folder)
    config = LayoutTransformer.load_config(folder / "transformer")
    specs = {branch: TensorSpec(name=branch, dims=(config["layers"], PLACES, config["width"])) for branch in Branch}
    whole = cache(lambda: _transformer(folder))

    def kept(engine: BranchEngine, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """What the branches that it reuses gave at an earlier step: random ones are of a size that no step would meet."""
        told = {"valid": torch.ones(inputs["classes"].shape), **inputs}
        earlier = 1.02 * told[TIMESTEP][:, 0]
        with torch.no_grad():
            numbers = whole().numbers(told[SAMPLE], *(told[name] for name in NUMBERED))
            classes, parents, depths, canvas = (told[name] for name in ("classes", "parents", "depths", "canvas"))
            made = whole().branched(numbers, earlier, classes, parents, depths, canvas, told["valid"])[1]
        given = dict(zip(Branch, zip(*made, strict=True), strict=True))
        return {branch: torch.stack(given[branch], 1) for branch in engine.reused}

    def component(engine: BranchEngine) -> Component:
        own = tuple(spec for spec in plain.inputs if spec.name not in engine.untaken)
        inputs = (*own, *(specs[branch] for branch in engine.reused))
        names = tuple(str(spec.name) for spec in inputs)
        return replace(
            plain,
            name=f"{ENGINE_NAME}_{engine}",
            inputs=inputs,
            outputs=(*plain.outputs, *(specs[branch] for branch in engine.computed)),
            load=lambda: BranchedVelocity(_transformer(folder), names, engine),
            derived=partial(kept, engine),
            example=_with_canvas(plain.example),
            checks=tuple((rows, _with_canvas(sizes)) for rows, sizes in plain.checks),
        )

    return {engine: component(engine) for engine in BranchEngine}


def width_components(folder: Path) -> tuple[dict[WidthEngine, Component], WidthTable]:
    """The slices of a transformer with dynamic width, and which of them a timestep calls."""
    plain, dynamic = layout_component(folder), _dynamic(folder)

    def component(engine: WidthEngine, width: Width) -> Component:
        return replace(
            plain, name=f"{ENGINE_NAME}_{engine}", source=DYNAMIC, load=lambda: Velocity(_dynamic(folder).narrowed(width))
        )

    return {engine: component(engine, width) for engine, width in dynamic.named_widths().items()}, dynamic.table()


def token_components(folder: Path, *, widths: bool) -> dict[TokenEngine, Component]:
    """Of the whole transformer, and with `widths` of its slices, engines whose MLPs pass over tokens.

    Raises ValueError where the transformer has no routers of tokens.
    """
    plain, dynamic = layout_component(folder), _dynamic(folder)
    if not dynamic.config["tokens"]:
        raise ValueError("it has no routers of tokens; train it with `nereid zoo train layout-dynamic --tokens`")
    names = tuple(str(spec.name) for spec in plain.inputs)

    def component(engine: TokenEngine, width: Width | None) -> Component:
        made = replace(
            plain,
            name=f"{ENGINE_NAME}_{engine}",
            source=DYNAMIC,
            outputs=(*plain.outputs, TensorSpec(name=KEPT, dims=(dynamic.layers,))),
            load=lambda: SkippingVelocity(_dynamic(folder).narrowed(width, tokens=True), names),
        )
        return replace(made, checks=_clear_checks(made, SkippingVelocity(dynamic.narrowed(width, tokens=True), names)))

    named = dynamic.named_widths() if widths else {}
    found = {TokenEngine.of(engine): component(TokenEngine.of(engine), width) for engine, width in named.items()}
    return {TokenEngine.WHOLE: component(TokenEngine.WHOLE, None), **found}


def _clear_checks(component: Component, module: SkippingVelocity) -> tuple[tuple[int, dict[str, int]], ...]:
    """The component's checks with as many more rows, and so with other inputs, as no token needs to be nearly kept in.

    An engine may round such a token to the other side, and be as right as PyTorch.
    """

    def clear(number: int, rows: int, sizes: dict[str, int]) -> bool:
        margins: list[float] = []

        def decide(logits: Tensor) -> Tensor:
            margins.append(float(logits.abs().min()))
            return above(logits)

        with torch.inference_mode():
            module.decided(decide, *random_inputs(component, rows, sizes, number).values())
        return min(margins) > NEARLY

    return tuple(
        (next((more for more in range(rows, rows + 8) if clear(number, more, sizes)), rows), sizes)
        for number, (rows, sizes) in enumerate(component.checks, 1)
    )


def _dynamic(folder: Path) -> DynamicLayoutTransformer:
    made: DynamicLayoutTransformer = finite(folder / DYNAMIC, load_dynamic(folder))
    return made


def _with_canvas(sizes: dict[str, int]) -> dict[str, int]:
    """The canvas has a token, too."""
    return {**sizes, PLACES: 1 + sizes[TOKENS]}


def _transformer(folder: Path) -> LayoutTransformer:
    made: LayoutTransformer = finite(folder / "transformer", load(folder))
    return made
