"""The families of checkpoints: which text encoders one has, and what its UNet is told besides the latents."""

from nereid.diffusion.families.base import Conditioning, Family, TextEncoder
from nereid.diffusion.families.sd import SD
from nereid.diffusion.families.sdxl import SDXL

__all__ = ["FAMILIES", "Conditioning", "Family", "TextEncoder", "family_of"]

FAMILIES = {family.name: family for family in (SD, SDXL)}


def family_of(name: str) -> Family:
    """Raises ValueError for a name that export never writes."""
    if name not in FAMILIES:
        raise ValueError(f"family: {name!r} is not known; it must be one of {', '.join(FAMILIES)}")
    return FAMILIES[name]
