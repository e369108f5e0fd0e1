"""What pydantic finds wrong in a body as one sentence that names the field as its caller wrote it; knows no HTTP.

pydantic's path to a problem holds parts that nobody wrote: which member of a union it tried, which validator it ran. They are
told from names by following the path through the schema's types.
"""

from __future__ import annotations

import types
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel

from nereid.serving.gateway.errors import ApiError
from nereid.serving.gateway.sent import Sent
from nereid.serving.gateway.unused import unused_field
from nereid.serving.gateway.unused_field import MESSAGE, PART, SETTINGS, TOOL, UnusedField
from nereid_protocol.sampling_field import SamplingError

Problem = Mapping[str, Any]

_ALLOWED = {
    "bool_parsing": "true or false",
    "bool_type": "true or false",
    "int_parsing": "an integer",
    "int_type": "an integer",
    "int_from_float": "an integer",
    "int_parsing_size": "an integer of fewer digits",
    "float_parsing": "a number",
    "float_type": "a number",
    "string_type": "a string",
    "list_type": "a list",
    "tuple_type": "a list",
    "dict_type": "an object",
    "model_type": "an object",
    "model_attributes_type": "an object",
    "finite_number": "a finite number",
}
"""The end of the sentence "it must be ..." by pydantic's name of the problem."""
_TAGS = ("union_tag_invalid", "union_tag_not_found")
_PLACES = {("messages", 3): MESSAGE, ("messages", 5): PART, ("tools", 3): TOOL, (SETTINGS, 2): SETTINGS}
"""Names in the table of unused fields, by the first part and the length of a path."""
_BOUNDS = {
    "less_than_equal": "at most {le}",
    "less_than": "below {lt}",
    "greater_than_equal": "at least {ge}",
    "greater_than": "above {gt}",
    "literal_error": "{expected}",
    "too_short": "at least {min_length} item",
    "too_long": "at most {max_length} items",
    "string_too_short": "at least {min_length} character",
    "string_too_long": "at most {max_length} characters",
}


def refusal(schema: type[BaseModel], problems: Sequence[Problem]) -> ApiError:
    """One sentence for the first field that is wrong; of a union's members the one that got furthest is believed."""
    problems = _of_what_is_meant(schema, problems)
    first = _path(schema, problems[0])
    paths = [(_path(schema, problem), problem) for problem in problems]
    same = [(path, problem) for path, problem in paths if path[:1] == first[:1]]
    deepest = max(len(path) for path, _ in same)
    path = next(path for path, _ in same if len(path) == deepest)
    chosen = [problem for other, problem in same if other == path]
    return _sentence(".".join(path) or "body", chosen, _unused(schema, path))


def unknown_fields(schema: type[BaseModel], problems: Sequence[Problem]) -> list[list[str]]:
    """The paths of what a lenient server leaves out: fields that neither the schema nor the table of unused fields has, and tools
    of another type, or bound by another syntax, which a provider runs itself, or a client only with models that know them. These
    come first: taken out from the last path to the first, they leave the places of all others as they are.
    """
    problems = _of_what_is_meant(schema, problems)
    wrong = [written_path(schema, problem["loc"]) for problem in problems if problem["type"] == "literal_error"]
    typed = [path for path in wrong if path[0] == "tools" and (path[2:] == ["type"] or path[-1] == "syntax")]
    tools = [list(path) for path in dict.fromkeys(tuple(path[:2]) for path in typed)]
    extra = [written_path(schema, problem["loc"]) for problem in problems if problem["type"] == "extra_forbidden"]
    causes = [problem.get("ctx", {}).get("error") for problem in problems]
    members = [cause.field.split(".", 1) for cause in causes if isinstance(cause, SamplingError) and cause.unknown]
    fields = [path for path in extra if path[:2] not in tools and _unused(schema, path) is None]
    return [*tools, *fields, *members]


def _of_what_is_meant(schema: type[BaseModel], problems: Sequence[Problem]) -> Sequence[Problem]:
    """Without those of a union's members whose type is another one than what was sent has: they know nothing of its fields.

    With them where all members are of another type.
    """
    places = [problem["loc"] for problem in problems]
    typed = {place[:-1] for problem, place in zip(problems, places, strict=True) if _is_of_another_type(problem)}
    members = {where for where in typed if where and written_path(schema, where) == written_path(schema, where[:-1])}
    # The unions of which another member, whose type is the right one, has a problem within, too.
    unions = {where[:-1] for where in members}
    meant = {
        place[:end]
        for place in places
        for end in range(len(place) - 1)
        if place[:end] in unions and place[: end + 1] not in members
    }
    others = [where for where in members if where[:-1] in meant]
    return [problem for problem, place in zip(problems, places, strict=True) if not any(place[: len(w)] == w for w in others)]


def _is_of_another_type(problem: Problem) -> bool:
    return problem["type"] == "literal_error" and problem["loc"][-1] == "type"


