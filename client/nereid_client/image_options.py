"""Request fields as options of a command line, from the tables of fields."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import typer

from nereid_client.images import OPTIONS
from nereid_client.layouts import LAYOUT_OPTIONS
from nereid_client.pages import PAGE_OPTIONS
from nereid_protocol.field import DType, Field

_TYPES: dict[DType, type] = {DType.STRING: str, DType.INT32: int, DType.INT64: int, DType.FP32: float}


def with_image_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command, in place of its `**fields`, an option for each field of an image that has one."""
    return _with_options(command, OPTIONS)


def with_layout_options(command: Callable[..., None]) -> Callable[..., None]:
    """The same of a layout."""
    return _with_options(command, LAYOUT_OPTIONS)


def with_page_options(command: Callable[..., None]) -> Callable[..., None]:
    """The same of a page."""
    return _with_options(command, PAGE_OPTIONS)


def _with_options(command: Callable[..., None], fields: Sequence[Field]) -> Callable[..., None]:
    """Absent ones are not passed on."""
    own = inspect.signature(command, eval_str=True)
    kept = [parameter for parameter in own.parameters.values() if parameter.kind is not inspect.Parameter.VAR_KEYWORD]
    made = {field.name: _parameter(field) for field in fields if field.option}

    @functools.wraps(command)
    def run(**given: Any) -> None:
        command(**{name: value for name, value in given.items() if name not in made or value is not None})

    signature = own.replace(parameters=[*kept, *made.values()])
    run.__signature__ = signature  # type: ignore[attr-defined]
    run.__annotations__ = {name: parameter.annotation for name, parameter in signature.parameters.items()}
    del run.__wrapped__
    return run


def _parameter(field: Field) -> inspect.Parameter:
    kind: Any = _TYPES[field.dtype]
    assert field.option is not None
    if field.listed:
        option = typer.Option(field.option, help=field.help, metavar="N[,N...]", parser=functools.partial(_numbers, kind))
        kind = str
    else:
        option = typer.Option(field.option, help=field.help)
        kind = kind if field.scalar else tuple.__class_getitem__((kind,) * field.shape[0])
    annotation = Annotated[kind | None, option]
    return inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def _numbers(kind: type, text: str) -> tuple[Any, ...]:
    try:
        return tuple(kind(part) for part in text.split(","))
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not allowed; it must be numbers with commas between them") from None
