"""Reads what export left of a model's facts; what is wrong with it is one sentence that names the file. Knows no fact."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def exported_facts(file: Path) -> Iterator[dict[str, Any]]:
    """The JSON object of a file, to be made into facts inside; raises ValueError where it is none or lacks what is read."""
    try:
        raw = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(raw, dict):
            raise ValueError("it is no JSON object")
        yield raw
    except OSError as error:
        raise ValueError(f"{file} cannot be read ({error.strerror}); export the model again") from None
    except KeyError as error:
        raise ValueError(f"{file} is not what export writes: it lacks {error.args[0]}; export the model again") from None
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{file} is not what export writes: {error}; export the model again") from None