def _path(schema: type[BaseModel], problem: Problem) -> list[str]:
    """Where a problem is; where the field is wrong that tells the members of a union apart, there."""
    path = written_path(schema, problem["loc"])
    return [*path, problem["ctx"]["discriminator"].strip("'")] if problem["type"] in _TAGS else path


def _unused(schema: type[BaseModel], path: Sequence[str]) -> UnusedField | None:
    """The row of a field, of the body itself, of its messages and their parts, of its tools or of its settings."""
    if len(path) == 1:
        return schema.row_of(path[0]) if issubclass(schema, Sent) else None
    place = _PLACES.get((path[0], len(path))) if path else None
    return None if place is None else unused_field(place, path[-1])


def _sentence(field: str, problems: Sequence[Problem], unused: UnusedField | None) -> ApiError:
    problem = problems[0]
    if problem["type"] == "extra_forbidden" and unused is not None and unused.values:
        refused = _not_allowed(field, problem.get("input"), f"it must be {unused.allowed}")
        return ApiError(400, refused.message, param=field, code="unsupported_value")
    if problem["type"] == "extra_forbidden":
        return ApiError(400, f"{field}: this field is not supported", param=field, code="unsupported_parameter")
    if problem["type"] in ("missing", "union_tag_not_found"):
        return ApiError(400, f"{field}: it is missing", param=field, code="missing_required_parameter")
    if problem["type"] == "union_tag_invalid":
        return _not_allowed(field, problem["ctx"]["tag"], " or ".join(problem["ctx"]["expected_tags"].rsplit(", ", 1)))
    cause = problem.get("ctx", {}).get("error")
    if isinstance(cause, SamplingError):
        return _not_allowed(cause.field, cause.value, f"it must be {cause.allowed}")
    allowed = list(dict.fromkeys(_allowed(problem) for problem in problems))
    return _not_allowed(field, problem.get("input"), " or ".join(allowed))


def _not_allowed(field: str, value: object, allowed: str) -> ApiError:
    if not allowed.startswith(("it must ", "must ")):
        allowed = f"it must be {allowed}"
    return ApiError(400, f"{field}: {_shown(value)} is not allowed; {allowed}", param=field)


def _allowed(problem: Problem) -> str:
    kind, context = problem["type"], problem.get("ctx", {})
    if kind in _ALLOWED:
        return _ALLOWED[kind]
    if kind in _BOUNDS:
        return _BOUNDS[kind].format_map(context)
    message = str(problem["msg"]).removeprefix("Value error, ").removeprefix("Input should be ")
    return message[:1].lower() + message[1:]


def _shown(value: object) -> str:
    """A value as a sentence may hold it: short, and never a body."""
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, (list, tuple)):
        return f"a list of {len(value)}"
    shown = repr(value[:80] if isinstance(value, str) else value)
    return shown if len(shown) <= 80 else shown[:77] + "..."


def written_path(schema: Any, location: Sequence[str | int]) -> list[str]:
    """The parts of pydantic's path that stand in the body."""
    path: list[str] = []
    kind, parts = schema, list(location)
    while parts:
        kind = _without_none(kind)
        members = _members(kind)
        if len(members) > 1:
            kind = _member(members, str(parts.pop(0)))
            continue
        part = parts.pop(0)
        if get_origin(kind) is dict and part == "[key]":
            continue
        path.append(str(part))
        kind = _inside(kind, part)
    return path


def _without_none(kind: Any) -> Any:
    """A type without its annotations, and without None where only one other type is left."""
    while get_origin(kind) is Annotated:
        kind = get_args(kind)[0]
    members = _members(kind)
    return _without_none(members[0]) if len(members) == 1 else kind


def _members(kind: Any) -> list[Any]:
    if get_origin(kind) not in (Union, types.UnionType):
        return []
    found = [member for member in get_args(kind) if member is not type(None)]
    return [get_args(member)[0] if get_origin(member) is Annotated else member for member in found]


def _member(members: Sequence[Any], label: str) -> Any:
    """The member of a union that pydantic calls so; by its kind where its name is longer than its type's."""
    for member in members:
        if label in (str(member), getattr(member, "__name__", "")):
            return member
        if isinstance(member, type) and issubclass(member, BaseModel) and label in get_args(_type_of(member)):
            return member
    lead = label.partition("[")[0]
    return next((member for member in members if getattr(get_origin(member), "__name__", "") == lead), None)


def _type_of(member: type[BaseModel]) -> Any:
    """The type of the field by which a union's members are told apart, a Literal."""
    return member.model_fields["type"].annotation if "type" in member.model_fields else None


def _inside(kind: Any, part: str | int) -> Any:
    """The type of an entry or a member; None where the schema does not say."""
    origin, arguments = get_origin(kind), get_args(kind)
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        for name, found in kind.model_fields.items():
            if part in (name, found.alias):
                return found.annotation
    if origin is list and arguments:
        return arguments[0]
    if origin is dict and arguments:
        return arguments[1]
    if origin is tuple and isinstance(part, int) and part < len(arguments):
        return arguments[part]
    return None
