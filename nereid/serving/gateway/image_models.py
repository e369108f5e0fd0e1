"""What the gateway knows of an image pipeline before it asks it: its usual steps and size, and how large pictures may be."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nereid.diffusion.settings import Limits
from nereid.diffusion.solvers.names import SCHEDULERS, SchedulerName, default_scheduler
from nereid.diffusion.solvers.scheduler_file import FLOW_MATCHING

_SIZE_MULTIPLE = 8
"""Of most latents."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageModel:
    """Sides are multiples of `size_multiple`, of pictures that are only encoded of `vae_scale_factor`; width x height is at most
    `most_pixels`. `steps` None: its files do not say.
    """

    steps: int | None = None
    guidance: float | None = None
    scheduler: SchedulerName | None = None
    """Of both, None: its files do not say."""
    size_multiple: int = _SIZE_MULTIPLE
    vae_scale_factor: int = _SIZE_MULTIPLE
    most_pixels: int = Limits().max_pixels
    most_steps: int = Limits().max_steps
    is_flow: bool = False
    """A rectified flow has no Karras noise levels."""

    @classmethod
    def of(cls, facts: Mapping[str, Any], limits: Limits) -> ImageModel:
        """`facts` is the pipeline's file, as export wrote it."""
        scheduler = facts.get("scheduler", {})
        return cls(
            steps=facts.get("default_steps"),
            guidance=facts.get("default_guidance"),
            scheduler=_solver(facts.get("default_scheduler"), scheduler),
            size_multiple=facts.get("size_multiple", _SIZE_MULTIPLE),
            vae_scale_factor=facts.get("vae_scale_factor", _SIZE_MULTIPLE),
            most_pixels=limits.max_pixels,
            most_steps=limits.max_steps,
            is_flow=scheduler.get("_class_name") in FLOW_MATCHING,
        )

    def fitting(self, width: int, height: int) -> tuple[int, int]:
        """The nearest width and height that the pipeline draws, of about these proportions."""
        return self._nearest(width, height, self.size_multiple)

    def encoded(self, width: int, height: int) -> tuple[int, int]:
        """The nearest width and height of which it makes latents."""
        return self._nearest(width, height, self.vae_scale_factor)

    def _nearest(self, width: int, height: int, multiple: int) -> tuple[int, int]:
        scale = min(1.0, (self.most_pixels / (width * height)) ** 0.5)
        sides = [max(1, round(side * scale / multiple)) for side in (width, height)]
        while sides[0] * sides[1] * multiple**2 > self.most_pixels and max(sides) > 1:
            sides[sides.index(max(sides))] -= 1  # rounded up
        return sides[0] * multiple, sides[1] * multiple


def _solver(chosen: Any, config: Mapping[str, Any]) -> SchedulerName | None:
    """What export has chosen for the checkpoint's scheduler; a version before may have known no solver for it."""
    if chosen in SCHEDULERS:
        return SchedulerName(chosen)
    return default_scheduler(config) if config else None
