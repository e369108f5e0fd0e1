"""Options that several commands have, and what is looked at before a server is asked for anything."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from nereid_client.addresses import why

Url = Annotated[
    str | None, typer.Option(help="host:port of the server.", show_default="127.0.0.1, and 8001 over grpc, 8000 over http")
]
Timeout = Annotated[
    float | None,
    typer.Option(help="Seconds until the request is given up, waiting included.", show_default="the server's own limit"),
]


def may_be_written(value: Path | None) -> Path | None:
    """As a callback of an option: whether the file can be written is known before it is made."""
    if value is None:
        return None
    try:
        _require_room(value)
    except OSError as error:  # its name is too long, or its folder cannot be looked into
        raise typer.BadParameter(f"{value} cannot be written; {why(error)}") from None
    return value


def _require_room(file: Path) -> None:
    folder = file.parent
    if file.is_dir():
        raise typer.BadParameter(f"{file} is a folder; it must be a file")
    if not folder.is_dir():
        raise typer.BadParameter(f"{file} is not allowed; there is no folder {folder}")
    if not os.access(file if file.exists() else folder, os.W_OK):
        raise typer.BadParameter(f"{file} cannot be written; it is closed to this user")


def may_be_drawn(value: Path) -> Path:
    """The same of a picture, whose name says its format."""
    from PIL import Image

    if Image.registered_extensions().get(value.suffix.lower()) not in Image.SAVE:
        raise typer.BadParameter(f"{value} is not allowed; its name must end with a picture's format, such as .png or .jpg")
    may_be_written(value)
    return value
