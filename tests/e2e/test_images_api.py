"""Images through the gateway before a real server: edits, addresses, partial ones, and AUTOMATIC1111's API."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from PIL import Image

from nereid.serving.gateway.launch import Rules
from nereid_client import Client

from conftest import Served, gateway
from raw import metric
from waiting import until

pytestmark = pytest.mark.triton

KEY = "a-key-of-the-test"
MODEL, SEED, STEPS = "text_to_image", 4, 6
GRADIENT = np.stack(np.broadcast_arrays(np.arange(32)[:, None] * 8, np.arange(32)[None] * 8, 128), -1).astype(np.uint8)


@pytest.fixture(scope="module")
def url(served: Served) -> Iterator[str]:
    with gateway(served, KEY, rules=Rules(a1111=True)) as url:
        yield url


@pytest.fixture
def api(url: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key=KEY, max_retries=0, timeout=60)


@pytest.fixture
def webui(url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=f"{url}/sdapi/v1", auth=("anybody", KEY), timeout=120) as client:
        yield client


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def shown(picture: str | None) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(picture or ""))))


def direct(served: Served, **options: Any) -> np.ndarray:
    with Client(served.grpc_url, timeout=60) as client:
        return client.generate_image("a red box", num_inference_steps=STEPS, seed=SEED, **options).pixels[0]


def test_an_edit_is_the_run_from_its_picture(served: Served, api: openai.OpenAI) -> None:
    extra = {"num_inference_steps": STEPS, "seed": SEED, "strength": 0.5}
    asked: Any = {"model": MODEL, "image": ("a.png", png(GRADIENT)), "prompt": "a red box", "extra_body": extra}
    made = api.images.edit(**asked)
    assert made.data is not None
    expected = direct(served, init_image=GRADIENT, strength=0.5)
    assert np.array_equal(shown(made.data[0].b64_json), expected)
    assert made.size == "32x32"
    events = list(api.images.edit(**asked, stream=True, partial_images=1))
    assert [event.type for event in events] == ["image_edit.partial_image", "image_edit.completed"]
    assert shown(events[0].b64_json).shape == expected.shape
    assert np.array_equal(shown(events[1].b64_json), expected)


def test_an_edit_with_a_mask_draws_what_is_transparent_in_it(served: Served, api: openai.OpenAI) -> None:
    mask = np.zeros((32, 32, 4), np.uint8)
    mask[:, 16:, 3] = 255
    extra = {"num_inference_steps": STEPS, "seed": SEED}
    picture, clear = ("a.png", png(GRADIENT)), ("b.png", png(mask))
    made = api.images.edit(model=MODEL, image=picture, mask=clear, prompt="a red box", extra_body=extra)
    assert made.data is not None
    expected = direct(served, init_image=GRADIENT, mask_image=mask[..., 3] == 0)
    assert np.array_equal(shown(made.data[0].b64_json), expected)
    assert not np.array_equal(expected, direct(served, init_image=GRADIENT, strength=1.0))


def test_a_front_ends_mask_leaves_the_rest_of_the_picture_as_it_was(served: Served, webui: httpx.Client) -> None:
    mask = np.zeros((32, 32), np.uint8)
    mask[8:24, 8:24] = 255
    body = {
        "prompt": "a red box",
        "steps": STEPS,
        "seed": SEED,
        "init_images": [base64.b64encode(png(GRADIENT)).decode()],
        "mask": base64.b64encode(png(mask)).decode(),
        "mask_blur": 0,
        "inpainting_fill": 1,
        "inpaint_full_res": False,
        "denoising_strength": 0.8,
    }
    made = webui.post("/img2img", json=body)
    assert made.status_code == 200, made.text
    found = shown(made.json()["images"][0])
    assert np.array_equal(found[mask == 0], GRADIENT[mask == 0])
    expected = direct(served, init_image=GRADIENT, mask_image=mask, strength=0.8)
    assert np.array_equal(found[mask > 0], expected[mask > 0])


def test_a_picture_is_fetched_by_its_address(served: Served, api: openai.OpenAI, url: str) -> None:
    extra = {"num_inference_steps": STEPS, "seed": SEED}
    size: Any = "32x32"
    made = api.images.generate(model=MODEL, prompt="a red box", size=size, response_format="url", extra_body=extra)
    assert made.data is not None
    address = made.data[0].url or ""
    assert address.startswith(f"{url}/pictures/")
    found = httpx.get(address)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(found.content))), direct(served, width=32, height=32))


def test_a_front_end_draws_what_the_sdk_draws(served: Served, webui: httpx.Client) -> None:
    body = {"prompt": "a red box", "steps": STEPS, "seed": SEED, "width": 32, "height": 32, "cfg_scale": 5}
    made = webui.post("/txt2img", json={**body, "sampler_name": "DPM++ 2M", "batch_size": 2})
    assert made.status_code == 200, made.text
    expected = direct(served, width=32, height=32, guidance_scale=5.0, scheduler="dpmpp_2m_karras")
    pictures = [shown(picture) for picture in made.json()["images"]]
    assert np.array_equal(pictures[0], expected)
    assert not np.array_equal(pictures[1], expected)
    assert json.loads(made.json()["info"])["all_seeds"] == [SEED, SEED + 1]
    redrawn = webui.post(
        "/img2img",
        json={
            **body,
            "init_images": [base64.b64encode(png(GRADIENT)).decode()],
            "sampler_name": "Euler a",
            "denoising_strength": 0.5,
        },
    )
    assert redrawn.status_code == 200, redrawn.text
    expected = direct(served, guidance_scale=5.0, scheduler="euler_a", init_image=GRADIENT, strength=0.5)
    assert np.array_equal(shown(redrawn.json()["images"][0]), expected)


def test_every_pair_of_sampler_and_schedule_is_drawn_or_refused_by_the_gateway(webui: httpx.Client) -> None:
    body = {"prompt": "a red box", "steps": 2, "seed": SEED, "width": 32, "height": 32}
    for sampler in webui.get("/samplers").json():
        for schedule in webui.get("/schedulers").json():
            answer = webui.post("/txt2img", json={**body, "sampler_name": sampler["name"], "scheduler": schedule["name"]})
            if answer.status_code != 200:
                error = answer.json()["error"]
                assert (answer.status_code, error["param"]) == (400, "scheduler"), error
                assert f"is not allowed with {sampler['name']}; these take it: " in error["message"]


def test_progress_is_the_runs_own_and_an_interruption_cancels_it(served: Served, webui: httpx.Client) -> None:
    before = metric(served.metrics, "nereid_image_requests_total", model="denoise", outcome="cancelled")
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(webui.post, "/txt2img", json={"prompt": "a red box", "steps": 200, "n_iter": 50})
        seen: list[float] = []

        def moved() -> bool:
            assert not answer.done(), answer.result().text
            told = webui.get("/progress").json()
            state = told["state"]
            if state["sampling_step"]:
                assert state["sampling_steps"] == 200
                assert told["progress"] == pytest.approx((state["job_no"] + state["sampling_step"] / 200) / 50)
                seen.append(told["progress"])
            return len(set(seen)) >= 3 and told["current_image"] is not None

        until(moved)
        assert seen == sorted(seen)
        assert webui.post("/interrupt").status_code == 200
        made = answer.result().json()
    info = json.loads(made["info"])
    assert info["interrupted"]
    assert len(made["images"]) == len(info["all_seeds"]) < 50
    until(lambda: metric(served.metrics, "nereid_image_requests_total", model="denoise", outcome="cancelled") > before)
