"""How soon an overloaded server says no: many image requests at once, directly and through the gateway."""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nereid.serving.gateway.repository import offered_models
from nereid.serving.options import ServeOptions
from nereid_bench.compare import Say
from nereid_bench.servers import HOST, WithGateway, serving_with_gateway
from nereid_client import AsyncClient
from nereid_client.errors import UnavailableError

_PROMPT = "a red circle"
_STEPS = 150
"""More than a round lasts: no place becomes free in it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RefusalsPlan:
    """`requests` at once, `rounds` times."""

    repository: Path
    requests: int = 200
    rounds: int = 3


_FIRST_SECONDS = 20.0
"""How long the first refusal of a round may take before it is believed that nothing is refused."""

Ask = Callable[[int], Awaitable[bool]]
"""Sends one request; True where it was refused because the queue is full."""


def refusals(plan: RefusalsPlan, say: Say) -> list[dict[str, Any]]:
    """A row for the SDK and one for the gateway."""
    with serving_with_gateway(plan.repository) as server:
        return [asyncio.run(_through_sdk(plan, server.options, say)), asyncio.run(_through_gateway(plan, server, say))]


async def _through_sdk(plan: RefusalsPlan, options: ServeOptions, say: Say) -> dict[str, Any]:
    async with AsyncClient(f"127.0.0.1:{options.grpc_port}", retries=0) as client:

        async def ask(number: int) -> bool:
            try:
                await client.generate_image(f"{_PROMPT} {number}", num_inference_steps=_STEPS)
            except UnavailableError:
                return True
            return False

        return await _measure("SDK (gRPC)", plan, ask, say)


async def _through_gateway(plan: RefusalsPlan, server: WithGateway, say: Say) -> dict[str, Any]:
    """Plain sockets: a Python library for HTTP takes more of the processor for a request than the gateway does."""
    model = next(found.id for found in offered_models(plan.repository).values() if found.kind == "image")

    async def ask(number: int) -> bool:
        body = json.dumps({"model": model, "prompt": f"{_PROMPT} {number}", "num_inference_steps": _STEPS})
        reader, writer = await asyncio.open_connection(HOST, server.gateway_port)
        try:
            head = "POST /v1/images/generations HTTP/1.1\r\nHost: gateway\r\nContent-Type: application/json\r\n"
            writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode())
            return (await reader.readline()).split()[1] == b"503"
        finally:
            writer.close()

    return await _measure("gateway", plan, ask, say)


async def _measure(way: str, plan: RefusalsPlan, ask: Ask, say: Say) -> dict[str, Any]:
    seconds: list[float] = []
    for number in range(plan.rounds):
        say(f"{way}: round {number + 1} of {plan.rounds}, {plan.requests} requests at once")
        seconds += await _round(plan.requests, ask)
    seconds.sort()
    return {
        "way": way,
        "requests": plan.requests,
        "refused": len(seconds) / plan.rounds,
        "p50": _quantile(seconds, 0.5),
        "p95": _quantile(seconds, 0.95),
        "worst": _quantile(seconds, 1.0),
    }


async def _round(requests: int, ask: Ask) -> list[float]:
    """Seconds of each refusal; what was accepted is given up once nothing has been refused for two seconds."""
    refused: list[float] = []
    begun = latest = time.monotonic()

    async def one(number: int) -> None:
        nonlocal latest
        start = time.perf_counter()
        if await ask(number):
            refused.append(time.perf_counter() - start)
            latest = time.monotonic()

    tasks = [asyncio.create_task(one(number)) for number in range(requests)]
    while time.monotonic() - (latest if refused else begun + _FIRST_SECONDS) < 2:
        await asyncio.sleep(0.1)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await asyncio.sleep(2)
    return refused


def _quantile(ordered: list[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else math.nan
