"""Request fields as options of a command line, from the tables of fields."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
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
    """The same of a layout, of which a person wants to see a picture."""
    return _with_options(command, LAYOUT_OPTIONS, {"format": "svg"})


def with_page_options(command: Callable[..., None]) -> Callable[..., None]:
    """The same of a page."""
    return _with_options(command, PAGE_OPTIONS)


def _with_options(
    command: Callable[..., None], fields: Sequence[Field], defaults: Mapping[str, Any] = MappingProxyType({})
) -> Callable[..., None]:
    """Absent ones are not passed on, but for those that have a default of the command's own."""
    own = inspect.signature(command, eval_str=True)
    kept = [parameter for parameter in own.parameters.values() if parameter.kind is not inspect.Parameter.VAR_KEYWORD]
    made = {field.name: _parameter(field, defaults.get(field.name)) for field in fields if field.option}

    @functools.wraps(command)
    def run(**given: Any) -> None:
        command(**{name: value for name, value in given.items() if name not in made or value is not None})

    signature = own.replace(parameters=[*kept, *made.values()])
    run.__signature__ = signature  # type: ignore[attr-defined]
    run.__annotations__ = {name: parameter.annotation for name, parameter in signature.parameters.items()}
    del run.__wrapped__
    return run


def _parameter(field: Field, default: Any) -> inspect.Parameter:
    kind: Any = _TYPES[field.dtype]
    assert field.option is not None
    said: dict[str, Any] = {"help": field.help, "show_default": True if default is not None else field.default or False}
    if field.listed:
        option = typer.Option(field.option, metavar="N[,N...]", parser=functools.partial(_numbers, kind), **said)
        kind = str
    elif field.scalar:
        option = typer.Option(field.option, **said, **_bounds(field, kind))
    else:
        option = typer.Option(field.option, **said)
        kind = tuple.__class_getitem__((kind,) * field.shape[0])
    annotation = Annotated[kind | None, option]
    return inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _bounds(field: Field, kind: type) -> dict[str, Any]:
    """Those that say more than the type; a server may have narrower ones."""
    if kind is str:
        return {}
    high = field.high if field.high is not None and field.high < 2**31 - 1 else None
    return {name: kind(bound) for name, bound in (("min", field.low), ("max", high)) if bound is not None}


def _numbers(kind: type, text: str) -> tuple[Any, ...]:
    try:
        return tuple(kind(part) for part in text.split(","))
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not allowed; it must be numbers with commas between them") from None
