"""JSON on one line, whatever its reader takes for the end of a line; knows no field."""

from __future__ import annotations

import json
import re
from typing import Any

_ESCAPED = re.compile("[\x7f-\x9f\u2028\u2029\ud800-\udfff]")
"""Line ends besides those that JSON escapes itself, for which many readers (Python's `splitlines`, JavaScript's) cut a line; and
halves of surrogate pairs, which cannot be encoded."""


_MARK = b"\xef\xbb\xbf"


def without_mark(line: bytes) -> bytes:
    """A file's line without the mark of bytes' order that some editors write before the first."""
    return line.removeprefix(_MARK)


def read_line(line: bytes) -> Any:
    """A line's value; raises ValueError for no JSON, UnicodeDecodeError, which is one, where it is not UTF-8.

    Python's own reader of bytes takes UTF-16 (as Windows PowerShell writes files) for what it is, but only in some lines: their
    ends are of two bytes.
    """
    return json.loads(without_mark(line).decode())


def json_line(value: Any) -> str:
    """Compact JSON without a line's end, which always can be encoded as UTF-8."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return _ESCAPED.sub(lambda found: f"\\u{ord(found[0]):04x}", text)
