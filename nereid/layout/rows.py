"""A layout's candidates as rows of the denoising loop, and boxes of a row; knows neither requests nor engines.

A layout is denoised as an image is: by plans, solvers and calls of nereid.diffusion. Its sample is tokens x 4 instead of channels
x height x width; sections of one token bucket have equal shapes, and so share calls.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from nereid.diffusion.branch_cache import KeptBranches, Plans
from nereid.diffusion.dynamic_width import WidthTable
from nereid.diffusion.families import Conditioning
from nereid.diffusion.requests import Given, ImageRow
from nereid.diffusion.solvers import (
    LATEST_CLEAN,
    SchedulerConfig,
    SchedulerName,
    SolverState,
    SolverTable,
    build_table,
    noise_levels,
)
from nereid.diffusion.state import ImageRun
from nereid.flow.noise import Purpose, normal
from nereid.layout.elements import Box, Section
from nereid.layout.settings import ENGINE_NAME
from nereid.layout.tokens import boxes_of, bucket_of, tokens_of


def layout_runs(
    section: Section,
    drafts: Sequence[Box] | None,
    seeds: Sequence[int],
    table: SolverTable,
    cache: Plans | None = None,
    widths: WidthTable | None = None,
) -> list[ImageRun]:
    """A run for each seed, at its first step. Fields that are fixed stand in the sample from the start, and stay.

    `cache` are plans of what its steps compute of the transformer's branches, `widths` which slices of it compute them.
    """
    tokens = tokens_of([section], bucket_of(len(section)), None if drafts is None else [drafts])
    told = {name: value[0] for name, value in tokens.as_inputs().items()}
    shape, given = tokens.known.shape[1:], Given(tokens.known[0], tokens.field_mask[0] >= 1)
    return [
        ImageRun(
            ImageRow(
                table=table,
                begin=0,
                end=len(table),
                seed=seed,
                positive=Conditioning(states=None, extra=told),
                latent_shape=shape,
                given=given,
                engine=ENGINE_NAME,
                widths=widths,
            ),
            SolverState.start(given.put(normal(seed, Purpose.INITIAL_LATENTS, shape) * np.float32(table.initial_scale))),
            0,
            kept=None if cache is None else KeptBranches(cache, 1 + len(section)),
        )
        for seed in seeds
    ]


def boxes_drawn(section: Section, run: ImageRun) -> list[Box]:
    """Where the run stands, in whole CSS pixels."""
    return boxes_of(section, run.state.sample)


def boxes_predicted(section: Section, run: ImageRun) -> list[Box]:
    """What the run's last step predicted that its boxes will be."""
    clean = run.state.memory[LATEST_CLEAN]
    return boxes_of(section, clean if run.row.given is None else run.row.given.put(clean))


def end_sooner(run: ImageRun, steps: int, scheduler: SchedulerName, schedule: SchedulerConfig) -> None:
    """Have the run take so many steps more and no others, from its noise level to none: the checkpoint's own, spaced as its are.

    They are longer than those that a plan of its branches was made for: from here on, all is computed.
    """
    run.kept = None
    level = float(run.row.table.timesteps[run.local_step]) / schedule.num_train_timesteps
    sigmas = tuple(noise_levels(steps, schedule.shift, level).tolist())
    table = build_table(scheduler, replace(schedule, sigmas=sigmas, timestep_spacing=None, timesteps=None), steps)
    run.row = replace(run.row, table=table, origin=run.step, end=run.step + steps)
