"""What the served pipeline must know of its checkpoint besides the engines: sizes, defaults, scheduler settings."""

from __future__ import annotations

from typing import Any

from nereid.diffusion.solvers import ScheduleError, SchedulerConfig, build_table, default_scheduler
from nereid_export.checkpoint import Checkpoint
from nereid_export.errors import ExportError
from nereid_export.families import export_family
from nereid_export.split_unet import attends, features_channels


def pipeline_facts(checkpoint: Checkpoint, latents_to_rgb: list[list[float]]) -> dict[str, Any]:
    """The contents of pipeline.json (nereid.diffusion.settings.Pipeline reads it); raises ExportError for bad settings."""
    scheduler = checkpoint.config("scheduler")
    few_step = is_few_step(scheduler)
    steps = 4 if few_step else 20
    try:
        # A request that names nothing must work, so its very table is made here once.
        build_table(default_scheduler(scheduler), SchedulerConfig.from_diffusers(scheduler), steps)
    except (ScheduleError, ValueError, TypeError) as error:
        raise ExportError(f"{checkpoint.folder / 'scheduler'}: {error}") from None
    unet, vae = checkpoint.config("unet"), checkpoint.config("vae")
    scale = 2 ** (len(vae["block_out_channels"]) - 1)
    sample_size = unet.get("sample_size") or 64
    height, width = (sample_size, sample_size) if isinstance(sample_size, int) else sample_size
    embedded = unet.get("time_cond_proj_dim")
    return {
        "family": checkpoint.family,
        "latent_channels": checkpoint.latent_channels,
        "vae_scale_factor": scale,
        "size_multiple": scale,
        "default_width": width * scale,
        "default_height": height * scale,
        "default_scheduler": default_scheduler(scheduler),
        "default_steps": steps,
        "default_guidance": (8.5 if embedded else 1.0) if few_step else export_family(checkpoint.family).default_guidance,
        "few_step": few_step,
        "force_zeros_for_empty_prompt": bool(checkpoint.index.get("force_zeros_for_empty_prompt", False)),
        "time_cond_proj_dim": int(embedded) if embedded else None,
        "embedding_widths": {
            "encoder_hidden_states": int(unet["cross_attention_dim"]),
            **{extra.name: extra.width for extra in export_family(checkpoint.family).extra_inputs(checkpoint.config)},
        },
        "latents_to_rgb": latents_to_rgb,
        "cache": _cache(checkpoint),
        "scheduler": scheduler,
        "tiny_decoder": checkpoint.tiny_vae is not None,
        "inpainting": checkpoint.inpainting,
    }


def _cache(checkpoint: Checkpoint) -> dict[str, Any] | None:
    """Where the UNet is cut, and what `nereid calibrate` will have found."""
    branch = checkpoint.cache_branch
    if branch is None:
        return None
    unet = checkpoint.config("unet")
    channels = features_channels(unet, branch, checkpoint.folder / "unet")
    return {"branch": branch, "channels": channels, "attends": attends(unet, branch), "calibrations": []}


def is_few_step(scheduler: dict[str, Any]) -> bool:
    """Whether the checkpoint was distilled for a few steps: LCM, TCD, or trailing timesteps without zero terminal SNR.

    Turbo and Lightning models ship trailing timesteps; so do models trained with zero terminal SNR, which take many steps.
    """
    if scheduler.get("_class_name") in ("LCMScheduler", "TCDScheduler", "FlowMatchLCMScheduler"):
        return True
    return scheduler.get("timestep_spacing") == "trailing" and not scheduler.get("rescale_betas_zero_snr")
