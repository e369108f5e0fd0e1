"""All tables of request fields together: each option is written once, in one of them, and read by everything that knows options.

Images, layouts and pages have a table each. From them come the server's validation (nereid.flow.fields), the inputs of every
config.pbtxt that carries a field (written at export), the SDK's and the gateway's request models, the options of
`nereid generate`, `nereid layout` and `nereid page`, and docs/reference.md.
"""

from __future__ import annotations

from collections.abc import Iterable

from nereid_protocol.field import Field, Model
from nereid_protocol.image_fields import IMAGE_FIELDS
from nereid_protocol.layout_fields import LAYOUT_FIELDS
from nereid_protocol.page_fields import PAGE_FIELDS


def carried_by(model: Model) -> tuple[Field, ...]:
    """The fields that a model takes as inputs, in the table's order."""
    return tuple(field for field in (*IMAGE_FIELDS, *LAYOUT_FIELDS, *PAGE_FIELDS) if model in field.models)


def passed_on(source: Model, target: Model) -> tuple[Field, ...]:
    """The fields that both models carry: the one hands them to the other."""
    return tuple(field for field in carried_by(source) if target in field.models)


def names(fields: Iterable[Field]) -> tuple[str, ...]:
    return tuple(field.name for field in fields)
