"""Kills processes of a server in turn while requests run: what is lost, whether bytes differ, how soon it is back."""

from __future__ import annotations

import base64
import contextlib
import http.client
import io
import json
import signal
import time
import urllib.request
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from PIL import Image

from nereid.serving.errors import ServingError
from nereid.serving.process import STUB
from nereid_bench.compare import Say
from nereid_bench.servers import HOST, WithGateway, serving_with_gateway
from nereid_client import Client, NereidError

WORKER = "llm worker"
GATEWAY = "gateway"
SERVER = "tritonserver"
VICTIMS = (
    "unet",
    "unet_shallow",
    "text_encoder",
    "vae_decoder",
    "vae_decoder_tiny",
    "tokenizer",
    "image_output",
    "denoise",
    "text_to_image_stream",
    "llm",
    WORKER,
    SERVER,
    GATEWAY,
)
_NOT_ALWAYS_THERE = ("unet_shallow", "vae_decoder_tiny")
"""Engines of a UNet that was exported with --cache-branch, and of --tiny-vae; where they are, every other image needs them."""
SIGNALS = {"KILL": signal.SIGKILL, "STOP": signal.SIGSTOP}
_TEXT = "<section"
_UNSEEN_SECONDS = 15.0


@dataclass(frozen=True, slots=True, kw_only=True)
class DeathsPlan:
    """Which processes get the signal, each while `images` and `texts` requests run, first through the SDK, then the gateway."""

    repository: Path
    victims: tuple[str, ...] = ()
    """All that the repository has where there are none."""
    signal_name: str = "KILL"
    images: int = 6
    texts: int = 4
    steps: int = 60
    tokens: int = 600
    after_seconds: float = 0.7

    @property
    def present(self) -> tuple[str, ...]:
        """The victims."""
        return self.victims or tuple(name for name in VICTIMS if name not in _NOT_ALWAYS_THERE or self.has(name))

    def has(self, model: str) -> bool:
        return (self.repository / model).is_dir()

    def image_options(self, number: int) -> dict[str, Any]:
        """What a request says besides, so that the engines that are not always there are asked."""
        options: dict[str, Any] = {"num_inference_steps": self.steps}
        if number % 2 and self.has("unet_shallow"):
            options["cache_interval"] = 3
        if number % 2 and self.has("vae_decoder_tiny"):
            options["decoder"] = "tiny"
        return options


Ask = Callable[[int], bytes]
"""Sends the request of that number and gives its answer; raises where there is none."""


def deaths(plan: DeathsPlan, say: Say) -> list[dict[str, Any]]:
    """A row for each victim and way."""
    with (
        serving_with_gateway(plan.repository) as server,
        Client(f"{HOST}:{server.options.grpc_port}", timeout=180) as client,
        ThreadPoolExecutor(plan.images + plan.texts) as pool,
    ):
        ways = {"SDK": _through_sdk(client, plan), "gateway": _through_gateway(server, plan)}
        rows = []
        for way, (image, text) in ways.items():
            say(f"{way}: undisturbed answers")
            requests = _Requests(pool, image, text, plan)
            wanted = [made.result() for made in requests.send()]
            for victim in plan.present:
                say(f"{way}: SIG{plan.signal_name} to {victim}")
                rows.append({"victim": victim, "through": way, **_hurt(victim, plan, server, requests, wanted)})
        return rows


@dataclass(frozen=True, slots=True)
class _Requests:
    """The same ones each time: an answer is comparable with another of the same place."""

    pool: ThreadPoolExecutor
    image: Ask
    text: Ask
    plan: DeathsPlan

    def send(self) -> list[Future[bytes]]:
        images = [self.pool.submit(self.image, number) for number in range(self.plan.images)]
        return images + [self.pool.submit(self.text, number) for number in range(self.plan.texts)]


def _through_sdk(client: Client, plan: DeathsPlan) -> tuple[Ask, Ask]:
    def image(number: int) -> bytes:
        made = client.generate_image(f"a red circle {number}", seed=number, **plan.image_options(number))
        return np.ascontiguousarray(made.pixels).tobytes()

    def text(number: int) -> bytes:
        made = client.stream_text(_TEXT, seed=number, max_tokens=plan.tokens, ignore_eos=True)
        return "".join(delta.text for delta in made).encode()

    return image, text


