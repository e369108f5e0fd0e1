"""Limits, cancellation, warnings, metrics: what one server does under pressure, looked at through its metrics."""

from __future__ import annotations

import base64
import io
import json
import re
import time
import urllib.error
import urllib.request
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as grpcclient
from PIL import Image

from nereid_client import (
    CancelledError,
    Client,
    DeadlineExceededError,
    ImageResult,
    InvalidRequestError,
    UnavailableError,
)
from nereid_protocol.metrics import IMAGE_METRICS

from conftest import Served
from raw import column, embeddings, infer, make_input, metric, settled, text
from waiting import until

pytestmark = pytest.mark.triton


def active(served: Served, model: str) -> float:
    return metric(served.metrics, "nereid_image_active_requests", model=model)


LONG = {"num_inference_steps": 900, "width": 64, "height": 64}
"""As long under way as 'tight' allows."""


def running(served: Served, jobs: list[Future[ImageResult]]) -> bool:
    """Whether all of them run on 'tight'; raises what one of them has failed with."""
    assert not [job.result() for job in jobs if job.done()], "one has ended already"
    return active(served, "tight_denoise") == len(jobs)


def ended_in_time(tight: Client, where: str, **request: Any) -> str:
    """What is said of a request whose time is up while it is there; a machine that stands still may keep it from coming there."""
    for seconds in (0.3, 1.5, 5.0):
        with pytest.raises(DeadlineExceededError) as ended:
            tight.generate_image("a box", timeout=seconds, **request)
        if where in str(ended.value):
            break
    return str(ended.value)


@pytest.fixture
def tight(served: Served) -> Client:
    return Client(served.grpc_url, name="tight", retries=0, timeout=60)


def test_full_queue_refuses_at_once_and_keeps_serving(served: Served, tight: Client) -> None:
    def in_server(running: int, waiting: int) -> bool:
        return (
            active(served, "tight_denoise") == running
            and metric(served.metrics, "nereid_image_queued_requests", model="tight_denoise") == waiting
        )

    with ThreadPoolExecutor(3) as pool:
        jobs = [pool.submit(tight.generate_image, "a box", **LONG) for _ in range(2)]
        until(lambda: running(served, jobs))
        jobs.append(pool.submit(tight.generate_image, "a box", num_inference_steps=20))
        until(lambda: in_server(running=2, waiting=1))
        for _ in range(3):
            with pytest.raises(UnavailableError, match="queue: 1 requests wait already"):
                tight.generate_image("a box", num_inference_steps=300)
        assert not any(job.done() for job in jobs), "the refusals waited for what was running"
        assert all(job.result().pixels.size for job in jobs)
    assert tight.generate_image("a box", num_inference_steps=2).pixels.size


def test_unavailable_server_is_tried_again(served: Served) -> None:
    patient = Client(served.grpc_url, name="tight", retries=8, backoff=0.2)
    with ThreadPoolExecutor(6) as pool:
        jobs = [pool.submit(patient.generate_image, "a box", num_inference_steps=40) for _ in range(6)]
        assert all(job.result().pixels.size for job in jobs)


def test_picture_above_the_limit_is_refused_by_its_size(tight: Client) -> None:
    with pytest.raises(InvalidRequestError, match=r"68 x 64.*4096 pixels"):
        tight.generate_image("a box", width=68, height=64)


def test_deadline_ends_a_running_request(tight: Client) -> None:
    assert re.search("timeout_seconds.*running", ended_in_time(tight, "running", **LONG))


def test_deadline_ends_a_waiting_request(served: Served, tight: Client) -> None:
    with ThreadPoolExecutor(2) as pool:
        jobs = [pool.submit(tight.generate_image, "a box", **LONG) for _ in range(2)]
        until(lambda: running(served, jobs))
        assert re.search("timeout_seconds.*waiting", ended_in_time(tight, "waiting"))
        assert all(job.result() for job in jobs)


def test_request_cancelled_on_denoise_frees_its_place(served: Served) -> None:
    slow = {"num_inference_steps": column(np.int32, 200), "width": column(np.int32, 512), "height": column(np.int32, 512)}
    cancelled = metric(served.metrics, "nereid_image_requests_total", model="denoise", outcome="cancelled")
    until(lambda: active(served, "denoise") == 0)
    steps = metric(served.metrics, "nv_inference_count", model="unet")
    with grpcclient.InferenceServerClient(served.grpc_url) as client:
        answers: list[object] = []
        tensors = [make_input(name, value) for name, value in {**embeddings(served.grpc_url, "a box"), **slow}.items()]
        call = client.async_infer("denoise", tensors, lambda result, error: answers.append(error))
        until(lambda: active(served, "denoise") == 1)
        call.cancel()
        until(lambda: active(served, "denoise") == 0)
    taken = (metric(served.metrics, "nv_inference_count", model="unet") - steps) / 2
    assert taken < 150
    # One that an earlier test has left may be counted late, and be another.
    until(lambda: metric(served.metrics, "nereid_image_requests_total", model="denoise", outcome="cancelled") > cancelled)


