"""Requests that documents show: bodies are such as the gateway and the models take, and every path of the gateway is named."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from nereid.serving.gateway.app import GatewaySettings, create_app
from nereid.serving.gateway.launch import Rules
from nereid.serving.gateway.openapi import openapi_of
from nereid_protocol.field import Model
from nereid_protocol.fields import IMAGE_FIELDS
from nereid_protocol.layout_fields import LAYOUT_FIELDS
from nereid_protocol.page_fields import PAGE_FIELDS
from nereid_protocol.sampling import SAMPLING_FIELDS

from gateway_before import small_repository

ROOT = Path(__file__).parents[2]
DOCUMENTS = {file.name: file.read_text() for file in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))}


def _requests() -> list[tuple[str, str, Any]]:
    """Document, address, and the body of every curl that sends JSON."""
    found = []
    for document, text in DOCUMENTS.items():
        for command in re.findall(r"^ *(?:`)?(curl (?:[^'\n`]|\\\n|'[^']*')*)", text.replace("\\\n", " "), re.MULTILINE):
            words = shlex.split(command)
            if "-d" in words:
                address = next(word for word in words[1:] if word.startswith("localhost"))
                found.append((document, address.removeprefix("localhost:"), json.loads(words[words.index("-d") + 1])))
    return found


@pytest.fixture(scope="module")
def description(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    repository = small_repository(tmp_path_factory.mktemp("repository"))
    rules = Rules(schema=True, a1111=True, batches=str(tmp_path_factory.mktemp("batches")))
    app = create_app(GatewaySettings(repository=repository, grpc_url="", metrics_url="", ready_url="", rules=rules))
    return openapi_of(app.routes, needs_key=False)


def test_bodies_for_the_gateway_are_such_as_its_models_read(description: dict[str, Any]) -> None:
    asked = [
        (document, address.removeprefix("8080"), body) for document, address, body in _requests() if address.startswith("8080")
    ]
    assert {path for _, path, _ in asked} >= {"/v1/completions", "/v1/embeddings", "/v1/layouts", "/v1/pages"}
    for _, path, body in asked:
        schema = description["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
        jsonschema.validate(body, {**schema, "components": description["components"]})


def test_bodies_for_triton_name_inputs_of_their_model() -> None:
    text = set(re.findall(r'name: "(\w+)"', (ROOT / "model_repository" / "llm" / "config.pbtxt").read_text()))
    inputs = {
        "llm": text | {parameter.name for parameter in SAMPLING_FIELDS},
        "text_to_image_json": {field.name for field in IMAGE_FIELDS if Model.JSON in field.models},
        "layout": {field.name for field in LAYOUT_FIELDS},
        "page": {field.name for field in PAGE_FIELDS},
    }
    asked = [(address.split("/")[3], body) for _, address, body in _requests() if address.startswith("8000/")]
    assert {model for model, _ in asked} == inputs.keys()
    for model, body in asked:
        assert body.keys() <= inputs[model], model


def test_every_path_of_the_gateway_is_in_the_table_of_paths(description: dict[str, Any]) -> None:
    table = DOCUMENTS["deployment.md"].partition("### Paths of the gateway")[2].partition("\n## ")[0]
    named = {name for line in table.splitlines() for name in re.findall(r"`(/[^`]*)`", line.split(" | ")[0])}
    assert "/openapi.json" in named
    forms = [re.compile(re.escape(name).replace(r"\.\.\.", ".+").replace("NAME", "[^/]+") + "(/.*)?") for name in named]
    assert [path for path in description["paths"] if not any(form.fullmatch(path) for form in forms)] == []
    assert [
        form.pattern for form in forms if not any(form.fullmatch(path) for path in (*description["paths"], "/openapi.json"))
    ] == []