def _through_gateway(server: WithGateway, plan: DeathsPlan) -> tuple[Ask, Ask]:
    """As a caller who never tries again: what breaks is lost."""

    def post(path: str, body: dict[str, Any]) -> bytes:
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(f"{server.url}/v1/{path}", json.dumps(body).encode(), headers)
        with urllib.request.urlopen(request, timeout=180) as answer:
            return bytes(answer.read())

    def image(number: int) -> bytes:
        body = {"model": "text_to_image", "prompt": f"a red circle {number}", "seed": number, **plan.image_options(number)}
        made = json.loads(post("images/generations", {**body, "response_format": "b64_json"}))
        return np.asarray(Image.open(io.BytesIO(base64.b64decode(made["data"][0]["b64_json"])))).tobytes()

    def text(number: int) -> bytes:
        body = {"model": "llm", "prompt": _TEXT, "seed": number, "max_tokens": plan.tokens, "ignore_eos": True}
        lines = post("completions", {**body, "stream": True}).decode().splitlines()
        if "data: [DONE]" not in lines:
            raise ConnectionError("the stream broke off")
        events = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
        if errors := [event["error"]["message"] for event in events if "error" in event]:
            raise ConnectionError(errors[0])
        return "".join(event["choices"][0]["text"] for event in events if event["choices"]).encode()

    return image, text


def _hurt(victim: str, plan: DeathsPlan, server: WithGateway, requests: _Requests, wanted: list[bytes]) -> dict[str, Any]:
    made = requests.send()
    time.sleep(plan.after_seconds)
    inside = sum(not job.done() for job in made)
    process = _find(victim, server)
    process.send_signal(SIGNALS[plan.signal_name])
    start = time.monotonic()
    ready_after = _seconds_until_ready(server, process, start)
    lost = different = 0
    for job, expected in zip(made, wanted, strict=True):
        try:
            different += job.result() != expected
        except (NereidError, OSError, http.client.HTTPException):
            lost += 1
    last_answer_after = time.monotonic() - start
    _until_nothing_is_due(server)
    return {
        "inside": inside,
        "lost": lost,
        "different": different,
        "ready_after": ready_after,
        "last_answer_after": last_answer_after,
    }


def _find(victim: str, server: WithGateway) -> psutil.Process:
    """The victim among the processes of this server, which are known by its repository and its gRPC port."""
    family = _below(server.process.pid)
    if victim == GATEWAY:
        # After its interpreter: the keeper has the same words, behind its own.
        return _first(victim, family, lambda command: "nereid.serving.gateway" in command[:4])
    triton = _first(
        SERVER, family, lambda command: f"--grpc-port={server.options.grpc_port}" in command[1:] and _is(SERVER, command)
    )
    if victim == SERVER:
        return triton
    if victim == WORKER:
        return _first(victim, _below(triton.pid), lambda command: any("worker_main" in part for part in command))
    return _first(
        victim,
        _below(triton.pid),
        lambda command: _is(STUB, command) and command[-2].rsplit("_", 2)[0] == victim,
    )


def _first(name: str, family: list[psutil.Process], is_it: Callable[[list[str]], bool]) -> psutil.Process:
    for process in family:
        if is_it(_command(process)):
            return process
    raise ServingError(f"{name}: no such process runs")


def _is(program: str, command: list[str]) -> bool:
    return Path(command[0]).name == program


def _below(pid: int) -> list[psutil.Process]:
    return psutil.Process(pid).children(recursive=True)


def _command(process: psutil.Process) -> list[str]:
    with contextlib.suppress(psutil.Error):
        return process.cmdline() or [""]
    return [""]


def _seconds_until_ready(server: WithGateway, victim: psutil.Process, start: float) -> float | None:
    """Until /ready says 200 again after it did not; None where it never said so within 15 s though the process is gone."""
    was_down = False
    while True:
        seconds = time.monotonic() - start
        ready = server.state()["ready"]
        if ready and was_down:
            return seconds
        was_down = was_down or not ready
        if not was_down and seconds > _UNSEEN_SECONDS and not victim.is_running():
            return None
        if seconds > 180:
            raise ServingError("the server is not back after 180 s")
        time.sleep(0.02)


def _until_nothing_is_due(server: WithGateway) -> None:
    """A restart that was put off has come, before the next process is hurt."""
    end = time.monotonic() + 180
    while time.monotonic() < end:
        page = server.state()
        if page["ready"] and not page["restart_pending"]:
            return
        time.sleep(0.1)
    raise ServingError("the server is not whole after 180 s")
