"""Layouts in this process: sections to boxes by a published model's engines, called directly, as the server would draw them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from numpy.typing import NDArray

from nereid.diffusion.branch_cache import Branch, Plans
from nereid.diffusion.dynamic_width import WidthTable
from nereid.diffusion.feature_cache import CachePlan, Variant
from nereid.diffusion.plan import OUT, EngineCall, commit, pack
from nereid.diffusion.solvers import SchedulerName, SolverTable, build_table
from nereid.diffusion.state import ImageRun
from nereid.engines.engine_process_main import Run, load_engine
from nereid.flow.errors import RequestError
from nereid.layout.elements import Box, Section
from nereid.layout.rows import boxes_drawn, layout_runs
from nereid.layout.settings import LayoutLimits, LayoutModel, outputs_of
from nereid_export.configs import read_config
from nereid_export.errors import ExportError

Stepped = Callable[[Sequence[int], EngineCall, Mapping[str, NDArray]], None]
"""Shown every call, the places of its sections among those that are drawn, and its outputs before they are used."""


@dataclass(frozen=True, slots=True)
class LayoutDrawer:
    """Draws with the engines of a model; `engines` has them by the names of their graphs, "" the whole transformer."""

    model: LayoutModel
    engines: Mapping[str, Run]

    @classmethod
    def of(cls, folder: Path) -> LayoutDrawer:
        """Of a model's folder in a repository, with the settings with which it is served; raises ExportError."""
        parameters = {key: value.string_value for key, value in read_config(folder / "config.pbtxt").parameters.items()}
        try:
            model = LayoutModel.read(folder.name, folder / "1", LayoutLimits.from_parameters(parameters), "")
            settings = model.worker_options().settings
            files = {"": settings["file"], **{name: its["file"] for name, its in settings["others"].items()}}
            limits = model.limits
            return cls(model, {name: load_engine(Path(file), limits.engine, limits.threads) for name, file in files.items()})
        except ValueError as error:
            raise ExportError(str(error)) from None

    def table(self, scheduler: SchedulerName, steps: int) -> SolverTable:
        """Raises ScheduleError for what this solver does not do."""
        return build_table(scheduler, self.model.facts.schedule, steps)

    def draw(
        self,
        sections: Sequence[Section],
        seeds: Sequence[int],
        table: SolverTable,
        cache: Plans | None = None,
        stepped: Stepped = lambda places, call, outputs: None,
        *,
        watched: bool = False,
        widths: WidthTable | None = None,
    ) -> list[list[Box]]:
        """Boxes of each section with its seed; raises ExportError where an engine gives what no layout is made of.

        Every step computes both branches and gives them to be `watched`, whatever `cache` says, where that is wanted.
        """
        cache = dict.fromkeys(Branch, CachePlan.every(1, 0, len(table))) if watched else cache
        pairs = zip(sections, seeds, strict=True)
        runs = [layout_runs(section, None, [seed], table, cache, widths)[0] for section, seed in pairs]
        for places in self._groups(runs):
            while going := [place for place in places if not runs[place].done]:
                first = min(going, key=lambda place: runs[place].step)
                step, variant = runs[first].step, runs[first].variant
                together = [place for place in going if (runs[place].step, runs[place].variant) == (step, variant)]
                self._step([runs[place] for place in together], together, stepped, watched)
        return [boxes_drawn(section, run) for section, run in zip(sections, runs, strict=True)]

    def _groups(self, runs: Sequence[ImageRun]) -> Iterator[list[int]]:
        """Places of runs that can share calls, as many as one takes."""
        shapes: dict[object, list[int]] = defaultdict(list)
        for place, run in enumerate(runs):
            shapes[run.shape].append(place)
        rows = self.model.limits.engine_max_batch_size
        for places in shapes.values():
            yield from (places[start : start + rows] for start in range(0, len(places), rows))

    def _step(self, runs: Sequence[ImageRun], places: Sequence[int], stepped: Stepped, watched: bool) -> None:
        call = pack(runs)
        call = replace(call, outputs=(OUT, *Branch)) if watched else call
        graph = "" if call.variant is Variant.FULL else str(call.variant)
        outputs = self.engines[graph](call.inputs, outputs_of(call.variant, call.outputs))
        stepped(places, call, outputs)
        try:
            for error in commit(runs, call, outputs):
                if error is not None:
                    raise error
        except RequestError as error:
            raise ExportError(f"a layout cannot be drawn: {error}") from None
