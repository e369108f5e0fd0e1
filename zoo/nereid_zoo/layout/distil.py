"""Fine-tunes a quantised layout transformer by relation distillation (MPQ-DM, Feng et al., 2025): its teacher is the float32 one.

The teacher draws layouts. At neighbouring timesteps of its runs the student is to give the same velocities, and its tokens are to
be to each other what the teacher's are: the similarities of a token to the others are a distribution, and its distance from the
teacher's is what is lessened. Features are averaged over the neighbouring timesteps first, since those of one timestep are noisy
where numbers have few bits. What is stored keeps its bits: codes move to other codes.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from random import Random
from time import monotonic
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from nereid.diffusion.solvers import noise_levels
from nereid.layout.settings import TRAIN_TIMESTEPS
from nereid_export.w4a8.products import LinearInEight, ProductInEight, halved
from nereid_export.w4a8.tables import Table
from nereid_export.w4a8.tuning import CODE_RATE, TunedProduct
from nereid_zoo.layout.batches import Batches
from nereid_zoo.layout.draw import Flow
from nereid_zoo.layout.model import MASKED, NUMBERED, LayoutTransformer
from nereid_zoo.layout.observed import IN_BLOCK
from nereid_zoo.layout.quantised import QuantisedBlock, QuantisedTransformer
from nereid_zoo.layout.rounding import weights_of
from nereid_zoo.optimisation import cosine_rate

NEIGHBOURS = 2
"""Timesteps whose features are averaged."""
TEMPERATURE = 0.1
"""Of the distribution that a token's cosines to the others make."""
Part = TypeVar("Part", bound=nn.Module)
RELATION = 1.0
"""Weight of the relations' distance beside the velocity's relative squared error."""
RUNS = 4
"""Batches that the teacher draws at once; their steps are trained on in any order."""
STEPS = (7, 9, 11, 13, 16, 19)
"""Of these runs."""
_BIAS_RATE = 0.01
"""Of biases and modulations, as a share of codes'."""
_SEED = 29
_RISE = 0.05
"""Share of the time in which the learning rate rises."""

Given = Mapping[str, Tensor]
"""A call's inputs."""


@dataclass(frozen=True, slots=True)
class Taught:
    """Calls at neighbouring timesteps, and what the teacher made of each: velocities and features of tokens."""

    calls: Sequence[Given]
    velocities: Sequence[Tensor]
    features: Sequence[Tensor]


@dataclass(frozen=True, slots=True)
class Losses:
    """Scalars."""

    velocity: Tensor
    relation: Tensor

    @property
    def total(self) -> Tensor:
        return self.velocity + RELATION * self.relation


def fine_tune(
    student: QuantisedTransformer,
    teacher: LayoutTransformer,
    minutes: float,
    told: Callable[[str], None],
    *,
    flow: Flow,
    rows: int = 32,
) -> tuple[QuantisedTransformer, int]:
    """The student after so many minutes, and how many steps those were; both that are given stay as they are."""
    begun, network = monotonic(), trainable(student, teacher)
    parameters = _rated(network)
    optimizer = torch.optim.Adam([{"params": [parameter], "share": share} for parameter, share in parameters], betas=(0.9, 0.99))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_SEED)
        step = 0
        for step, taught in enumerate(_lessons(teacher, flow, rows)):
            done = (monotonic() - begun) / (60 * minutes)
            if done >= 1:
                break
            losses = losses_of(network, taught)
            for group in optimizer.param_groups:
                group["lr"] = group["share"] * cosine_rate(CODE_RATE, done, rise=done / _RISE, floor=0.0)
            optimizer.zero_grad()
            losses.total.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            told(
                f"fine-tuning: step {step + 1}, {done * minutes:.1f} of {minutes:g} minutes, velocity's error "
                f"{losses.velocity.item() ** 0.5:.4f}, relations' {losses.relation.item():.2g}"
            )
    return settled(network), step


def losses_of(network: LayoutTransformer, taught: Taught) -> Losses:
    """What the student lacks. Padded tokens and fields that are given do not count."""
    count = len(taught.calls)
    together = {name: torch.cat([call[name] for call in taught.calls]) for name in taught.calls[0]}
    velocity, features = _called(network, together)  # in one call, which rounds weights once
    counted = together["valid"][..., None] * (together["field_mask"] < 1)
    wanted = torch.cat(list(taught.velocities))
    off, size = (((its**2) * counted).sum() for its in (velocity - wanted, wanted))
    return Losses(
        velocity=off / size.clamp(min=1e-12),
        relation=relation_distance(features.chunk(count), taught.features, taught.calls[0]["valid"]),
    )


def relation_distance(ours: Sequence[Tensor], theirs: Sequence[Tensor], valid: Tensor) -> Tensor:
    """How far what tokens are to each other is from what it is to be, mean over tokens (Kullback-Leibler divergence).

    Both are features at neighbouring timesteps, B x (1 + N) x D each, of the canvas' token and B x N elements; `valid` is B x N.
    """
    counted = functional.pad(valid, (1, 0), value=1.0)
    made, wanted = (_relations(features, counted) for features in (ours, theirs))
    distance = functional.kl_div(made, wanted, reduction="none", log_target=True).sum(-1)
    return (distance * counted).sum() / counted.sum()


