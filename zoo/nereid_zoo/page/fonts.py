"""Cuts the font that pages are drawn with into the pieces that `nereid/page/fonts` has: `python -m nereid_zoo.page.fonts`.

DejaVu Sans, regular and bold, comes with matplotlib. Each weight is cut by script, so that a page in English carries
no Greek; glyphs lose hinting and layout features, because pages draw them without.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from nereid.page.text import FOLDER, runs

WEIGHTS = {"regular": "DejaVuSans.ttf", "bold": "DejaVuSans-Bold.ttf"}
PIECES: dict[str, tuple[tuple[int, int], ...]] = {
    "latin": (
        *((0x20, 0x7E), (0xA0, 0xFF), (0x131, 0x131), (0x152, 0x153), (0x2010, 0x2027), (0x2030, 0x203A), (0x20A0, 0x20B5)),
        *((0x2122, 0x2122), (0x2190, 0x2193), (0x2212, 0x2212), (0xFFFD, 0xFFFD)),
    ),
    "latin-extended": ((0x100, 0x24F), (0x2B0, 0x2FF), (0x1E00, 0x1EFF)),
    "greek": ((0x370, 0x3FF),),
    "cyrillic": ((0x400, 0x482), (0x48A, 0x4FF)),
    "symbols": ((0x2070, 0x208E), (0x2100, 0x22FF), (0x25A0, 0x266F), (0x2713, 0x2717)),
}
"""Characters by piece; those of one are not in those after it, and none is among them that combines with the one before it."""


def fonts_of_matplotlib() -> Path:
    """Where matplotlib keeps its fonts."""
    import matplotlib

    return Path(matplotlib.get_data_path()) / "fonts" / "ttf"


def make(source: Path, out: Path) -> None:
    """Write pieces (WOFF2), their licence, and metrics.json: advances by weight, and which characters are in which piece."""
    from fontTools.ttLib import TTFont

    out.mkdir(parents=True, exist_ok=True)
    pieces, advances, units = [], {}, 0
    for weight, name in WEIGHTS.items():
        font = TTFont(source / name)
        glyphs, units = font.getBestCmap() or {}, font["head"].unitsPerEm
        taken: set[int] = set()
        for piece, ranges in PIECES.items():
            wanted = {c for first, last in ranges for c in range(first, last + 1) if c in glyphs} - taken
            taken |= wanted
            file = f"{weight}-{piece}.woff2"
            _cut(source / name, wanted, out / file)
            pieces.append({"weight": weight, "file": file, "characters": runs(wanted)})
        advances[weight] = [[first, [font["hmtx"][glyphs[c]][0] for c in range(first, last + 1)]] for first, last in runs(taken)]
    metrics = {"units_per_em": units, "pieces": pieces, "advances": advances}
    (out / "metrics.json").write_text(json.dumps(metrics, separators=(",", ":")) + "\n", encoding="utf-8")
    (out / "LICENSE").write_bytes((source / "LICENSE_DEJAVU").read_bytes())


def _cut(source: Path, characters: Iterable[int], target: Path) -> None:
    from fontTools import subset

    options = subset.Options(flavor="woff2", hinting=False, layout_features=[], notdef_outline=True, desubroutinize=True)
    options.drop_tables += ["GPOS", "GSUB", "GDEF", "kern", "FFTM"]
    font: Any = subset.load_font(str(source), options)
    cutter = subset.Subsetter(options)
    cutter.populate(unicodes=list(characters))
    cutter.subset(font)
    subset.save_font(font, str(target), options)


if __name__ == "__main__":
    make(fonts_of_matplotlib(), FOLDER)
