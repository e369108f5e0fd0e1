"""What a front end has set, and how pictures are written by that; knows no HTTP."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from nereid.serving.gateway.a1111.bodies import Settings
from nereid.serving.gateway.pictures import Encoding


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """A key's own until a restart, by the names that AUTOMATIC1111 has for them, and with its values at first."""

    sd_model_checkpoint: str = ""
    """Empty: none has been chosen."""
    samples_format: str = "png"
    jpeg_quality: int = 80
    webp_lossless: bool = False

    def changed(self, sent: Settings) -> Kept:
        """With what was sent in the place of it."""
        found: dict[str, Any] = {name: value for name, value in sent.model_dump().items() if value not in (None, "")}
        return replace(self, **found)

    @property
    def encoding(self) -> Encoding:
        """The quality is a WebP's, too, as it is there."""
        form = "jpeg" if self.samples_format == "jpg" else self.samples_format
        return Encoding(format=form, compression=self.jpeg_quality, lossless=self.webp_lossless and form == "webp")
