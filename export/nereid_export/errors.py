"""What can go wrong in an export that is not a bug: one sentence for the person who typed the command."""

from __future__ import annotations


class ExportError(Exception):
    """The export cannot go on; the message names what, where and what is needed. Nothing has been published."""
