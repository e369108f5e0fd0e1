"""AUTOMATIC1111's progress, interrupt and skip, of each key's own requests."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from nereid.serving.gateway.a1111.jobs import Job
from nereid.serving.gateway.images import Drawing
from nereid.serving.gateway.launch import Rules

from drawing_models import Drawers
from gateway_before import gateway, hang_up
from waiting import until
from webui_forms import DRAW, INTERRUPT, PROGRESS, REDRAW, SKIP, shown, text

IDLE = {"progress": 0.0, "eta_relative": 0.0, "current_image": None}


def test_progress_is_that_of_the_run(api: httpx.Client, drawers: Drawers, later: Any) -> None:
    idle = api.get(PROGRESS).json()
    assert {name: idle[name] for name in IDLE} == IDLE
    assert idle["state"]["job_count"] == 0
    drawers.held = 5
    answer = later(lambda: api.post(DRAW, json={"steps": 10, "n_iter": 2, "width": 64, "height": 48}))
    until(lambda: api.get(PROGRESS).json()["state"]["sampling_step"] == 4)
    told = api.get(PROGRESS).json()
    assert told["progress"] == pytest.approx(0.2)
    assert (told["state"]["sampling_steps"], told["state"]["job_no"], told["state"]["job_count"]) == (10, 0, 2)
    assert told["eta_relative"] > 0
    assert shown(told["current_image"]).size == (64, 48)
    assert np.asarray(shown(told["current_image"]))[0, 0, 0] == 4
    assert api.get(PROGRESS, params={"skip_current_image": "true"}).json()["current_image"] is None
    drawers.release.set()
    assert len(answer.result().json()["images"]) == 2
    assert api.get(PROGRESS).json()["state"] == idle["state"]


def test_progress_of_a_redrawn_picture_counts_the_steps_that_it_takes(api: httpx.Client, drawers: Drawers, later: Any) -> None:
    drawers.held = 18
    body = {"init_images": [text(Image.new("RGB", (64, 64)))], "steps": 20, "denoising_strength": 0.5}
    answer = later(lambda: api.post(REDRAW, json=body))
    until(lambda: api.get(PROGRESS).json()["state"]["sampling_step"] == 7)
    assert api.get(PROGRESS).json()["state"]["sampling_steps"] == 10
    drawers.release.set()
    assert answer.result().status_code == 200


def test_an_interrupted_request_is_answered_with_what_was_done_and_its_run_cancelled(
    api: httpx.Client, drawers: Drawers, later: Any
) -> None:
    assert api.post(INTERRUPT).json() == {}
    done = api.post(DRAW, json={"steps": 3})
    assert len(done.json()["images"]) == 1
    assert not drawers.cancelled.is_set()
    drawers.held = 4
    answer = later(lambda: api.post(DRAW, json={"steps": 10, "n_iter": 3}))
    assert drawers.reached.wait(60)
    assert api.post(INTERRUPT).status_code == 200
    made = answer.result()
    assert made.status_code == 200, made.text
    assert (made.json()["images"], json.loads(made.json()["info"])["interrupted"]) == ([], True)
    assert drawers.cancelled.wait(60)
    assert len(drawers.asked) == 2
    assert api.get(PROGRESS).json()["state"]["job_count"] == 0


class SecondHeld:
    """Whose second picture never comes."""

    def __init__(self) -> None:
        self.count = 0
        self.waiting = asyncio.Event()

    async def stream_image(self, prompt: str, **options: Any) -> Any:
        from nereid_client import ImageResult

        self.count += 1
        if self.count == 2:
            self.waiting.set()
            await asyncio.Event().wait()
        yield ImageResult(
            pixels=np.zeros((1, 8, 8, 3), np.uint8), seeds=(1,), warnings=(), queue_seconds=0.0, denoise_seconds=0.0
        )


@pytest.mark.parametrize(("end", "left"), [(Job.interrupt, 1), (Job.skip, 2)], ids=["interrupted", "skipped"])
def test_the_job_keeps_the_pictures_that_were_done(end: Callable[[Job], None], left: int) -> None:
    async def draw() -> list[Any]:
        client, job = SecondHeld(), Job(3)
        task = asyncio.ensure_future(job.draw(client, [[Drawing(prompt="", options={})]] * 3, "id"))  # type: ignore[arg-type]
        await client.waiting.wait()
        assert job.share == pytest.approx(1 / 3)
        end(job)
        return list(await task)

    assert len(asyncio.run(draw())) == left


def test_a_skip_keeps_nothing_running_for_a_caller_that_has_hung_up() -> None:
    async def draw() -> int:
        client, job = SecondHeld(), Job(3)
        task = asyncio.ensure_future(job.draw(client, [[Drawing(prompt="", options={})]] * 3, "id"))  # type: ignore[arg-type]
        await client.waiting.wait()
        job.skip()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return client.count

    assert asyncio.run(draw()) == 2


def test_a_skipped_picture_is_left_out_and_the_next_one_drawn(api: httpx.Client, drawers: Drawers, later: Any) -> None:
    assert api.post(SKIP).json() == {}
    drawers.held = 4
    answer = later(lambda: api.post(DRAW, json={"steps": 10, "n_iter": 2, "seed": 40}))
    assert drawers.reached.wait(60)
    drawers.held = 0
    assert api.post(SKIP).status_code == 200
    info = json.loads(answer.result().json()["info"])
    assert (info["all_seeds"], info["interrupted"]) == ([41], False)
    assert drawers.cancelled.wait(60)
    drawers.release.set()


def test_a_caller_that_hangs_up_ends_all_of_its_runs(api: httpx.Client, drawers: Drawers) -> None:
    drawers.held = 2
    hang_up(str(api.base_url), DRAW, {"steps": 10}, drawers.reached.is_set)
    assert drawers.cancelled.wait(60)
    until(lambda: api.get(PROGRESS).json()["state"]["job_count"] == 0)


def test_keys_are_passwords_here_and_keep_callers_apart(
    repository: Path, triton: int, drawers: Drawers, tmp_path: Path, later: Any
) -> None:
    file = tmp_path / "keys.toml"
    file.write_text('[alice]\nkey = "of-alice"\nrequests_at_once = 1\n[bob]\nkey = "of-bob"\n')
    alice, bob = ("anybody", "of-alice"), ("bob", "of-bob")
    drawers.held = 2
    with (
        gateway(repository, triton, rules=Rules(a1111=True, keys=str(file))) as running,
        httpx.Client(base_url=running.url) as api,
    ):
        unknown = api.get(PROGRESS)
        assert (unknown.status_code, unknown.json()["detail"]) == (401, "the API key is missing or wrong")
        assert unknown.headers["www-authenticate"].startswith("Basic realm=")
        assert api.get("/v1/models").headers["www-authenticate"] == 'Bearer realm="nereid"'
        assert api.get("/queue/status", auth=alice).status_code == 200
        assert api.get(PROGRESS, auth=("anybody", "guessed")).status_code == 401
        assert api.get(PROGRESS, headers={"Authorization": "Basic !"}).status_code == 401
        assert api.get("/v1/models", auth=alice).status_code == 401
        assert api.get(PROGRESS, headers={"Authorization": "Bearer of-alice"}).status_code == 200
        answer = later(lambda: api.post(DRAW, json={"steps": 10}, auth=alice, timeout=60))
        assert drawers.reached.wait(60)
        assert api.post(DRAW, json={}, auth=alice).status_code == 429
        assert api.get(PROGRESS, auth=bob).json()["state"]["job_count"] == 0
        assert api.post(INTERRUPT, auth=bob).status_code == 200
        assert api.get(PROGRESS, auth=alice).json()["state"]["job_count"] == 1
        assert api.post(INTERRUPT, auth=alice).status_code == 200  # though a request of hers runs
        assert json.loads(answer.result().json()["info"])["interrupted"]
