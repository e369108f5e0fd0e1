"""What can be checked of the container without a Docker engine."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import pytest
import yaml

from nereid.serving.gateway.launch import Rules
from nereid.serving.options import ServeOptions, free_ports
from nereid.serving.process import EXIT_SECONDS
from nereid.serving.supervisor import CUT_SECONDS
from nereid_client import Client
from nereid_protocol.metrics import ALL_METRICS

from conftest import Served, gateway

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "docker"
TEXTS = {"type": "array", "items": {"type": "string"}, "uniqueItems": True}

# The part of the Compose Specification that the files here use, with its types; anything else is a mistake.
SERVICE: dict[str, Any] = {
    "type": "object",
    "additionalProperties": False,
    "properties": {
        "build": {
            "type": "object",
            "additionalProperties": False,
            "required": ["context"],
            "properties": {name: {"type": "string"} for name in ("context", "dockerfile", "target")},
        },
        "image": {"type": "string"},
        "restart": {"enum": ["no", "always", "on-failure", "unless-stopped"]},
        "init": {"type": "boolean"},
        "stop_grace_period": {"type": "string", "pattern": "^([0-9]+(us|ms|s|m|h))+$"},
        "read_only": {"type": "boolean"},
        "tmpfs": TEXTS,
        "shm_size": {"type": "string", "pattern": "^[0-9]+(b|kb|mb|gb)$"},
        "security_opt": TEXTS,
        "cap_drop": TEXTS,
        "volumes": TEXTS,
        "ports": {**TEXTS, "items": {"type": "string", "pattern": r"^127\.0\.0\.1:[0-9]+:[0-9]+$"}},
        "depends_on": TEXTS,
        "environment": {"type": "object", "additionalProperties": {"type": ["string", "number", "null"]}},
        "deploy": {
            "type": "object",
            "properties": {
                "resources": {
                    "type": "object",
                    "properties": {
                        "reservations": {
                            "type": "object",
                            "properties": {
                                "devices": {
                                    "type": "array",
                                    "items": {
                                        "type": "object",
                                        "required": ["capabilities"],
                                        "properties": {
                                            "driver": {"type": "string"},
                                            "count": {"anyOf": [{"const": "all"}, {"type": "integer"}]},
                                            "capabilities": TEXTS,
                                        },
                                    },
                                }
                            },
                        }
                    },
                }
            },
        },
    },
}
COMPOSE = {
    "type": "object",
    "additionalProperties": False,
    "required": ["services"],
    "properties": {
        "name": {"type": "string", "pattern": "^[a-z0-9][a-z0-9_-]*$"},
        "services": {"type": "object", "additionalProperties": SERVICE},
        "volumes": {"type": "object"},
    },
}


@pytest.mark.parametrize("file", ["compose.yaml", "compose.gpu.yaml"])
def test_compose_files_obey_the_specification(file: str) -> None:
    jsonschema.validate(yaml.safe_load((DOCKER / file).read_text()), COMPOSE)


def test_everything_compose_mounts_from_here_exists() -> None:
    compose = yaml.safe_load((DOCKER / "compose.yaml").read_text())
    sources = [entry.split(":")[0] for service in compose["services"].values() for entry in service.get("volumes", [])]
    local = [source for source in sources if source.startswith("./")]
    assert local
    assert all((DOCKER / source).exists() for source in local)
    named = [source for source in sources if not source.startswith(("./", "$"))]
    assert set(named) == set(compose["volumes"])
    assert (
        DOCKER / compose["services"]["triton"]["build"]["context"] / compose["services"]["triton"]["build"]["dockerfile"]
    ).is_file()


def test_every_copied_source_exists_and_is_not_ignored() -> None:
    lines = (DOCKER / "Dockerfile").read_text().splitlines()
    sources = [source for line in lines if line.startswith("COPY ") for source in line.split()[1:-1]]
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert len(sources) >= 8
    for source in sources:
        assert (ROOT / source).exists(), source
        assert source in allowed, source


def test_image_is_recent_and_does_not_run_as_root() -> None:
    text = (DOCKER / "Dockerfile").read_text()
    year, month = map(int, re.search(r"ARG TRITON=(\d+)\.(\d+)", text).groups())  # type: ignore[union-attr]
    assert (year, month) >= (26, 7)
    users = re.findall(r"^USER (\w+)$", text, re.MULTILINE)
    assert users[0] == users[-1] == "nereid"
    assert "HEALTHCHECK" in text


def test_plans_are_built_by_the_tensorrt_that_serves_them() -> None:
    """One argument for both stages, and the image itself must agree with it: the check is run here as the build would run it."""
    text = (DOCKER / "Dockerfile").read_text()
    before, serve, export = re.split(r"^FROM .*$", text, flags=re.MULTILINE)
    version = re.search(r"^ARG TENSORRT=(\S+)$", before, re.MULTILINE).group(1)  # type: ignore[union-attr]
    assert re.fullmatch(r"\d+\.\d+\.\d+\.\d+", version)
    assert all(re.search(r"^ARG TENSORRT$", stage, re.MULTILINE) for stage in (serve, export))
    assert '"tensorrt==$TENSORRT"' in export
    assert not re.search(r"tensorrt[^\n]*[<>]", text)
    check = re.search(r"^RUN (test .*)$", serve, re.MULTILINE).group(1)  # type: ignore[union-attr]
    for found, status in ((version, 0), (f"{version}+cuda13.3", 0), ("10.9.0.34", 1), (f"{version}1", 1), ("", 1)):
        done = subprocess.run(
            ["sh", "-c", check], env={"TENSORRT": version, "TRT_VERSION": found}, capture_output=True, text=True
        )
        assert done.returncode == status, found
        assert not status or f"TENSORRT: {version} is not allowed; this image of Triton has" in done.stderr


def test_gateway_of_the_container_is_on_with_a_key_and_off_without(tmp_path: Path) -> None:
    """What `serve` makes of the image's variables and of what compose passes on."""
    text = (DOCKER / "Dockerfile").read_text()
    exposed = re.search(r"^EXPOSE (.+)$", text, re.MULTILINE).group(1).split()  # type: ignore[union-attr]
    image = dict(re.findall(r"^ENV (NEREID_\w+)=(\S+)$", text, re.MULTILINE))
    service = yaml.safe_load((DOCKER / "compose.yaml").read_text())["services"]["triton"]
    published = [entry.rsplit(":", 1)[1] for entry in service["ports"]]
    assert published == exposed
    assert ".[container,gateway,gpu]" in text
    assert service["environment"]["NEREID_OPENAI_PORT"] == "${NEREID_API_KEY:+8080}"
    assert "8080" in exposed
    for key, port, said in (
        ("", "", "is not a model repository"),
        ("secret", "8080", "is not a model repository"),
        ("", "8080", "--openai-host: 0.0.0.0 is not allowed without a key; set NEREID_API_KEY"),
    ):
        environment = {**os.environ, **image, "NEREID_API_KEY": key, "NEREID_OPENAI_PORT": port and str(free_ports(1)[0])}
        command = [sys.executable, "-m", "nereid_client.main", "serve", "--repository", str(tmp_path)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
        assert done.returncode == 1
        assert said in done.stderr


def test_container_is_given_longer_to_end_than_serve_takes(tmp_path: Path) -> None:
    service = yaml.safe_load((DOCKER / "compose.yaml").read_text())["services"]["triton"]
    taken = (
        ServeOptions(repository=tmp_path).drain_seconds + CUT_SECONDS + EXIT_SECONDS + 1 + 5
    )  # Triton's own end, and its keeper's
    assert int(service["stop_grace_period"].removesuffix("s")) >= taken


def board() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((DOCKER / "grafana" / "dashboards" / "nereid.json").read_text())
    return found


def dashboard_metrics() -> set[str]:
    queries = [target["expr"] for panel in board()["panels"] for target in panel["targets"]]
    assert len(queries) >= 12
    return {name for query in queries for name in re.findall(r"\b(?:nereid|nv)_\w+", query)}


@pytest.mark.triton
def test_dashboard_asks_for_metrics_that_the_server_exports(served: Served, tmp_path: Path) -> None:
    with Client(served.grpc_url) as client:
        client.generate_image("a box", num_inference_steps=100)  # long enough for its lane to be told of
        client.generate_page("a bakery", sections=1, pictures=0)
        # Goals that are missed, of which metrics tell only once there is one.
        section = "<section><h1>Bread</h1><p>Baked before noon</p></section>"
        assert client.generate_layout(section, 1280, num_inference_steps=200, deadline_seconds=0.02).degraded
        assert client.generate_page("a bakery", sections=2, pictures=2, deadline_seconds=0.01).degraded
    with gateway(served, rules=Rules(batches=str(tmp_path / "batches"))) as url:
        body = {"model": "llm", "prompt": "a", "max_tokens": 1, "stream": True}
        assert httpx.post(f"{url}/v1/completions", json=body, timeout=60).status_code == 200
        time.sleep(1)  # metrics are gathered for a tenth of a second; the gateway's page ends with Triton's
        health = f"http://127.0.0.1:{served.health}"  # the supervisor's page
        text = "".join(httpx.get(f"{page}/metrics", timeout=10).text for page in (url, health))
    exported = set(re.findall(r"^([a-zA-Z_:][\w:]*)(?:\{| )", text, re.MULTILINE))
    exported |= set(re.findall(r"^# TYPE (\S+) (?:gauge|counter)$", text, re.MULTILINE))  # those that have no series yet
    assert dashboard_metrics() <= exported


def test_dashboard_shows_layouts_and_pages_and_asks_for_nothing_that_is_no_metric() -> None:
    known = {metric.name for metric in ALL_METRICS}
    parts = re.compile(r"_(?:bucket|sum|count)$")
    asked = {name if name in known else parts.sub("", name) for name in dashboard_metrics() if name.startswith("nereid_")}
    assert asked <= known
    assert {"nereid_layout_requests_total", "nereid_page_stage_seconds", "nereid_page_degraded_total"} <= asked
    places = [tuple(panel["gridPos"].values()) for panel in board()["panels"]]
    assert len(set(places)) == len(places)


def test_grafana_finds_its_dashboard_and_its_data_source() -> None:
    source = yaml.safe_load((DOCKER / "grafana/provisioning/datasources/prometheus.yaml").read_text())["datasources"][0]
    assert {panel["datasource"]["uid"] for panel in board()["panels"]} == {source["uid"]}
    scrape = yaml.safe_load((DOCKER / "prometheus.yaml").read_text())["scrape_configs"][0]["static_configs"][0]["targets"]
    assert scrape == ["triton:8002"]
