"""A tiny VAE for a checkpoint's latents (--tiny-vae): a folder of diffusers' AutoencoderTiny, opened and fitted to its VAE."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nereid.engines.digests import file_digest
from nereid_export.checkpoint import check_weights, read_json, understood, variant_in, weights_in
from nereid_export.components import finite
from nereid_export.errors import ExportError
from nereid_export.silence import quiet

CLASS_NAME = "AutoencoderTiny"


@dataclass(frozen=True, slots=True)
class TinyVae:
    """A folder that has been looked through."""

    folder: Path

    def __str__(self) -> str:
        return self.folder.resolve().name

    @classmethod
    def open(cls, folder: Path) -> TinyVae:
        """Look the folder through without loading weights; raises ExportError with what is wrong."""
        if not folder.is_dir():
            raise ExportError(f"--tiny-vae: {folder} is not a folder; it must be one of an {CLASS_NAME}")
        name = read_json(folder / "config.json").get("_class_name")
        if name != CLASS_NAME:
            raise ExportError(f"--tiny-vae: {folder}: architecture {name!r} is not supported; it must be {CLASS_NAME}")
        check_weights(folder)
        return cls(folder)

    def digest(self) -> str:
        """SHA-256 of its settings and its weights."""
        files = (self.folder / "config.json", *weights_in(self.folder))
        return json.dumps({file.name: file_digest(file) for file in files})

    def weight_bytes(self) -> int:
        return sum(file.stat().st_size for file in weights_in(self.folder))

    def require_fits(self, vae_config: Mapping[str, Any]) -> None:
        """Raises ExportError where its latents or its pictures are not those of a checkpoint's VAE."""
        config = read_json(self.folder / "config.json")
        levels = len(config["decoder_block_out_channels"]) - 1
        for what, ours, theirs in (
            ("latent channels", config.get("latent_channels", 4), vae_config.get("latent_channels", 4)),
            (
                "pixels a latent",
                config.get("upsampling_scaling_factor", 2) ** levels,
                2 ** (len(vae_config["block_out_channels"]) - 1),
            ),
            ("colours", config.get("out_channels", 3), 3),
        ):
            if ours != theirs:
                raise ExportError(
                    f"--tiny-vae: {self.folder}: {ours} {what} are not allowed; it must be {theirs}, as the VAE has"
                )

    def load(self) -> Any:
        """The module in float32; raises ExportError where its weights do not fit its config."""
        from diffusers import AutoencoderTiny

        with understood(self.folder), quiet():
            module = AutoencoderTiny.from_pretrained(str(self.folder), variant=variant_in(self.folder), use_safetensors=True)
            return finite(self.folder, module.eval().float())
