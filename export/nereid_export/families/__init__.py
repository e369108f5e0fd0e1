"""What export needs to know of each family, beside what nereid.diffusion.families says of it for serving."""

from nereid_export.families.base import ExportFamily, ExtraInput
from nereid_export.families.sd import SD
from nereid_export.families.sdxl import SDXL

__all__ = ["PIPELINES", "ExportFamily", "ExtraInput", "export_family"]

_FAMILIES = {family.serving.name: family for family in (SD, SDXL)}

PIPELINES = {pipeline: name for name, family in _FAMILIES.items() for pipeline in family.pipelines}
"""diffusers pipelines that can be exported, and the family each belongs to."""


def export_family(name: str) -> ExportFamily:
    return _FAMILIES[name]
