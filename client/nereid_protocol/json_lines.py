"""JSON on one line, whatever its reader takes for the end of a line; knows no field."""

from __future__ import annotations

import json
import re
from typing import Any

_ESCAPED = re.compile("[\x7f-\x9f\u2028\u2029\ud800-\udfff]")
"""Line ends besides those that JSON escapes itself, for which many readers (Python's `splitlines`, JavaScript's) cut a line; and
halves of surrogate pairs, which cannot be encoded."""


def json_line(value: Any) -> str:
    """Compact JSON without a line's end, which always can be encoded as UTF-8."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return _ESCAPED.sub(lambda found: f"\\u{ord(found[0]):04x}", text)
