"""Warnings of what may be asked for, but has no effect, or is not what something was made or measured for."""

from __future__ import annotations

from collections.abc import Sequence

from nereid.diffusion.cache_options import OFF
from nereid.diffusion.feature_cache import Level
from nereid.diffusion.options import Options, guided_steps, unguided
from nereid.diffusion.settings import Pipeline
from nereid.diffusion.solvers import SchedulerName
from nereid.flow.fields import FieldReader

FEW_STEP_SCHEDULERS = (SchedulerName.LCM, SchedulerName.TCD)
MOST_FEW_STEP_GUIDANCE = 2.0
"""Luo et al., 2023 (LCM-LoRA): beyond it pictures are oversaturated."""
MOST_TOLD_GUIDANCE = 15.0
"""Of UNets that are told the guidance, as Meng et al., 2023, and Luo et al., 2023 (LCM), train them: one more than their w."""


def unsuitable(fields: FieldReader, prompt: int, pipeline: Pipeline, options: Options, size: tuple[int, int]) -> list[str]:
    """Warnings of what may be asked for, but was not what something was made or measured for."""
    said, usual = [], (pipeline.default_height, pipeline.default_width)
    if pipeline.few_step and options.guided:
        said.append(
            f"guidance_scale: {options.guidance:g} is unsuitable for this few-step model; "
            f"{pipeline.default_guidance:g} is what it was distilled for"
        )
    elif pipeline.time_cond_proj_dim is not None and options.guidance > MOST_TOLD_GUIDANCE:
        said.append(
            f"guidance_scale: {options.guidance:g} is unsuitable for this model, whose UNet is told the guidance: such were "
            f"trained on {MOST_TOLD_GUIDANCE:g} at most"
        )
    elif options.guided and options.guidance > MOST_FEW_STEP_GUIDANCE and options.scheduler in FEW_STEP_SCHEDULERS:
        said.append(
            f"guidance_scale: {options.guidance:g} is unsuitable for {options.scheduler}, whose models and LoRAs were distilled "
            f"for guidance of 1 to {MOST_FEW_STEP_GUIDANCE:g}"
        )
    low, high = options.interval
    if options.guided and low < high and not guided_steps(options.interval, options.steps):
        said.append(f"guidance_interval: no step of {options.steps} begins within {low:g} to {high:g}; none is guided")
    if options.guidance_cache is not None and not guided_steps(options.interval, options.steps):
        said.append("guidance_cache: it has no effect, because no step is guided")
    for name in ("cache", "guidance_cache"):
        asked = fields.values(name, OFF)[prompt].strip()
        if asked in set(Level) and (options.guidance > pipeline.default_guidance or size != usual):
            said.append(
                f"{name}: {asked!r} was measured at guidance_scale {pipeline.default_guidance:g} and {usual[1]} x {usual[0]}; "
                "elsewhere it may cost more"
            )
    return said


def idle_negative_prompts(fields: FieldReader, pipeline: Pipeline, negative_prompts: Sequence[str]) -> list[str]:
    """A warning for each negative prompt that changes nothing, "" for the others; raises InvalidRequestError."""
    found = []
    for guidance, text in zip(fields.values("guidance_scale", pipeline.default_guidance), negative_prompts, strict=True):
        why = unguided(guidance, pipeline) if text.strip() else ""
        found.append(f"negative_prompt: it has no effect {why}" if why else "")
    return found
