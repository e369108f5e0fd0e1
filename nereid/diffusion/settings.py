"""What one exported pipeline is, and the limits it is served with; read once, resolved, frozen."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np

from nereid.diffusion.feature_cache import FEATURES, SHALLOW, CacheCalibration, FeatureCache
from nereid.diffusion.solvers import SchedulerConfig, SchedulerName
from nereid.diffusion.vae_tiles import BYTES_PER_PIXEL, VaeTiling
from nereid.engines.memory import RunMemory
from nereid.flow.errors import InvalidRequestError
from nereid.flow.exported import exported_facts
from nereid.flow.parameters import read_parameters, require_one_of

PIPELINE_FILE = "pipeline.json"
"""Where export leaves a pipeline's facts, in the version folders of the models that need them."""


class Decoder(StrEnum):
    """The VAE decoders that a request may name."""

    FULL = "full"
    TINY = "tiny"

    @classmethod
    def parse(cls, name: str, *, tiny: bool) -> Decoder:
        """`tiny`: whether the pipeline has a tiny one. Raises InvalidRequestError."""
        if name == cls.TINY and not tiny:
            raise InvalidRequestError.of("decoder", name, "full: the pipeline was exported without a tiny one (--tiny-vae)")
        if name not in tuple(cls):
            raise InvalidRequestError.of("decoder", name, " or ".join(cls) if tiny else str(cls.FULL))
        return cls(name)

    @property
    def component(self) -> str:
        """The name of its engine."""
        return "vae_decoder_tiny" if self is Decoder.TINY else "vae_decoder"


