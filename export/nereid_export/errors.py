"""What can go wrong in an export that is not a bug: one sentence for the person who typed the command."""

from __future__ import annotations


class ExportError(Exception):
    """The export cannot go on; the message names what, where and what is needed. Nothing has been published."""


def first_line(error: Exception) -> str:
    """What a library says in the first of its lines; the kind of the error where it says nothing."""
    return str(error).strip().partition("\n")[0] or type(error).__name__
