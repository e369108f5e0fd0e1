"""Faults, caused for real: killed stubs, a killed server, signals. Each leaves a server that serves, or nothing at all."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from nereid.serving.options import free_ports
from nereid_client import Client, NereidError

from conftest import OwnTemporary, Served, export, serving, set_parameters, shared_memory, stub_of
from raw import metric
from waiting import until

pytestmark = pytest.mark.triton


@pytest.fixture(scope="module")
def own(checkpoints: dict[str, Path], repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server of one pipeline and one language model that these tests may hurt."""
    folder = tmp_path_factory.mktemp("own")
    export(checkpoints["sd"], folder / "repository")
    shutil.copytree(repository / "llm", folder / "repository" / "llm")
    set_parameters(folder / "repository", "denoise", max_steps=900)
    yield from serving(folder / "repository", folder, checkpoints)


def replaced(served: Served, model: str, dead: psutil.Process) -> psutil.Process | None:
    """The process that stands in for a dead one, once there is one."""
    try:
        found = stub_of(served, model)
    except AssertionError:
        return None
    return None if found.pid == dead.pid else found


def health(served: Served) -> tuple[int, dict[str, object]]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{served.health}/ready", timeout=5) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def wait_until_settled(served: Served) -> None:
    """Ready, nothing in flight any more, and no restart to come that ends requests inside a dead process."""
    until(lambda: health(served)[0] == 200 and not health(served)[1]["restart_pending"] and _idle(served), seconds=120)


def _idle(served: Served) -> bool:
    try:
        return metric(served.metrics, "nereid_image_active_requests", model="denoise") == 0
    except (OSError, AssertionError, KeyError):
        return False


def begin(served: Served, submit: Callable[[], list[Future[Any]]], gauge: str, model: str) -> list[Future[Any]]:
    """Requests that are all inside. Where a quick machine has done with the first before the last has come, they are begun
    again; what they failed with is raised."""
    for _ in range(5):
        jobs = submit()
        while not any(job.done() for job in jobs):
            if metric(served.metrics, f"nereid_{gauge}", model=model) >= len(jobs):
                return jobs
            time.sleep(0.01)
        for job in jobs:
            job.result(timeout=60)
    raise AssertionError("they ended before they could be disturbed")


def wait_until_served(served: Served) -> None:
    """How soon is not asserted, beyond a bound that tells healing from not healing."""
    start = time.monotonic()
    while time.monotonic() - start < 60:
        try:
            with Client(served.grpc_url, retries=0, replays=0, timeout=20) as client:
                client.generate_image("a box", num_inference_steps=2)
            if health(served)[0] == 200:
                return
        except NereidError:
            time.sleep(0.1)
    raise AssertionError("the server never came back")


@pytest.mark.parametrize("model", ["tokenizer", "text_encoder", "unet", "denoise", "vae_decoder", "image_output"])
def test_killed_stub_ends_only_what_cannot_go_on_and_serves_again(own: Served, model: str) -> None:
    """Without replays, so that it is seen what Triton itself keeps."""
    wait_until_settled(own)
    with Client(own.grpc_url, retries=0, replays=0, timeout=60) as client, ThreadPoolExecutor(4) as pool:
        ask = partial(client.generate_image, "a box", num_inference_steps=850)
        jobs = begin(own, lambda: [pool.submit(ask) for _ in range(4)], "image_active_requests", "denoise")
        stub_of(own, model).kill()
        until(lambda: health(own)[0] != 200)
        wait_until_served(own)
        errors = [job.exception(timeout=60) for job in jobs]
    if model == "denoise":
        assert all(isinstance(error, NereidError) for error in errors)
    elif model in ("tokenizer", "text_encoder", "unet"):
        assert errors == [None] * 4  # they were past it; a call of the loop is made again
    else:  # whether they came to it before it was back is a matter of time
        assert all(error is None or model in str(error) for error in errors)


@pytest.mark.parametrize("model", ["text_to_image_stream", "text_to_image_json", "vae_encoder"])
def test_killed_bystander_does_not_touch_other_requests(own: Served, model: str) -> None:
    wait_until_settled(own)
    with Client(own.grpc_url, retries=0, replays=0, timeout=60) as client, ThreadPoolExecutor(4) as pool:
        jobs = [pool.submit(client.generate_image, "a box", num_inference_steps=100) for _ in range(4)]
        dead = stub_of(own, model)
        dead.kill()
        assert all(job.result(timeout=60).pixels.size for job in jobs)
        until(lambda: replaced(own, model, dead) is not None)
        wait_until_settled(own)
        if model == "text_to_image_stream":
            assert list(client.stream_image("a box", num_inference_steps=2))


