"""Killed with -9 while a large picture is decoded by tiles: the picture comes, as it would have come undisturbed."""

from __future__ import annotations

import base64
import io
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pytest
from PIL import Image

from nereid_client import CancelledError, Client, ImageResult

from conftest import Served, export, gateway, serving, set_parameters, stub_of, wait_until_whole
from raw import column, infer, metric, text
from waiting import until

pytestmark = pytest.mark.triton

LARGE: dict[str, Any] = {
    "seed": 3,
    "num_inference_steps": 1,
    "guidance_scale": 1.0,
    "height": 512,
    "width": 512,
    "tile_sample_min_size": 64,
}
"""One step, and some hundred tiles."""
TILES = {"tile_sample_min_size": column(np.int32, 64), "tile_overlap_factor": column(np.float32, 0.25)}
TIMEOUT = 240


@pytest.fixture(scope="module")
def own(checkpoints: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server of one pipeline that these tests may hurt."""
    folder = tmp_path_factory.mktemp("decoded")
    export(checkpoints["sd"], folder / "repository")
    set_parameters(folder / "repository", "denoise", max_steps=900)
    yield from serving(folder / "repository", folder, checkpoints)


@pytest.fixture(autouse=True)
def whole(own: Served) -> None:
    """Each test begins with a server that has done with the death of the test before."""
    wait_until_whole(own, seconds=120)


@pytest.fixture(scope="module")
def undisturbed(own: Served) -> bytes:
    with Client(own.grpc_url, timeout=TIMEOUT) as client:
        return picture(client)


def picture(client: Client) -> bytes:
    return client.generate_image("a box", **LARGE).pixels.tobytes()


def streamed(client: Client) -> bytes:
    last = list(client.stream_image("a box", **LARGE))[-1]
    assert isinstance(last, ImageResult)
    return last.pixels.tobytes()


def latents(seed: int) -> dict[str, np.ndarray]:
    made = np.random.default_rng(seed).standard_normal((1, 4, 192, 192)).astype(np.float32)
    return {"latents": made, **TILES}


def decoded(served: Served) -> float:
    """Calls of the decoder so far."""
    return metric(served.metrics, "nv_inference_request_success", model="vae_decoder")


def kill_while_decoding(served: Served, victim: str, jobs: list[Future[Any]], tiles: int = 20) -> None:
    start = decoded(served)
    while decoded(served) < start + tiles:
        ended = [job.exception() or "answered" for job in jobs if job.done()]
        assert not ended, f"they ended before they could be disturbed: {ended} {ended[0]}"
        time.sleep(0.005)
    if victim == "tritonserver":
        psutil.Process(served.supervisor.triton_pid).kill()  # type: ignore[attr-defined]
    else:
        stub_of(served, victim).kill()


@pytest.mark.parametrize("victim", ["vae_decoder", "image_output", "denoise", "text_to_image_stream", "tritonserver"])
def test_a_large_picture_is_not_lost(own: Served, undisturbed: bytes, victim: str) -> None:
    """Both protocols, and a stream."""

    def ask(protocol: str, request: Callable[[Client], bytes]) -> bytes:
        url = own.grpc_url if protocol == "grpc" else own.http_url
        with Client(url, protocol=protocol, timeout=TIMEOUT) as client:
            return request(client)

    with ThreadPoolExecutor(3) as pool:
        asked = (("grpc", picture), ("http", picture), ("grpc", streamed))
        jobs = [pool.submit(ask, protocol, request) for protocol, request in asked]
        kill_while_decoding(own, victim, jobs)
        assert [job.result(TIMEOUT) == undisturbed for job in jobs] == [True] * 3


def test_a_large_picture_is_not_lost_through_the_gateway(own: Served, undisturbed: bytes) -> None:
    given = {name: value for name, value in LARGE.items() if name not in ("height", "width")}
    body = {"model": "text_to_image", "prompt": "a box", "size": "512x512", "response_format": "b64_json", **given}
    with gateway(own) as url, ThreadPoolExecutor(1) as pool:
        job = pool.submit(httpx.post, f"{url}/v1/images/generations", json=body, timeout=TIMEOUT)
        kill_while_decoding(own, "image_output", [job])
        answer = job.result(TIMEOUT)
    assert answer.status_code == 200, answer.text
    drawn = Image.open(io.BytesIO(base64.b64decode(answer.json()["data"][0]["b64_json"])))
    assert np.asarray(drawn).tobytes() == undisturbed


def test_raw_callers_of_a_decoder_that_dies_get_their_pictures_each_time(own: Served) -> None:
    """Two callers without the SDK, and two deaths, of which none is theirs."""

    def ask(seed: int) -> bytes:
        return infer(own.grpc_url, "image_output", latents(seed), ["generated_image"])["generated_image"].tobytes()

    alone = [ask(seed) for seed in range(2)]
    with ThreadPoolExecutor(2) as pool:
        jobs = [pool.submit(ask, seed) for seed in range(2)]
        kill_while_decoding(own, "vae_decoder", jobs)
        assert [job.result(TIMEOUT) for job in jobs] == alone


def test_others_go_on_when_image_output_dies_and_its_pictures_come_before_the_server_is_restarted(
    own: Served, undisturbed: bytes
) -> None:
    """The runs inside `denoise` are not ended for the sake of those who wait for a dead process: who watches is told."""
    with Client(own.grpc_url, timeout=TIMEOUT) as client, ThreadPoolExecutor(2) as pool:
        pid = own.supervisor.triton_pid  # type: ignore[attr-defined]
        busy = client.submit_image("a box", num_inference_steps=900, num_images_per_prompt=8, height=128, width=128)
        until(lambda: metric(own.metrics, "nereid_image_active_requests", model="denoise") >= 1)
        jobs = [pool.submit(request, client) for request in (picture, streamed)]
        kill_while_decoding(own, "image_output", jobs)
        assert [job.result(TIMEOUT) == undisturbed for job in jobs] == [True] * 2
        assert not busy.done, "it ended before the pictures came, and with it what the server was kept for"
        assert own.supervisor.triton_pid == pid  # type: ignore[attr-defined]
        assert metric(own.metrics, "nereid_image_active_requests", model="denoise") == 1
        busy.cancel()


def test_raw_callers_inside_a_killed_image_output_are_ended_by_a_restart(own: Served) -> None:
    """Triton itself would leave them waiting for ever."""
    pid = own.supervisor.triton_pid  # type: ignore[attr-defined]
    with ThreadPoolExecutor(1) as pool:
        job = pool.submit(infer, own.grpc_url, "image_output", latents(0), ["generated_image"])
        kill_while_decoding(own, "image_output", [job])
        assert job.exception(90) is not None
    until(lambda: own.supervisor.triton_pid != pid)  # type: ignore[attr-defined]


def test_a_cancelled_picture_is_not_decoded_to_its_end(own: Served) -> None:
    larger = {**LARGE, "height": 1024, "width": 1024}  # some five hundred tiles
    with Client(own.grpc_url, timeout=TIMEOUT) as client:
        run = client.submit_image("a box", run_id="leaving", **larger)
        start = decoded(own)
        until(lambda: decoded(own) >= start + 5, interval=0.005)
        asked = infer(own.grpc_url, "denoise", {"cancel": text("leaving")}, ["run_state"])
        assert asked["run_state"].item() == b"running"
        with pytest.raises(CancelledError):
            run.result(60)
    count = decoded(own)
    time.sleep(0.5)
    assert decoded(own) == count < start + 300
