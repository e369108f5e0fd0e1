"""`/openapi.json` says what the gateway's routes take, as the models that read the bodies do."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import pytest

from nereid.serving.gateway.app import GatewaySettings, create_app
from nereid.serving.gateway.launch import Rules

from gateway_before import gateway, small_repository

CHAT = {"model": "llm", "messages": [{"role": "user", "content": "hello"}]}
EMBEDDING = {"model": "llm", "input": ["x"], "dimensions": None, "user": "me"}
COMPLETION, RESPONSE = {"model": "llm", "prompt": "x"}, {"model": "llm", "input": "x"}
IMAGE = {"model": "text_to_image", "prompt": "x"}
REFRESHED = ("checkpoints", "vae", "loras", "embeddings")
LAYOUT = {"canvas": 1280, "html": "<section></section>"}
READS_NOTHING = {
    "/v1/batches/{id}/cancel",
    *(f"/sdapi/v1/{name}" for name in ("interrupt", "skip", *(f"refresh-{name}" for name in REFRESHED))),
}
"""Of those that are asked by POST."""


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_repository(tmp_path_factory.mktemp("repository"))


@pytest.fixture(scope="module")
def rules(tmp_path_factory: pytest.TempPathFactory) -> Rules:
    return Rules(schema=True, a1111=True, batches=str(tmp_path_factory.mktemp("batches")))


@pytest.fixture(scope="module")
def api(repository: Path, rules: Rules) -> Iterator[httpx.Client]:
    with gateway(repository, 9, rules=rules) as running, httpx.Client(base_url=running.url, timeout=60) as client:
        yield client


@pytest.fixture(scope="module")
def document(api: httpx.Client) -> dict[str, Any]:
    found: dict[str, Any] = api.get("/openapi.json").json()
    return found


def test_it_is_served_only_where_it_is_asked_for(repository: Path) -> None:
    with gateway(repository, 9) as running:
        assert httpx.get(f"{running.url}/openapi.json").status_code == 404


def test_with_keys_it_needs_one_and_says_so(repository: Path, document: dict[str, Any]) -> None:
    assert "security" not in document
    with gateway(repository, 9, rules=Rules(schema=True), api_key="secret") as running:
        url = f"{running.url}/openapi.json"
        assert httpx.get(url).status_code == 401
        found = httpx.get(url, headers={"Authorization": "Bearer secret"}).json()
    assert found["components"]["securitySchemes"]["key"]["scheme"] == "bearer"
    assert found["security"] == [{"key": []}]
    assert found["paths"]["/health"]["get"]["security"] == []
    assert "security" not in found["paths"]["/v1/models"]["get"]


def test_every_route_is_there_and_says_what_it_reads(repository: Path, rules: Rules, document: dict[str, Any]) -> None:
    settings = GatewaySettings(repository=repository, grpc_url="", metrics_url="", ready_url="", rules=rules)
    routes: list[Any] = [route for route in create_app(settings).routes if getattr(route, "include_in_schema", False)]
    served = {(route.path_format, method) for route in routes for method in route.methods - {"HEAD"}}
    assert served == {(path, method.upper()) for path, methods in document["paths"].items() for method in methods}
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            assert operation["summary"], (method, path)
            named = {parameter["name"] for parameter in operation.get("parameters", ()) if parameter["in"] == "path"}
            assert named == {part.strip("{}") for part in path.split("/") if part.startswith("{")}
            if method == "post" and path not in READS_NOTHING:
                assert operation["requestBody"]["content"], path


def test_operations_have_names_of_their_own(document: dict[str, Any]) -> None:
    names = [operation["operationId"] for methods in document["paths"].values() for operation in methods.values()]
    assert len(names) == len(set(names)) > 15


def test_schemas_are_such_and_refer_to_each_other(document: dict[str, Any]) -> None:
    schemas = document["components"]["schemas"]
    for schema in schemas.values():
        jsonschema.Draft202012Validator.check_schema(schema)

    def references(value: Any) -> Iterator[str]:
        if isinstance(value, dict):
            if isinstance(value.get("$ref"), str):
                yield value["$ref"]
            value = list(value.values())
        for item in value if isinstance(value, list) else ():
            yield from references(item)

    found = set(references(document))
    assert found == {f"#/components/schemas/{name}" for name in schemas}


def test_a_form_has_the_picture_beside_the_fields_of_its_model(document: dict[str, Any]) -> None:
    content = document["paths"]["/v1/images/edits"]["post"]["requestBody"]["content"]
    assert [*content] == ["application/json", "multipart/form-data"]
    schema = content["multipart/form-data"]["schema"]
    assert schema["properties"]["image"] == {"type": "string", "format": "binary"}
    assert {"image", "prompt"} <= {*schema["required"]}
    assert {"size", "seed", "strength", "user"} <= schema["properties"].keys()
    assert schema["properties"]["mask"] == schema["properties"]["image"]
    assert "mask" not in schema["required"]
    variation = document["paths"]["/v1/images/variations"]["post"]["requestBody"]["content"]["multipart/form-data"]["schema"]
    assert "mask" not in variation["properties"]


def test_an_edit_is_described_in_json_too(document: dict[str, Any]) -> None:
    route, whole = "/v1/images/edits", {"prompt": "x", "images": [{"image_url": "data:image/png;base64,aGk="}]}
    assert valid(document, route, {**whole, "mask": {"image_url": "data:image/png;base64,aGk="}, "strength": 0.5, "n": None})
    assert not valid(document, route, {**whole, "images": [{"file_id": "file-1"}]})
    assert not valid(document, route, {**whole, "wind": 1})


def valid(document: dict[str, Any], route: str, body: dict[str, Any]) -> bool:
    schema = document["paths"][route]["post"]["requestBody"]["content"]["application/json"]["schema"]
    return jsonschema.Draft202012Validator({**schema, "components": document["components"]}).is_valid(body)


CASES: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("/v1/chat/completions", CHAT, {"temperature": 0.5, "stop": ["a"], "max_tokens": None, "top_p": None}),
    ("/v1/chat/completions", CHAT, {"service_tier": "auto", "user": {"any": "thing"}, "store": None}),
    ("/v1/chat/completions", CHAT, {"guided_regex": "a+"}),
    ("/v1/chat/completions", CHAT, {"structured_outputs": {"json": {"type": "object"}}}),
    ("/v1/chat/completions", CHAT, {"logit_bias": {"5": 1.5}, "stop_token_ids": [1, 2], "n": 16}),
    ("/v1/completions", COMPLETION, {"prompt": [[1, 2], [3]], "suffix": None}),
    ("/v1/responses", RESPONSE, {"input": [{"role": "user", "content": "x"}], "truncation": "disabled"}),
    ("/v1/images/generations", IMAGE, {"size": "512x512", "num_inference_steps": 4, "background": "opaque"}),
]


@pytest.mark.parametrize(("route", "body", "change"), CASES, ids=str)
def test_what_is_taken_is_described(
    api: httpx.Client, document: dict[str, Any], route: str, body: dict[str, Any], change: dict[str, Any]
) -> None:
    assert api.post(route, json={**body, **change}).status_code == 503  # there is no server behind, but the body was read
    assert valid(document, route, {**body, **change})


@pytest.mark.parametrize(
    ("route", "body", "change"),
    [
        ("/v1/chat/completions", CHAT, {"temperature": 100.5}),
        ("/v1/chat/completions", CHAT, {"top_p": 1.5}),
        ("/v1/chat/completions", CHAT, {"n": 17}),
        ("/v1/chat/completions", CHAT, {"stop": [""]}),
        ("/v1/chat/completions", CHAT, {"logit_bias": {"5": 101}}),
        ("/v1/chat/completions", CHAT, {"speculation": "some"}),
        ("/v1/chat/completions", CHAT, {"structured_outputs": {"yaml": "x"}}),
        ("/v1/chat/completions", CHAT, {"service_tier": "flex"}),
        ("/v1/chat/completions", CHAT, {"unheard_of": 1}),
        ("/v1/chat/completions", CHAT, {"messages": None}),
        ("/v1/completions", COMPLETION, {"prompt": [[-1]]}),
        ("/v1/responses", RESPONSE, {"background": True}),
        ("/v1/embeddings", EMBEDDING, {"encoding_format": "int8"}),
        ("/v1/embeddings", EMBEDDING, {"normalize": True}),
        ("/v1/images/generations", IMAGE, {"partial_images": 4}),
        ("/v1/layouts", LAYOUT, {"canvas": "1280"}),
    ],
    ids=str,
)
def test_what_is_refused_is_not_described(
    api: httpx.Client, document: dict[str, Any], route: str, body: dict[str, Any], change: dict[str, Any]
) -> None:
    assert api.post(route, json={**body, **change}).status_code == 400
    assert valid(document, route, body)
    assert not valid(document, route, {**body, **change})


def test_errors_have_the_form_that_is_described(api: httpx.Client, document: dict[str, Any]) -> None:
    said = document["paths"]["/v1/completions"]["post"]["responses"]["default"]["content"]["application/json"]["schema"]
    error = api.post("/v1/completions", json={}).json()
    jsonschema.Draft202012Validator({**said, "components": document["components"]}).validate(error)