@pytest.mark.parametrize("model", ["text_to_image_stream", "text_to_image_json"])
def test_callers_inside_a_killed_stub_are_ended_also_without_the_sdk(own: Served, model: str) -> None:
    """Triton itself would leave them waiting for ever: the server is restarted, since nobody else is inside."""
    wait_until_settled(own)
    body = {"prompt": "a box", "num_inference_steps": 850}
    url = f"http://{own.http_url}/v2/models/{model}/generate{'_stream' if model.endswith('stream') else ''}"
    with ThreadPoolExecutor(1) as pool:
        (job,) = begin(own, lambda: [pool.submit(httpx.post, url, json=body, timeout=100)], "image_active_requests", "denoise")
        pid = own.supervisor.triton_pid  # type: ignore[attr-defined]
        stub_of(own, model).kill()
        with contextlib.suppress(httpx.TransportError):  # the connection ends with the server
            assert "error" in job.result(timeout=90).text
    wait_until_settled(own)
    assert own.supervisor.triton_pid != pid  # type: ignore[attr-defined]


def test_killed_language_model_ends_its_answers_with_an_error_and_serves_again(own: Served) -> None:
    def ask() -> str:
        with Client(own.grpc_url, retries=0, replays=0, timeout=60) as client:
            return "".join(delta.text for delta in client.stream_text("<section", ignore_eos=True, max_tokens=1900))

    wait_until_settled(own)
    with ThreadPoolExecutor(3) as pool:
        jobs = begin(own, lambda: [pool.submit(ask) for _ in range(3)], "llm_requests_running", "llm")
        stub_of(own, "llm").kill()
        assert all(isinstance(job.exception(timeout=60), NereidError) for job in jobs)
    wait_until_settled(own)
    with Client(own.grpc_url, retries=0, replays=0, timeout=60) as client:
        assert client.generate_text("<section", max_tokens=3, temperature=0).num_output_tokens == 3


def test_killed_server_is_started_again(own: Served) -> None:
    wait_until_settled(own)
    pid = own.supervisor.triton_pid  # type: ignore[attr-defined]
    os.kill(pid, signal.SIGKILL)
    until(lambda: health(own)[0] == 503 or own.supervisor.triton_pid != pid)  # type: ignore[attr-defined]
    wait_until_served(own)
    assert own.supervisor.triton_pid != pid  # type: ignore[attr-defined]
    assert not psutil.pid_exists(pid)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_lets_what_is_inside_finish_stops_everything_and_leaves_nothing(
    own: Served, number: signal.Signals, tmp_path: Path, temporary: OwnTemporary
) -> None:
    http, grpc, metrics, port, openai = free_ports(5)
    command = [sys.executable, "-m", "nereid_client.main", "serve", "--repository", str(own.repository)]
    ports = ["--http-port", http, "--grpc-port", grpc, "--metrics-port", metrics, "--health-port", port, "--openai-port", openai]
    server = subprocess.Popen(
        [*command, *map(str, ports), "--log-file", str(tmp_path / "log")], env=temporary.environment, stderr=subprocess.PIPE
    )
    with Client(f"127.0.0.1:{grpc}", retries=0) as client:
        until(client.is_ready, seconds=120)
    family = psutil.Process(server.pid).children(recursive=True)
    assert len(family) >= 12
    regions = temporary.regions()
    assert len(shared_memory(regions)) >= 8
    body = {"model": "llm", "prompt": "<section", "max_tokens": 200, "ignore_eos": True, "stream": True}
    with httpx.stream("POST", f"http://127.0.0.1:{openai}/v1/completions", json=body, timeout=60) as answer:
        lines = answer.iter_lines()
        assert "data: {" in next(lines)
        server.send_signal(number)
        rest = [line for line in lines if line]
    assert rest[-1] == "data: [DONE]" or '"shutting_down"' in rest[-1]
    assert server.wait(60) == 0
    assert not any(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in family)
    assert shared_memory(regions) == []
    assert temporary.folders() == []
