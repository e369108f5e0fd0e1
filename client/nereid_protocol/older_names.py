"""vLLM's older names of sampling parameters, as the table of parameters has them, and requests that use them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nereid_protocol.sampling import SAMPLING_FIELDS
from nereid_protocol.sampling_field import SamplingError

_MEMBERS = {member.alias: (field, member) for field in SAMPLING_FIELDS for member in field.members if member.alias}
_FIELDS = {field.alias: field for field in SAMPLING_FIELDS if field.alias}
OLDER = {
    **{alias: f"{field.name}.{member.name}" for alias, (field, member) in _MEMBERS.items()},
    **{alias: field.name for alias, field in _FIELDS.items()},
}
"""vLLM's older names of fields and of members, and where they stand now."""


def without_older_names(sent: Mapping[str, Any]) -> dict[str, Any]:
    """What was sent, under the names of now, and what are members now in their objects.

    Raises SamplingError where one was sent under both.
    """
    made = dict(sent)
    for alias, whole in _FIELDS.items():
        value = made.pop(alias, None)
        if value is None:
            continue
        if sent.get(whole.name) is not None:
            raise SamplingError(alias, value, f"absent where {whole.name} is given")
        whole.check(value, alias)
        made[whole.name] = value
    given = dict(made)
    for alias, (field, member) in _MEMBERS.items():
        value = made.pop(alias, None)
        if value is None:
            continue
        if given.get(field.name) is not None:
            raise SamplingError(alias, value, f"absent where {field.name} is given")
        made[field.name] = {**(made.get(field.name) or {}), member.name: member.check(value, alias)}
    return made
