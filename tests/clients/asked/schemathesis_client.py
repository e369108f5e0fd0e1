"""Schemathesis over the gateway's own /openapi.json: the document is valid, and nothing that can be sent ends in a 500."""

from __future__ import annotations

import json
import urllib.request
from collections import Counter
from pathlib import Path
from typing import Any

from openapi_spec_validator import validate

from told import FOLDER, GATEWAY, KEY, Client, command, expect

client = Client("schemathesis", "schemathesis")
INPUTS = 5000
_EXAMPLES = 100
"""For each operation, beside those that cover its schema, some thousands."""
HOOKS = Path(__file__).with_name("schemathesis_hooks.py")


def document() -> dict[str, Any]:
    request = urllib.request.Request(f"{GATEWAY}/openapi.json", headers={"Authorization": f"Bearer {KEY}"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        made: dict[str, Any] = json.load(answer)
    return made


@client.capability("the document is valid OpenAPI 3.1")
def valid() -> None:
    made = document()
    expect(made["openapi"].startswith("3.1"), f"it is OpenAPI {made['openapi']}")
    validate(made)


@client.capability(f"no 500 in {INPUTS} inputs")
def no_server_errors() -> None:
    statuses = FOLDER / "statuses"
    words = ["run", f"{GATEWAY}/openapi.json", "-H", f"Authorization: Bearer {KEY}", "--checks", "not_a_server_error"]
    words += ["--phases", "coverage,fuzzing", "--max-examples", _EXAMPLES, "--seed", 1, "--continue-on-failure", "--no-shrink"]
    words += ["--request-timeout", 60, "--suppress-health-check", "all", "--no-color"]
    said = command("schemathesis", *words, seconds=2700, SCHEMATHESIS_HOOKS=str(HOOKS), NEREID_STATUSES=str(statuses))
    counted = Counter(statuses.read_text().split())
    print(dict(counted), said[-2000:])
    expect(sum(counted.values()) >= INPUTS, f"there were only {sum(counted.values())} inputs")
    expect(not counted["500"], f"{counted['500']} of {sum(counted.values())} ended in a 500")


client.main()
