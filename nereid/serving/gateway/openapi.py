"""`/openapi.json`: the gateway's routes as an OpenAPI 3.1 document; knows no route by name.

Bodies are described by the very models that read them (their JSON schemas, with the values of unused fields that are taken),
paths and methods by the routes themselves: there is nothing to keep in step by hand.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue, models_json_schema
from pydantic_core import core_schema
from starlette.routing import BaseRoute, Route

from nereid.engines.digests import own_version
from nereid.serving.gateway.described import EVENTS, JSON, Described, description_of
from nereid.serving.gateway.guard import OPEN_PATHS
from nereid.serving.gateway.sent import Sent

_REF = "#/components/schemas/{model}"
_ERROR = "Error"
_FORM, _FILE = "multipart/form-data", "image"
_NULL = {"type": "null"}
_ERROR_SCHEMA: dict[str, Any] = {
    "type": "object",
    "description": "OpenAI's form of an error.",
    "properties": {
        "error": {
            "type": "object",
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
            "required": ["message", "type", "param", "code"],
        }
    },
    "required": ["error"],
}


class _BodySchemas(GenerateJsonSchema):
    """pydantic's schemas, with what the bodies take beside their fields: null as absent, and values that change nothing."""

    def model_schema(self, schema: core_schema.ModelSchema) -> JsonSchemaValue:
        made = super().model_schema(schema)
        if issubclass(schema["cls"], Sent):
            fields, required = made.get("properties", {}), made.get("required", ())
            optional = {name: item if name in required else _or_null(item) for name, item in fields.items()}
            made["properties"] = {**optional, **schema["cls"].taken_beside()}
        return made


def _or_null(item: dict[str, Any]) -> dict[str, Any]:
    members = item.get("anyOf", ())
    if _NULL in members or item.get("type") == "null":
        return item
    outside = {name: value for name, value in item.items() if name in ("title", "description", "default")}
    inside = {name: value for name, value in item.items() if name not in outside}
    return {**outside, "anyOf": [*(members if set(inside) == {"anyOf"} else [inside]), _NULL]}


def openapi_of(routes: Sequence[BaseRoute], needs_key: bool) -> dict[str, Any]:
    """The document of these routes; `needs_key`: whether callers bring an API key."""
    known = [route for route in routes if isinstance(route, Route) and route.include_in_schema]
    told = [(route, description_of(route.endpoint)) for route in known]
    models = list(dict.fromkeys(body for _, item in told for body in (item.body, item.form_body) if body is not None))
    names, schemas = _schemas(models)
    paths: dict[str, dict[str, Any]] = {}
    for route, item in told:
        for method in sorted(route.methods or ()):
            if method != "HEAD":
                operation = _operation(route, method, item, names, schemas)
                closed: dict[str, Any] = {} if not needs_key or route.path not in OPEN_PATHS else {"security": []}
                paths.setdefault(route.path_format, {})[method.lower()] = {**operation, **closed}
    bodies = {item.body for _, item in told}
    in_forms = {_name(names[item.form_body]) for _, item in told if item.form_body is not None and item.form_body not in bodies}
    shared = {name: schema for name, schema in schemas.items() if name not in in_forms}
    components: dict[str, Any] = {"schemas": {_ERROR: _ERROR_SCHEMA, **shared}}
    document: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {"title": "Nereid", "version": own_version(), "summary": "OpenAI's API before Triton's models."},
        "paths": paths,
        "components": components,
    }
    if needs_key:
        components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        document["security"] = [{"key": []}]
    return document


def _schemas(models: Sequence[type[BaseModel]]) -> tuple[dict[type[BaseModel], JsonSchemaValue], dict[str, Any]]:
    """References by model, and all the schemas that they refer to."""
    if not models:
        return {}, {}
    found, whole = models_json_schema(
        [(model, "validation") for model in models], ref_template=_REF, schema_generator=_BodySchemas
    )
    return {model: found[model, "validation"] for model in models}, whole.get("$defs", {})


def _name(reference: JsonSchemaValue) -> str:
    """Of the schema that is referred to."""
    return str(reference["$ref"].rpartition("/")[2])


def _operation(
    route: Route,
    method: str,
    item: Described,
    names: Mapping[type[BaseModel], JsonSchemaValue],
    schemas: Mapping[str, dict[str, Any]],
) -> dict[str, Any]:
    parameters = [
        *({"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in route.param_convertors),
        *({"name": name, "in": "query", "schema": dict(schema)} for name, schema in item.query.items()),
    ]
    content: dict[str, Any] = {}
    if item.body is not None:
        content[JSON] = {"schema": names[item.body]}
    if item.form is not None:
        content[_FORM] = {"schema": dict(item.form)}
    if item.form_body is not None:
        fields = schemas[_name(names[item.form_body])]
        files = {name: {"type": "string", "format": "binary"} for name in (_FILE, *item.files)}
        properties = {**files, **fields["properties"]}
        content[_FORM] = {"schema": {**fields, "properties": properties, "required": [_FILE, *fields.get("required", ())]}}
    answers: dict[str, Any] = {item.answers: {"schema": {"type": "object"}} if item.answers == JSON else {}}
    if item.streams:
        answers[EVENTS] = {"schema": {"type": "string"}}
    return {
        "operationId": f"{method.lower()}{route.path_format}".translate(str.maketrans("/{}.", "____")),
        **({"summary": item.summary} if item.summary else {}),
        **({"parameters": parameters} if parameters else {}),
        **({"requestBody": {"required": True, "content": content}} if content else {}),
        "responses": {
            "200": {"description": "The answer.", "content": answers},
            "default": {"description": "An error.", "content": {JSON: {"schema": {"$ref": _REF.format(model=_ERROR)}}}},
        },
    }
