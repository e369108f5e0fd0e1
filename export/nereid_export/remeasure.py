"""`nereid export remeasure`: the engines that `--engine auto` has built are measured here, and the fastest ones are served."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nereid.diffusion.settings import PIPELINE_FILE
from nereid_export import configs
from nereid_export.auto import memory_bound
from nereid_export.choice import Row, label
from nereid_export.contest import Contest, Entrant
from nereid_export.described import ALTERNATIVES, component_of, target_of
from nereid_export.edited import damage_named, edited, rewrite_facts
from nereid_export.engines import BUILDERS, Engine
from nereid_export.engines.base import engine_files
from nereid_export.errors import ExportError
from nereid_export.frame import Progress
from nereid_export.memory import measure_memory, run_memories
from nereid_export.speed import usual_rows
from nereid_export.tensor_names import tell_names
from nereid_export.warm_up import add_warm_up


def remeasure(repository: Path, progress: Progress) -> list[dict[str, Any]]:
    """Choose again and publish; returns the manifests. Raises ExportError, after which the repository is as it was before."""
    copied = edited(repository, progress, "remeasured", lambda manifest: "choice" in manifest, "with --engine auto")
    with copied as (beside, homes):
        progress.total(1 + sum(2 * len(manifest["engines"]) for manifest in homes.values()))
        for home, manifest in homes.items():
            with damage_named(repository / home):
                _Pipeline(beside, manifest).choose(progress)
    return list(homes.values())


@dataclass(frozen=True, slots=True)
class _Pipeline:
    """A copy of one pipeline, that is changed here, and its manifest."""

    repository: Path
    manifest: dict[str, Any]

    def choose(self, progress: Progress) -> None:
        """Measure every component's engines, and put the chosen ones in their places."""
        contests, figures = {}, {}
        bound = memory_bound(self.manifest["choice"]["max_engine_mib"])
        for model, described in self.manifest["choice"]["components"].items():
            progress.step(f"{model}: measuring memory")
            contests[model], figures[model] = self._contest(model, described)
            progress.step(f"{model}: measuring {len(contests[model].entrants)} engines")
            contests[model].measure(bound, progress.detail)
        before = {model: _label(its) for model, its in self.manifest["engines"].items()}
        for model, contest in contests.items():
            self._serve(model, contest, contest.elect(progress.detail), figures[model])
            self.manifest["candidates"][model] = [row.written() for row in contest.rows]
        self._tell_loops(contests)
        now = {model: _label(its) for model, its in self.manifest["engines"].items()}
        if any(before[model] != now[model] for model, contest in contests.items() if contest.component.denoises):
            self._forget_calibrations()

    def _forget_calibrations(self) -> None:
        """What may be kept between steps was measured with other engines."""
        file = self.repository / configs.prefixed("denoise", self.manifest["arguments"]["name"]) / "1" / PIPELINE_FILE
        cache = json.loads(file.read_text()).get("cache")
        emptied = None if cache is None else {**cache, "calibrations": []}
        rewrite_facts(self.repository, self.manifest, cache=emptied, guidance_calibrations=[])
        self.manifest.pop("calibrations", None)

    def _contest(self, model: str, described: dict[str, Any]) -> tuple[Contest, dict[str, dict[str, Any]]]:
        """The contest, and what the manifest says of its engines by their labels."""
        component, served = component_of(described), self.manifest["engines"][model]
        figures = {_label(served): served, **self.manifest["choice"]["alternatives"][model]}
        entrants, refused = {}, []
        for name, its in figures.items():
            engine, target = Engine(its["engine"]), target_of(described, its["precision"])
            builder, folder = BUILDERS[engine], self._folder(model, name)
            try:
                builder.require_run(target)
            except ExportError as error:
                refused.append(Row(engine=engine, precision=its["precision"], dropped=str(error)))
                continue
            its["memory"] = measure_memory(component, folder / builder.filename, target, builder.probe(component, target))
            worst = max(check["relative_error"] for check in its["checks"])
            entrants[name] = Entrant(engine=engine, target=target, folder=folder, error=worst, memory=its["memory"])
        # One row for each, however many numbers of threads it was measured with where it was built.
        left = {_label(known): _row(known) for known in self.manifest["candidates"][model] if _label(known) not in figures}
        return Contest(component, tuple(described["expected_rows"]), entrants, [*refused, *left.values()]), figures

    def _folder(self, model: str, name: str) -> Path:
        """Where an engine's files are."""
        if name == _label(self.manifest["engines"][model]):
            return self.repository / model / "1"
        return self.repository / model / ALTERNATIVES / name

    def _serve(self, model: str, contest: Contest, row: Row, figures: dict[str, dict[str, Any]]) -> None:
        before = self.manifest["engines"][model]
        if row.label != _label(before):
            served, chosen = self._folder(model, _label(before)), self._folder(model, row.label)
            _move(served, served.parent / ALTERNATIVES / _label(before))
            _move(chosen, served)
            chosen.rmdir()
        if row.label != _label(before) or row.threads != before.get("threads", 0):
            self._configure(model, contest, row, figures[row.label].get("memory"))
        now = figures[row.label]
        losers = {name: its for name, its in figures.items() if name != row.label}
        self.manifest["choice"]["alternatives"][model] = losers
        now |= {"milliseconds": row.milliseconds[usual_rows(contest.component)], "batch_invariant_from_rows": row.invariant_from}
        for its in figures.values():
            its.pop("threads", None)
            if its.get("memory", {}) is None:
                del its["memory"]
        self.manifest["engines"][model] = {**now, **({"threads": row.threads} if row.threads else {})}

    def _configure(self, model: str, contest: Contest, row: Row, memory: dict[str, Any] | None) -> None:
        folder, prefix = self.repository / model, self.manifest["arguments"]["name"]
        before = configs.read_config(folder / "config.pbtxt")
        shutil.rmtree(folder / "configs", ignore_errors=True)
        builder, target = BUILDERS[Engine(row.engine)], contest.target(row)
        config = configs.engine_config(contest.component, builder, target, prefix=prefix)
        add_warm_up(config, contest.component, target, memory)
        configs.write_engine_config(config, folder)
        for caller in sorted(set(self.manifest["models"]) - set(self.manifest["engines"])):
            edited = configs.read_config(self.repository / caller / "config.pbtxt")
            unedited = edited.SerializeToString(deterministic=True)
            tell_names(contest.component, config, [edited], before=before)
            if edited.SerializeToString(deterministic=True) != unedited:
                configs.write_config(edited, self.repository / caller)

    def _tell_loops(self, contests: dict[str, Contest]) -> None:
        """What the Python models know of their engines: the UNet's fewest rows, and everyone's memory."""
        engines = {contest.component.name: self.manifest["engines"][model] for model, contest in contests.items()}
        denoise = self.repository / configs.prefixed("denoise", self.manifest["arguments"]["name"])
        config = configs.read_config(denoise / "config.pbtxt")
        called = [contest.component.name for contest in contests.values() if contest.component.denoises]
        fewest = str(max(engines[name]["batch_invariant_from_rows"] or 1 for name in called))
        if config.parameters["unet_min_batch_size"].string_value != fewest:
            config.parameters["unet_min_batch_size"].string_value = fewest
            configs.write_config(config, denoise)
        memory = run_memories({name: its.get("memory") for name, its in engines.items()})
        rewrite_facts(self.repository, self.manifest, memory=memory)


def _label(figures: dict[str, Any]) -> str:
    return label(figures["engine"], figures["precision"])


def _row(written: dict[str, Any]) -> Row:
    """Of an engine that was not published: it stays dropped for the reason it had."""
    return Row(
        engine=written["engine"],
        precision=written["precision"],
        dropped=written.get("dropped") or "it was not chosen where its pictures could have been checked",
    )


def _move(source: Path, target: Path) -> None:
    target.mkdir(parents=True, exist_ok=True)
    for file in engine_files(source):
        file.rename(target / file.name)
