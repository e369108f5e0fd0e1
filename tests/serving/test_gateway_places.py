"""The gateway refuses by itself what a model that it has filled cannot take."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from test_gateway_completions import write_tokenizer

from nereid.serving.gateway.catalogue import Catalogue
from nereid.serving.gateway.launch import Rules
from nereid.serving.gateway.places import Places, places_of
from nereid_client.errors import QueueFullError

from gateway_before import gateway, small_repository
from scripted import image
from small_servers import Tensors, grpc_server
from waiting import until


def write_config(repository: Path, model: str, instances: int = 1, **parameters: int) -> None:
    lines = [f'parameters {{ key: "{key}" value: {{ string_value: "{value}" }} }}' for key, value in parameters.items()]
    (repository / model).mkdir(exist_ok=True)
    (repository / model / "config.pbtxt").write_text(
        f'name: "{model}" instance_group [ {{ count: {instances} }} ] ' + "\n".join(lines)
    )


def test_places_are_those_of_the_models_config(tmp_path: Path) -> None:
    write_config(tmp_path, "denoise", max_inflight=3, max_queue=2)
    write_config(tmp_path, "b_llm", instances=2, max_rows=4, max_queue=0)
    assert places_of(tmp_path, "denoise").most == 5
    assert places_of(tmp_path, "b_llm").most == 8
    assert places_of(tmp_path, "llm").most == 16 + 128  # the defaults


def test_a_stream_has_its_place_until_it_ends_or_is_left() -> None:
    places = Places(1)

    async def count(most: int) -> AsyncGenerator[int, None]:
        for number in range(most):
            yield number

    async def run() -> None:
        whole, left = places.during(count(2)), places.during(count(9))
        assert places.taken == 0
        assert await anext(whole) == 0
        await anext(left)
        assert places.taken == 2
        assert [item async for item in whole] == [1]
        await left.aclose()
        assert places.taken == 0

    asyncio.run(run())


@pytest.mark.parametrize(("taking", "inside"), [(Places.taking, (1, 0)), (Places.taking_to_count, (0, 1))])
def test_a_place_comes_back_from_a_request_that_fails(taking: Any, inside: tuple[int, int]) -> None:
    places = Places(-3)  # one, with those that are on their way back

    async def fail() -> None:
        async with taking(places):
            assert (places.taken, places.counting) == inside
            with pytest.raises(QueueFullError, match="1 requests are under way"):
                await taking(places).__aenter__()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        asyncio.run(fail())
    assert (places.taken, places.counting) == (0, 0)


def test_a_burst_is_refused_before_the_work_of_those_who_came_first_begins() -> None:
    places = Places(-2)
    seen: list[str] = []

    async def ask(name: str) -> None:
        try:
            async with places.taking():
                seen.append(f"{name} works")
        except QueueFullError:
            seen.append(f"{name} is refused")

    async def burst() -> None:
        await asyncio.gather(*map(ask, "abcd"))

    asyncio.run(burst())
    assert seen == ["c is refused", "d is refused", "a works", "b works"]


@pytest.mark.parametrize("stream", [False, True])
def test_what_cannot_have_a_place_is_refused_unasked_and_the_next_is_served(tmp_path: Path, stream: bool) -> None:
    repository = small_repository(tmp_path)
    write_config(repository, "denoise", max_inflight=1, max_queue=1)
    asked: list[Tensors] = []
    go = threading.Event()

    def draw(inputs: Tensors) -> Iterator[Tensors]:
        asked.append(inputs)
        assert go.wait(60)
        made = image()
        yield {name: value[0] for name, value in made.items()} if stream else made

    def answer(inputs: Tensors) -> Iterator[Tensors]:
        yield {}

    models = {"text_to_image": draw, "text_to_image_stream": draw, "denoise": answer}
    body: dict[str, Any] = {"model": "text_to_image", "prompt": "a box", "stream": stream}
    with (
        grpc_server(models) as (port, _),
        gateway(repository, port) as running,
        httpx.Client(base_url=running.url, timeout=60) as api,
        ThreadPoolExecutor(6) as pool,
    ):
        inside = [pool.submit(api.post, "/v1/images/generations", json=body) for _ in range(6)]
        until(lambda: len(asked) == 6 or any(job.done() for job in inside))
        assert not any(job.done() for job in inside)
        refused = api.post("/v1/images/generations", json=body)
        assert (refused.status_code, refused.json()["error"]["code"], refused.headers["retry-after"]) == (503, "queue_full", "1")
        assert len(asked) == 6
        go.set()
        assert [job.result().status_code for job in inside] == [200] * 6
        assert api.post("/v1/images/generations", json=body).status_code == 200


COUNTS: dict[str, dict[str, Any]] = {
    "/tokenize": {"prompt": "wxy"},
    "/detokenize": {"tokens": [2, 3]},
    "/v1/responses/input_tokens": {"input": "wxy"},
}


@pytest.mark.parametrize("path", COUNTS)
def test_what_counts_tokens_has_places_of_its_own_as_many_as_its_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    repository = small_repository(tmp_path)
    write_tokenizer(repository / "llm" / "1")
    write_config(repository, "llm", max_rows=1, max_queue=1)
    found: list[Places] = []
    find = Catalogue.find
    monkeypatch.setattr(Catalogue, "find", lambda *asked: (made := find(*asked), found.append(made[2]))[0])
    with grpc_server({}) as (port, _), gateway(repository, port) as running, httpx.Client(base_url=running.url) as api:
        assert api.post(path, json=COUNTS[path]).status_code == 200
        (places,) = found
        assert (places.counting, places.taken) == (0, 0)
        places.counting = 6  # two, with those that are on their way back
        refused = api.post(path, json=COUNTS[path])
        assert (refused.status_code, refused.json()["error"]["code"], refused.headers["retry-after"]) == (503, "queue_full", "1")
        places.counting, places.taken = 5, 6
        assert api.post(path, json=COUNTS[path]).status_code == 200


def test_what_counts_tokens_is_bounded_for_each_key_as_all_else(tmp_path: Path) -> None:
    repository = small_repository(tmp_path / "repository")
    write_tokenizer(repository / "llm" / "1")
    keys = tmp_path / "keys.toml"
    keys.write_text('[team]\nkey = "team-secret"\nrequests_per_minute = 1\n')
    with grpc_server({}) as (port, _):
        for path, body in COUNTS.items():
            with (
                gateway(repository, port, rules=Rules(keys=str(keys))) as running,
                httpx.Client(base_url=running.url, headers={"Authorization": "Bearer team-secret"}) as api,
            ):
                assert [api.post(path, json=body).status_code for _ in range(2)] == [200, 429]