def _relations(features: Sequence[Tensor], counted: Tensor) -> Tensor:
    """Logarithms of B x T x T: of each token, its distribution over the others; that to itself is always 1 and says nothing."""
    smooth = functional.normalize(torch.stack(list(features)).mean(0), dim=-1)
    cosines = smooth @ smooth.transpose(1, 2) / TEMPERATURE
    masked = torch.maximum((1 - counted)[:, None], torch.eye(counted.shape[1], device=counted.device))
    return functional.log_softmax(cosines + masked * MASKED, -1)


def _called(network: LayoutTransformer, call: Given) -> tuple[Tensor, Tensor]:
    """Velocities, and features of all tokens, the canvas' first."""
    numbers = network.numbers(call["boxes"], *(call[name] for name in NUMBERED))
    names = ("timestep", "classes", "parents", "depths", "canvas", "valid")
    features = network.hidden(numbers, *(call[name] for name in names))
    return network.last(features[:, 1:]), features


def _lessons(teacher: LayoutTransformer, flow: Flow, rows: int) -> Iterator[Taught]:
    """Of runs that the teacher draws, without an end."""
    batches, rng = Batches(rows, _SEED), Random(_SEED)
    while True:
        ready = [taught for _ in range(RUNS) for taught in lessons_of(teacher, batches, rng.choice(STEPS), flow)]
        rng.shuffle(ready)
        yield from ready


def lessons_of(teacher: LayoutTransformer, batches: Batches, steps: int, flow: Flow) -> list[Taught]:
    """All neighbours of one batch's runs, drawn with so many steps."""
    tokens = batches.next().tokens
    given = {name: torch.from_numpy(value) for name, value in tokens.as_inputs().items()}
    fixed = given["field_mask"] >= 1
    boxes = torch.where(fixed, given["known"], torch.randn(given["known"].shape))
    met: list[tuple[Given, Tensor, Tensor]] = []
    for level, following in itertools.pairwise(noise_levels(steps, flow.shift).tolist()):
        call = {**given, "boxes": boxes, "timestep": torch.full((len(boxes),), level * TRAIN_TIMESTEPS)}
        with torch.no_grad():
            velocity, features = _called(teacher, call)
        met.append((call, velocity, features))
        boxes = torch.where(
            fixed, given["known"], flow.moved(boxes, velocity, level, following, partial(torch.randn_like, boxes))
        )
    windows = (met[start : start + NEIGHBOURS] for start in range(len(met) - NEIGHBOURS + 1))
    return [Taught(*map(tuple, zip(*window, strict=True))) for window in windows]


# --- the module while it is trained ---


def trainable(student: QuantisedTransformer, teacher: LayoutTransformer) -> QuantisedTransformer:
    """A copy whose products, biases and modulations are parameters; `teacher` is what the student was made of."""
    network = deepcopy(student)
    found = {_layer_name(path): product for path, product in network.named_modules() if isinstance(product, ProductInEight)}
    layers = {name: product.layer for name, product in found.items()}
    names = {product: name for name, product in found.items()}
    for home, own, product in _products(network, ProductInEight):
        layer = layers[names[product]]
        exact = weights_of(teacher, names[product], layers) / layer.smooth
        setattr(home, own, TunedProduct(layer, exact))
    for block in _blocks(network):
        for name in ("table", *(f"{name}_bias" for name in IN_BLOCK)):
            value = getattr(block, name)
            delattr(block, name)
            setattr(block, name, nn.Parameter(value.clone()))
    for part in network.modules():
        if isinstance(part, LinearInEight):
            part.bias.requires_grad_(True)
    return network


def settled(network: QuantisedTransformer) -> QuantisedTransformer:
    """The way back, to what is stored."""
    made = deepcopy(network)
    for home, name, product in _products(made, TunedProduct):
        setattr(home, name, ProductInEight(product.layer()))
    for block in _blocks(made):
        block.tables = [rounded := Table.of(block.table.detach().numpy())]
        kept = {f"{name}_bias": halved(getattr(block, f"{name}_bias")) for name in IN_BLOCK}
        for name, value in {"table": torch.from_numpy(rounded.matrix()), **kept}.items():
            delattr(block, name)
            block.register_buffer(name, value)
    for part in made.modules():
        if isinstance(part, LinearInEight):
            part.bias = nn.Parameter(halved(part.bias))
    return made.eval().requires_grad_(False)


def _layer_name(path: str) -> str:
    """As `layer_names` has it, of the place of its product."""
    return path.removesuffix(".product")


def _rated(network: QuantisedTransformer) -> list[tuple[nn.Parameter, float]]:
    found = [pair for part in network.modules() if isinstance(part, TunedProduct) for pair in part.rated()]
    known = {id(parameter) for parameter, _ in found}
    others = [parameter for parameter in network.parameters() if parameter.requires_grad and id(parameter) not in known]
    return found + [(parameter, _BIAS_RATE) for parameter in others]


def _blocks(network: QuantisedTransformer) -> Iterator[QuantisedBlock]:
    yield from (block for block in network.blocks if isinstance(block, QuantisedBlock))


def _products(network: nn.Module, kind: type[Part]) -> list[tuple[nn.Module, str, Part]]:
    """Where each lies, and as what."""
    return [(home, name, part) for home in network.modules() for name, part in home.named_children() if isinstance(part, kind)]
