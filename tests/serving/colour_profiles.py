"""Colour profiles as devices write them."""

from __future__ import annotations

import struct
from collections.abc import Sequence

COLOUR, WIDER = (200, 80, 60), (218, 67, 47)
"""One of Display P3, and the same of sRGB."""
_P3 = ((0.5151, 0.2412, -0.0011), (0.2920, 0.6922, 0.0419), (0.1571, 0.0666, 0.7841))
"""Its primaries, to the white of profiles."""


def profile(space: bytes = b"RGB ", gamma: float = 2.2, name: str = "Display P3") -> bytes:
    """A profile of version 2.4 (ICC.1:2001): a display's, or one of greys."""

    def numbers(values: Sequence[float]) -> bytes:
        return b"".join(struct.pack(">i", round(65536 * value)) for value in values)

    white = numbers((0.9642, 1.0, 0.8249))
    curve = b"curv" + bytes(4) + struct.pack(">IH", 1, round(256 * gamma))
    text = b"desc" + bytes(4) + struct.pack(">I", len(name) + 1) + name.encode() + bytes(79)
    tags = {b"desc": text, b"wtpt": b"XYZ " + bytes(4) + white, **({b"kTRC": curve} if space == b"GRAY" else {})}
    for letter, primary in zip((b"r", b"g", b"b"), _P3, strict=True) if space == b"RGB " else ():
        tags |= {letter + b"XYZ": b"XYZ " + bytes(4) + numbers(primary), letter + b"TRC": curve}
    table, body = struct.pack(">I", len(tags)), b""
    for tag, value in tags.items():
        table += tag + struct.pack(">II", 132 + 12 * len(tags) + len(body), len(value))
        body += value + bytes(-len(value) % 4)
    size = 128 + len(table) + len(body)
    head = struct.pack(">I4sI4s4s4s", size, b"lcms", 0x02400000, b"mntr", space, b"XYZ ") + bytes(12) + b"acsp" + bytes(28)
    return (head + white).ljust(128, b"\0") + table + body