@dataclass(frozen=True, slots=True, kw_only=True)
class Pipeline:
    """Facts of a checkpoint; `embedding_widths` are those of the UNet's inputs that a request's embeddings become."""

    family: str
    latent_channels: int
    vae_scale_factor: int
    size_multiple: int
    default_width: int
    default_height: int
    default_scheduler: SchedulerName
    default_steps: int
    default_guidance: float
    few_step: bool
    force_zeros_for_empty_prompt: bool
    time_cond_proj_dim: int | None
    embedding_widths: Mapping[str, int] = field(default_factory=dict)
    latents_to_rgb: tuple[tuple[float, ...], ...]
    scheduler: SchedulerConfig
    memory: Mapping[str, RunMemory] = field(default_factory=dict)
    """What a run of each engine needs, by its component's name, where export has measured it."""
    cache: FeatureCache | None = None
    """Where the UNet is cut for feature caching."""
    guidance_calibrations: tuple[CacheCalibration, ...] = ()
    """What was measured of guidance's reuse."""
    tiny_decoder: bool = False
    """Whether there is a tiny VAE decoder beside the full one."""
    inpainting: bool = False
    """Whether the UNet was made to draw parts of pictures: it is told the mask and the rest of the picture."""

    def feature_bytes(self, pixels: int, *, guided: bool, item_bytes: int) -> int:
        """What the kept features of one image of `pixels` take."""
        if self.cache is None:
            return 0
        return (2 if guided else 1) * self.cache.feature_bytes(pixels // self.vae_scale_factor**2, item_bytes)

    def shared_bytes(self, pixels: int, rows: int) -> int:
        """What features of a call of so many rows of pictures of `pixels` take in shared memory, there and back."""
        return 0 if self.cache is None else 2 * rows * self.cache.feature_bytes(pixels // self.vae_scale_factor**2, 4)

    def require_shared_memory(self, limits: Limits) -> None:
        """Raise ValueError where not even one guided image of the usual size may cache."""
        if limits.on_gpu:
            return
        needed = limits.concurrent_calls * self.shared_bytes(self.default_width * self.default_height, 2)
        if needed > limits.features_shared_bytes:
            raise ValueError(
                f"/dev/shm: {limits.features_shared_bytes / 2**20:.1f} MiB are there for features (features_shared_bytes); one "
                f"image of {self.default_width} x {self.default_height} needs {needed / 2**20:.1f} MiB (docker run --shm-size), "
                "or export without --cache-branch"
            )

    def image_bytes(
        self,
        pixels: int,
        *,
        guided: bool,
        tiling: VaeTiling,
        encoded_pixels: int = 0,
        decoder: Decoder = Decoder.FULL,
        caching: bool = False,
    ) -> float:
        """What one image of `pixels`, from one of `encoded_pixels`, needs at its largest engine; 0 where export measured nothing.

        No call of the VAE is for more than a tile; where there are several, the whole picture is held beside them.
        """

        def seen(pixels: int) -> tuple[int, int]:
            tile = min(pixels, tiling.tile_pixels)
            return tile, BYTES_PER_PIXEL * pixels if pixels > tile else 0

        rows = 2 if guided else 1
        runs = {
            "unet": (rows, pixels, 0),
            SHALLOW: (rows if caching else 0, pixels, 0),
            decoder.component: (1, *seen(pixels)),
            "vae_encoder": (int(encoded_pixels > 0), *seen(encoded_pixels)),
        }
        needed = (self.memory[name].run_bytes(*run) + beside for name, (*run, beside) in runs.items() if name in self.memory)
        return max(needed, default=0.0)

    def preview_bytes(self, pixels: int, tiling: VaeTiling) -> float:
        """What decoding a watched image's previews needs beside its steps; 0 where they are not decoded."""
        measured = self.memory.get(Decoder.TINY.component) if self.tiny_decoder else None
        seen = min(pixels, tiling.tile_pixels)
        return 0.0 if measured is None else measured.run_bytes(1, seen) + (BYTES_PER_PIXEL * pixels if pixels > seen else 0)

    @classmethod
    def from_json(cls, text: str) -> Pipeline:
        """Parse what export writes; `scheduler` is the checkpoint's own scheduler_config.json."""
        return cls._of(json.loads(text))

    @classmethod
    def read(cls, folder: Path) -> Pipeline:
        """The pipeline that a model's version folder belongs to; raises ValueError naming the file and what is wrong with it."""
        with exported_facts(folder / PIPELINE_FILE) as raw:
            return cls._of(raw)

    @classmethod
    def _of(cls, raw: dict[str, Any]) -> Pipeline:
        raw["default_scheduler"] = SchedulerName(raw["default_scheduler"])
        raw["latents_to_rgb"] = tuple(tuple(row) for row in raw["latents_to_rgb"])
        raw["scheduler"] = SchedulerConfig.from_diffusers(raw["scheduler"])
        raw["cache"] = None if raw.get("cache") is None else FeatureCache.parse(raw["cache"])
        raw["guidance_calibrations"] = tuple(map(CacheCalibration.parse, raw.get("guidance_calibrations", ())))
        raw["memory"] = {name: RunMemory(**measured) for name, measured in raw.get("memory", {}).items()}
        return cls(**raw)


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one `denoise` instance takes on. Every field is a parameter of its config.pbtxt, spelled the same."""

    max_inflight: int = 16
    max_queue: int = 64
    max_steps: int = 200
    max_images_per_request: int = 8
    """Of all its prompts together: the models that come after this one take no more at once."""
    max_pixels: int = 1024 * 1024
    max_guidance: float = 50.0
    default_timeout_seconds: float = 600.0
    unet_max_batch_size: int = 8
    unet_min_batch_size: int = 1
    concurrent_calls: int = 1
    latency_target: float = 2.0
    memory_budget_bytes: int = 0
    """What the engine runs of all images in flight may need together; 0: half of what the machine has left at start."""
    tile_sample_min_size: int = 1024
    tile_overlap_factor: float = 0.25
    features_dtype: str = "fp32"
    """fp32 or fp16: how the features of runs that cache are kept."""

    features_device: str = "cpu"
    """cpu or gpu: where they are kept between calls."""
    features_shared_bytes: int = 0
    """What features may take in shared memory on their way; 0: four fifths of what is free at start."""

    @property
    def images_in_one_request(self) -> int:
        return min(self.max_inflight, self.max_images_per_request)

    @property
    def feature_type(self) -> type:
        """As numpy has it; raises ValueError."""
        types = {"fp32": np.float32, "fp16": np.float16}
        require_one_of(self, "features_dtype", types)
        return types[self.features_dtype]

    @property
    def on_gpu(self) -> tuple[str, ...]:
        """Outputs of the UNet that stay in the GPU's memory, and never pass shared memory; raises ValueError."""
        require_one_of(self, "features_device", ("cpu", "gpu"))
        return (FEATURES,) if self.features_device == "gpu" else ()

    @classmethod
    def from_parameters(cls, parameters: Mapping[str, str]) -> Limits:
        """Read config.pbtxt parameters; raises ValueError naming the one that does not parse or is not positive."""
        return read_parameters(
            cls,
            parameters,
            may_be_zero=("max_queue", "memory_budget_bytes", "features_shared_bytes"),
            others=("unet_model", "unet_shallow_model", "vae_encoder_model", "vae_decoder_tiny_model", "image_output_model"),
        )

    def tiling(self, vae_scale_factor: int) -> VaeTiling:
        """How large pictures are encoded and decoded; raises ValueError."""
        return VaeTiling(
            tile_sample_min_size=self.tile_sample_min_size,
            tile_overlap_factor=self.tile_overlap_factor,
            vae_scale_factor=vae_scale_factor,
        )