@pytest.mark.parametrize("protocol", ["sync", "async"])
def test_stream_left_early_frees_its_place_within_a_segment(served: Served, protocol: str) -> None:
    steps = metric(served.metrics, "nv_inference_count", model="unet")
    slow: dict[str, Any] = {"num_inference_steps": 200, "width": 512, "height": 512, "preview_interval": 5}
    if protocol == "sync":
        with Client(served.grpc_url) as client:
            for _ in client.stream_image("a box", **slow):
                break
    else:
        import asyncio

        from nereid_client import AsyncClient

        async def leave() -> None:
            async with AsyncClient(served.grpc_url) as client:
                async for _ in client.stream_image("a box", **slow):
                    return

        asyncio.run(leave())
    until(lambda: active(served, "denoise") == 0)
    time.sleep(0.5)
    assert active(served, "denoise") == 0
    taken = (metric(served.metrics, "nv_inference_count", model="unet") - steps) / 2
    assert taken < 100


def test_cancelled_submission_raises_here(served: Served) -> None:
    with Client(served.grpc_url) as client:
        until(lambda: active(served, "denoise") == 0)
        pending = client.submit_image("a box", num_inference_steps=200, width=512, height=512)
        until(lambda: active(served, "denoise") == 1)
        pending.cancel()
        with pytest.raises(CancelledError):
            pending.result(60)


def test_long_prompt_is_cut_and_says_so(served: Served) -> None:
    with Client(served.grpc_url) as client:
        result = client.generate_image("a small red circle " * 10, num_inference_steps=2)
        assert any("prompt" in warning and "cut to 16" in warning for warning in result.warnings)
        assert client.generate_image("a circle", num_inference_steps=2).warnings == ()


@pytest.mark.parametrize("prompt", ["", " ", "красный круг", "圆", "a 🐙 on a 🏳️‍🌈", "\x00", "é" * 10])
def test_any_text_is_a_prompt(served: Served, prompt: str) -> None:
    with Client(served.grpc_url) as client:
        assert client.generate_image(prompt, num_inference_steps=1).pixels.shape == (1, 32, 32, 3)


def test_few_step_model_has_its_own_defaults(served: Served) -> None:
    before = metric(served.metrics, "nv_inference_count", model="lcm_unet")
    with Client(served.grpc_url, name="lcm") as client:
        assert client.generate_image("a box").warnings == ()
    assert metric(served.metrics, "nv_inference_count", model="lcm_unet") - before == 4


def test_prompts_of_one_batch_take_parameters_of_their_own(served: Served) -> None:
    batch = infer(
        served.grpc_url,
        "text_to_image",
        {
            "prompt": text("a box", "a cross"),
            "num_inference_steps": column(np.int32, 3, 6),
            "seed": column(np.int64, 1, 2),
            "scheduler": text("ddim", "unipc"),
        },
        ["generated_image", "image_seed"],
    )
    with Client(served.grpc_url) as client:
        first = client.generate_image("a box", num_inference_steps=3, seed=1, scheduler="ddim")
        second = client.generate_image("a cross", num_inference_steps=6, seed=2, scheduler="unipc")
    assert batch["image_seed"].ravel().tolist() == [1, 2]
    assert np.array_equal(batch["generated_image"], np.concatenate([first.pixels, second.pixels]))


@pytest.mark.parametrize(("width", "height"), [(36, 44), (64, 32), (20, 100)])
def test_any_size_that_fits_the_vae(served: Served, width: int, height: int) -> None:
    with Client(served.grpc_url) as client:
        result = client.generate_image("a box", num_inference_steps=2, width=width, height=height)
    assert result.image.size == (width, height)


def test_json_face_gives_the_same_picture_as_base64(served: Served) -> None:
    body = {"prompt": "a box", "num_inference_steps": 3, "seed": 4}
    request = urllib.request.Request(
        f"http://{served.http_url}/v2/models/text_to_image_json/generate",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        made = json.load(answer)
    picture = Image.open(io.BytesIO(base64.b64decode(made["generated_image"])))
    with Client(served.grpc_url) as client:
        expected = client.generate_image("a box", num_inference_steps=3, seed=4)
    assert made["image_seed"] == 4
    assert np.array_equal(np.asarray(picture), expected.pixels[0])


def test_metrics_are_exported_and_count(served: Served) -> None:
    with urllib.request.urlopen(f"http://127.0.0.1:{served.metrics}/metrics", timeout=10) as page:
        families = {line.split()[2] for line in page.read().decode().splitlines() if line.startswith("# TYPE")}
    assert {entry.name for entry in IMAGE_METRICS} <= families

    def counted() -> tuple[float, float]:
        """Pictures, and requests that were answered."""
        labels = {"model": "denoise"}
        return (
            metric(served.metrics, "nereid_images_total", **labels),
            metric(served.metrics, "nereid_image_requests_total", outcome="success", **labels),
        )

    pictures, requests = settled(counted)
    with Client(served.grpc_url) as client:
        client.generate_image("a box", num_inference_steps=2, num_images_per_prompt=3)
    until(lambda: counted() == (pictures + 3, requests + 1))


def test_model_control_is_closed_to_everybody(served: Served) -> None:
    for path in ("/v2/repository/models/unet/unload", "/v2/systemsharedmemory/region/x/register", "/v2/logging"):
        request = urllib.request.Request(f"http://{served.http_url}{path}", b"{}")
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(request, timeout=10)
        assert caught.value.code == 403
