"""Scores layouts of held-out briefs: by a transformer, beside the training data's own, a rule-based flow and neighbours."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from random import Random
from statistics import mean, median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nereid.diffusion.solvers import SchedulerName
from nereid.flow.noise import derived_seed
from nereid.layout.checks import Check, Finding, Severity, check_layout, has_errors, score
from nereid.layout.checks.reading import kendall_tau
from nereid.layout.elements import FREE, Box, Fixed, Section
from nereid.layout.flow import flow_layout
from nereid.layout.known_widths import KnownWidths, stretched
from nereid.layout.repair import repair
from nereid.layout.settings import OUT
from nereid_export.errors import ExportError
from nereid_zoo.layout.batches import DRAFTED, Task, sample_row
from nereid_zoo.layout.draw import STEPS, Flow, Predict, canvas_widths_of, draw, flow_of, torch_predict
from nereid_zoo.layout.features import features_of, frechet_distance
from nereid_zoo.layout.layouts import sample_layout
from nereid_zoo.layout.likeness import diversity
from nereid_zoo.layout.neighbours import Neighbours

CHECKPOINT = Path(__file__).resolve().parents[2] / Path(__file__).parent.name / "checkpoint"
"""The trained checkpoint, an ordinary diffusers folder."""
FEATURES = CHECKPOINT.parent / "features"
"""The network by whose features distributions of layouts are compared."""
SEEDS = 4
"""Layouts of each brief whose diversity is measured; the first is what all else is about."""

CHUNK = 50
"""Briefs that are laid out at once."""
TRAINING_ROWS = 4000
"""Training layouts that distances are measured from."""

Drawer = Callable[[Sequence[int], int], list[list[Box]]]
"""Boxes for what is asked for at these places, with this seed."""
Distance = Callable[[Sequence[Section], Sequence[Sequence[Box]]], float]
"""How far layouts are from the training's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LayoutScore:
    """Figures of one way to lay out; percentages are of the briefs.

    `passed_before` and `passed_after` repair: no check of severity error is broken. `median_move` and `p90_move`: of all
    elements' greatest ways of an edge in repair, CSS pixels. `inversions_before` and `inversions`: pairs of siblings in the wrong
    order, in all layouts together; `kendall_tau` before repair. `spotless`: no warning after repair either. `score` is the mean
    after repair. `diversity`: mean 1 - MaxIoU of four seeds after repair. `fid`: from training layouts, after repair; None
    without a network that measures it, and of one brief, which has no covariance. `broken_before`, `broken`: briefs by check.
    """

    briefs: int
    passed_before: float
    passed_after: float
    spotless: float
    median_move: float
    p90_move: float
    inversions_before: int
    inversions: int
    kendall_tau: float
    score: float
    diversity: float
    fid: float | None
    broken_before: dict[str, int]
    broken: dict[str, int]

    def as_json(self) -> dict[str, Any]:
        return {name: round(value, 4) if isinstance(value, float) else value for name, value in asdict(self).items()}


@dataclass(frozen=True, slots=True)
class Asked:
    """Sections to lay out, with what is fixed, and the drafts to refine where that is the task."""

    sections: list[Section]
    drafts: list[list[Box]] | None = None


def held_out_sections(count: int, seed: int = 0, task: Task = Task.ALL, width: int | None = None) -> Asked:
    """Sections whose combination of kind, number of elements, style and screen, and whose business, training never sees.

    Only such as the solver finds a layout for: others cannot be laid out on their canvas. What a task gives is that layout's. All
    canvases are as wide as `width` (CSS pixels), where that is given.
    """
    rng = Random(seed)
    rows = [sample_row(rng, held_out=True, width=width) for _ in range(count)]
    if task is Task.REFINE:
        return Asked([section for section, _ in rows], [_shaken(boxes, rng) for _, boxes in rows])
    return Asked([_fixed(section, boxes, task, rng) for section, boxes in rows])


def _shaken(boxes: list[Box], rng: Random) -> list[Box]:
    pixels = rng.uniform(*DRAFTED)
    return [Box(*(value + rng.gauss(0, pixels) for value in box)) for box in boxes]


def _fixed(section: Section, boxes: list[Box], task: Task, rng: Random) -> Section:
    def fixed(box: Box) -> Fixed:
        match task:
            case Task.PLACE:
                return Fixed(width=box.width, height=box.height)
            case Task.SIZE:
                return Fixed(x=box.x, y=box.y)
            case Task.COMPLETE:
                return Fixed(*box) if rng.random() < 0.5 else FREE
        return FREE

    given = zip(section.elements, boxes, strict=True)
    return Section.of(section.canvas, [replace(element, fixed=fixed(box)) for element, box in given])


