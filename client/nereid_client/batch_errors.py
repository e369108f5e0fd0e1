"""What `nereid batch` ends with before anything is asked."""

from __future__ import annotations


class BatchError(ValueError):
    """A file or an option is not what it must be; one sentence."""
