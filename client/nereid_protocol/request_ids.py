"""What a request is called in logs, errors and metrics, from the gateway to the last model; knows no request."""

from __future__ import annotations

import re
import secrets
from typing import Any

REQUEST_ID_FORM = "1 to 128 printable ASCII characters without spaces"

_ALLOWED = re.compile(r"[!-~]{1,128}")


def is_request_id(value: Any) -> bool:
    """Whether an id that was sent may stand in a log as it is."""
    return isinstance(value, str) and _ALLOWED.fullmatch(value) is not None


def new_request_id() -> str:
    """For a request whose caller gave it none."""
    return f"req-{secrets.token_hex(12)}"


def request_id_of(sent: str | None) -> str:
    """The id that was sent where it is one, else a new one."""
    return sent if sent is not None and is_request_id(sent) else new_request_id()