def score_layouts(
    drawer: Drawer,
    sections: Sequence[Section],
    progress: Callable[[int], None] = lambda done: None,
    *,
    seeds: int = SEEDS,
    distance: Distance | None = None,
) -> LayoutScore:
    """Lay out every section with each of so many seeds, check, repair, check again."""
    before: list[list[Finding]] = []
    after: list[list[Finding]] = []
    repaired: list[list[Box]] = []
    moves: list[float] = []
    scores, taus, differences = [], [], []
    for start in range(0, len(sections), CHUNK):
        places = range(start, min(start + CHUNK, len(sections)))
        drawn = zip(*(drawer(places, seed) for seed in range(seeds)), strict=True)
        for section, (first, *others) in zip(sections[start : places.stop], drawn, strict=True):
            mended = repair(section, first)
            repaired.append(mended.boxes)
            before.append(check_layout(section, first))
            after.append(check_layout(section, mended.boxes))
            distances = {move.element: move.distance for move in mended.moves}
            moves += [distances.get(element.id, 0.0) for element in section.elements]
            scores.append(score(section, after[-1]))
            taus.append(kendall_tau(section, first))
            if others:
                differences.append(diversity(section, [mended.boxes, *(repair(section, other).boxes for other in others)]))
        progress(places.stop)
    moves.sort()
    return LayoutScore(
        briefs=len(sections),
        passed_before=_percent(not has_errors(found) for found in before),
        passed_after=_percent(not has_errors(found) for found in after),
        spotless=_percent(not found for found in after),
        median_move=median(moves),
        p90_move=moves[int(0.9 * (len(moves) - 1))],
        inversions_before=sum(finding.check is Check.READING_ORDER for found in before for finding in found),
        inversions=sum(finding.check is Check.READING_ORDER for found in after for finding in found),
        kendall_tau=mean(taus),
        score=mean(scores),
        diversity=mean(differences) if differences else 0.0,
        fid=distance(sections, repaired) if distance and len(sections) > 1 else None,
        broken_before=_broken(before),
        broken=_broken(after),
    )


def _percent(passed: Iterable[bool]) -> float:
    values = list(passed)
    return 100 * sum(values) / len(values)


def _broken(layouts: list[list[Finding]]) -> dict[str, int]:
    """How many layouts break each check of severity error."""
    counts = Counter(
        str(check)
        for findings in layouts
        for check in {finding.check for finding in findings if finding.severity is Severity.ERROR}
    )
    return dict(sorted(counts.items()))


# --- who lays out ---


def transformer_drawer(
    checkpoint: Path, asked: Asked, *, steps: int = STEPS, widths: bool = False, tokens: bool = False
) -> Drawer:
    """By PyTorch in float32, with the checkpoint's own schedule; with dynamic `widths` and `tokens` where that is wanted."""
    predict, known = torch_predict(checkpoint, widths=widths, tokens=tokens), canvas_widths_of(checkpoint)
    return _drawer(predict, flow_of(checkpoint), asked, steps, known)


def exported_drawer(folder: Path, asked: Asked, *, steps: int = STEPS) -> Drawer:
    """By the engine of a layout model's folder in an exported repository, with the schedule that it was exported with.

    Raises ExportError where there is none.
    """
    from nereid_export.layout_drawing import LayoutDrawer
    from nereid_export.layout_w4a8_drawing import as_called

    if not (folder / "config.pbtxt").is_file():
        raise ExportError(f"{folder.parent} has no layout model {folder.name}")
    exported = LayoutDrawer.of(folder)
    run = exported.engines[""]

    def predict(inputs: Mapping[str, NDArray]) -> NDArray[np.float32]:
        made: NDArray[np.float32] = run(as_called(inputs), [OUT])[OUT]
        return made

    facts = exported.model.facts
    flow = Flow(facts.schedule.shift, facts.scheduler is SchedulerName.LCM)
    return _drawer(predict, flow, asked, steps, facts.canvas_widths, exported.model.limits.engine_max_batch_size)


def _drawer(predict: Predict, flow: Flow, asked: Asked, steps: int, known: KnownWidths | None, rows: int = 64) -> Drawer:
    """As a server draws: on canvases of widths that are `known`. Drafts are on such canvases already."""
    own = asked.sections if known is None else [known.section(section) for section in asked.sections]

    def drawn(places: Sequence[int], seed: int) -> list[list[Box]]:
        sections = [own[place] for place in places]
        drafts = None if asked.drafts is None else [asked.drafts[place] for place in places]
        seeds = [derived_seed(place, seed) for place in places]
        made = draw(predict, sections, seeds, drafts=drafts, steps=steps, flow=flow, rows=rows)
        return [stretched(own[place], boxes, asked.sections[place]) for place, boxes in zip(places, made, strict=True)]

    return drawn


def data_drawer(asked: Asked) -> Drawer:
    """As training layouts are made."""

    def one(place: int, seed: int) -> list[Box]:
        rng = Random(f"{place} {seed}")
        while (boxes := sample_layout(asked.sections[place], rng)) is None:
            pass
        return boxes

    return lambda places, seed: [one(place, seed) for place in places]


def flow_drawer(asked: Asked) -> Drawer:
    """By rules, the same for every seed."""
    return lambda places, seed: [flow_layout(asked.sections[place]) for place in places]


def neighbour_drawer(asked: Asked) -> Drawer:
    """As the nearest training layout of an equal structure, with seed 1 as the second nearest, and so on."""
    neighbours = Neighbours()
    return lambda places, seed: [neighbours.layout(asked.sections[place], seed) for place in places]


def draft_drawer(asked: Asked) -> Drawer:
    """The drafts as they are: what repair makes of them is the least that refining must beat."""
    drafts = asked.drafts or []
    return lambda places, seed: [drafts[place] for place in places]


def baselines(asked: Asked, task: Task) -> dict[str, Drawer]:
    """What the transformer is compared with, by name; where fields are given, that is rules alone, which keep them."""
    flow = flow_drawer(asked)
    if task is Task.REFINE:
        return {"draft": draft_drawer(asked), "flow": flow}
    if task is not Task.ALL:
        return {"flow": flow}
    return {"training data": data_drawer(asked), "flow": flow, "nearest neighbour": neighbour_drawer(asked)}


def training_distance(features: Path) -> Distance:
    """FID from 4000 training layouts, by the network of this folder; raises WeightsError."""
    measure = features_of(features)
    rng = Random(1)
    sections, boxes = zip(*(sample_row(rng) for _ in range(TRAINING_ROWS)), strict=True)
    own = measure(sections, boxes)
    return lambda sections, boxes: frechet_distance(own, measure(sections, boxes))
