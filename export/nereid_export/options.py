"""What `nereid export diffusion` may be asked for."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from nereid_export.candidates import AutoOptions
from nereid_export.engines import Engine
from nereid_export.engines.plan_options import PlanOptions
from nereid_export.engines.precision import Precisions
from nereid_export.frame import Device
from nereid_export.lora import Lora
from nereid_export.tiny_vae import TinyVae


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportOptions:
    """One export of a diffusion checkpoint."""

    checkpoint: Path
    out: Path
    engine: Engine = Engine.ONNXRUNTIME
    precision: Precisions = field(default_factory=Precisions)
    device: Device = Device.CPU
    max_batch_size: int = 8
    name: str = ""
    max_side: int = 1024
    calibration_prompts: Path | None = None
    """A file of prompts, one a line; those of the checkpoint's scorer, or random words, where None."""
    lora: tuple[Lora, ...] = ()
    cache_branch: int | None = None
    """Where the UNet is cut for feature caching; not at all where None."""
    tiny_vae: TinyVae | None = None
    """Whose decoder is served beside the checkpoint's own."""
    plan: PlanOptions = field(default_factory=PlanOptions)
    auto: AutoOptions = field(default_factory=AutoOptions)

    def engine_rows(self, component: str) -> int:
        """Guidance doubles the rows of the UNet; prompt and negative prompt meet in the text encoders' batches."""
        return 2 * self.max_batch_size if component.startswith(("unet", "text_encoder")) else self.max_batch_size
