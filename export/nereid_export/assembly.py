"""Lays built engines out as a Triton repository, with the configs, the pipeline's settings and the manifest."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nereid.diffusion.settings import PIPELINE_FILE
from nereid.diffusion.solvers import default_scheduler
from nereid_export import configs
from nereid_export.auto import Auto
from nereid_export.built import Built, made_with, packages_of
from nereid_export.checkpoint import Checkpoint
from nereid_export.clip_tokenizers import write_tokenizers
from nereid_export.described import ALTERNATIVES, describe
from nereid_export.engines import BUILDERS
from nereid_export.engines.base import engine_bytes, engine_files
from nereid_export.engines.precision import ERROR_BOUNDS
from nereid_export.frame import MANIFEST, MANIFEST_VERSION, file_digests, models_of, versions
from nereid_export.memory import run_memories
from nereid_export.options import ExportOptions
from nereid_export.publish import adopt
from nereid_export.tensor_names import tell_names
from nereid_export.warm_up import add_warm_up


@dataclass(frozen=True, slots=True, kw_only=True)
class Assembly:
    """All that one repository is made of."""

    checkpoint: Checkpoint
    digest: str
    """The checkpoint's."""
    options: ExportOptions
    built: list[Built]
    facts: dict[str, Any]
    """pipeline.json, without the engines' memory."""
    pictures: dict[str, Any] | None
    """What the gate has found of whole pictures; None where everything is float32, or could not be run."""
    decoders: dict[str, Any] | None = None
    """What the tiny decoder's pictures cost beside the full one's; None where there is none."""
    auto: Auto | None = None
    """What the engines were chosen from; None where one was asked for."""

    def write(self, repository: Path) -> dict[str, Any]:
        """Lay the whole repository out, other pipelines' models of `out` included; returns the manifest."""
        options, facts = self.options, self.facts
        shutil.rmtree(repository, ignore_errors=True)
        repository.mkdir()
        made = configs.pipeline_configs(
            prefix=options.name,
            family=self.checkpoint.family,
            channels=facts["latent_channels"],
            max_batch_size=options.max_batch_size,
            force_zeros=facts["force_zeros_for_empty_prompt"],
            unet_min_rows=max(engine.invariant_from or 1 for engine in self.built if engine.component.denoises),
        )
        engines = [
            (engine, configs.engine_config(engine.component, BUILDERS[engine.engine], engine.target, prefix=options.name))
            for engine in self.built
        ]
        for engine, config in engines:
            add_warm_up(config, engine.component, engine.target, engine.memory)
            tell_names(engine.component, config, made.values())
        for source, config in made.items():
            configs.write_model(config, source, repository)
        for engine, config in engines:
            folder = repository / config.name
            configs.write_engine_config(config, folder)
            link_engine(engine, folder / "1")
            for labelled, other in self._alternatives(engine).items():
                link_engine(other, folder / ALTERNATIVES / labelled)
        memory = run_memories({engine.component.name: engine.memory for engine in self.built})
        text = json.dumps({**facts, "memory": memory}, indent=1)
        for model in ("denoise", "image_output", "text_to_image_stream", "tokenizer"):
            (repository / configs.prefixed(model, options.name) / "1" / PIPELINE_FILE).write_text(text)
        write_tokenizers(self.checkpoint, repository / configs.prefixed("tokenizer", options.name) / "1")
        ours = {model.name for model in repository.iterdir()}
        home = repository / configs.prefixed("text_to_image", options.name)
        manifest = self._manifest(repository)
        (home / MANIFEST).write_text(json.dumps(manifest, indent=1))
        adopt(options.out, repository, ours | models_of(options.out, configs.prefixed("text_to_image", options.name)))
        return manifest

    def _manifest(self, repository: Path) -> dict[str, Any]:
        options, scheduler = self.options, self.checkpoint.config("scheduler")
        apart = ("checkpoint", "out", "plan", "auto", "lora", "tiny_vae")
        given = {name: getattr(options, name) for name in options.__slots__ if name not in apart}
        if options.lora:
            given["lora"] = ", ".join(map(str, options.lora))
        if options.tiny_vae is not None:
            given["tiny_vae"] = options.tiny_vae
        return {
            "version": MANIFEST_VERSION,
            "source": {
                "name": options.checkpoint.resolve().name,
                "sha256": self.digest,
                "architecture": self.checkpoint.index["_class_name"],
            },
            # Where a class has no solver here, requests that name none are served by another one.
            "scheduler": {"checkpoint": scheduler.get("_class_name"), "default": str(default_scheduler(scheduler))},
            "arguments": {key: str(value) for key, value in {**given, **options.plan.asked(), **options.auto.asked()}.items()},
            "versions": versions(packages_of(*map(made_with, self._all_built()))),
            "engines": {configs.prefixed(engine.component.name, options.name): engine_said(engine) for engine in self.built},
            **({} if self.pictures is None else {"pictures": self.pictures}),
            **({} if self.decoders is None else {"decoders": self.decoders}),
            **self._choice(),
            "models": sorted(folder.name for folder in repository.iterdir()),
            "files": file_digests(repository),
        }

    def _alternatives(self, engine: Built) -> dict[str, Built]:
        return {} if self.auto is None else self.auto.alternatives(engine.component.name)

    def _all_built(self) -> list[Built]:
        return [*self.built, *(other for engine in self.built for other in self._alternatives(engine).values())]

    def _choice(self) -> dict[str, Any]:
        """The tables, and all that another machine needs to choose again."""
        if self.auto is None:
            return {}
        named = {configs.prefixed(engine.component.name, self.options.name): engine for engine in self.built}
        contests = {model: self.auto.contests[engine.component.name] for model, engine in named.items()}
        return {
            "candidates": {model: [row.written() for row in contest.rows] for model, contest in contests.items()},
            "choice": {
                "max_engine_mib": self.options.auto.max_engine_mib,
                "components": {
                    model: describe(engine.component, engine.target, contests[model].expected) for model, engine in named.items()
                },
                "alternatives": {
                    model: {labelled: engine_said(other) for labelled, other in self._alternatives(engine).items()}
                    for model, engine in named.items()
                },
            },
        }


def engine_said(engine: Built) -> dict[str, Any]:
    """What a manifest says of an engine."""
    return {
        "engine": str(engine.engine),
        **({"threads": engine.target.plan.threads} if engine.target.plan.threads else {}),
        "precision": str(engine.target.of(engine.component)),
        "bytes": engine_bytes(engine.folder),
        "seconds": engine.seconds,
        **_findings(engine),
        **({} if engine.memory is None else {"memory": engine.memory}),
        **engine.account,
    }


def link_engine(engine: Built, folder: Path) -> None:
    """The engine's files at a second place."""
    folder.mkdir(parents=True, exist_ok=True)
    for file in engine_files(engine.folder):
        # A link, so that an export interrupted from here on still finds its engine.
        (folder / file.name).hardlink_to(file)


def _findings(engine: Built) -> dict[str, Any]:
    """What the check has found, or why there was none."""
    if engine.unchecked:
        return {"checked": False, "reason": engine.unchecked}
    return {
        "checked": True,
        "error_bound": ERROR_BOUNDS[engine.target.of(engine.component)],
        **({} if engine.end_error is None else {"end_error": engine.end_error}),
        "batch_invariant_from_rows": engine.invariant_from,
        "milliseconds": engine.milliseconds,
        "checks": [asdict(check) for check in engine.checks],
    }
