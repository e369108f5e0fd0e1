"""What can go wrong in serving that is not a bug."""

from __future__ import annotations


class ServingError(Exception):
    """The server cannot be started or kept up; the message says why and what to do."""
