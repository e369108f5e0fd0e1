"""A better priority through a real server: who came last is done first."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from nereid_client import Client, InvalidRequestError

from conftest import Served
from raw import metric
from waiting import until

pytestmark = pytest.mark.triton

SIZE = {"width": 64, "height": 64}
"""Large enough to be long under way."""


def test_a_request_of_better_priority_overtakes_those_that_came_before(served: Served) -> None:
    ended: list[str] = []
    lock = threading.Lock()

    def draw(client: Client, name: str, priority: int) -> None:
        client.generate_image(name, seed=1, num_inference_steps=200, priority=priority, deadline_seconds=60, **SIZE)
        with lock:
            ended.append(name)

    until(lambda: metric(served.metrics, "nereid_image_active_requests", model="denoise") == 0)
    with Client(served.grpc_url, timeout=120) as client, ThreadPoolExecutor(13) as pool:
        jobs = [pool.submit(draw, client, f"box {number}", 9) for number in range(12)]
        until(lambda: metric(served.metrics, "nereid_image_active_requests", model="denoise") == 12)
        jobs.append(pool.submit(draw, client, "urgent", 0))
        for job in jobs:
            job.result()
    assert ended.index("urgent") < 10, ended  # among equals, fewest steps left go first: it would be the last of 13


def test_an_odd_priority_is_refused_by_name(served: Served) -> None:
    with Client(served.grpc_url) as client, pytest.raises(InvalidRequestError, match="priority"):
        client.generate_image("a box", priority=10)
