"""What keeping features and guidance between steps saves: a served pipeline, alone and under load.

The modes take turns in each round; every mode draws the same prompts from the same seeds, so that its pictures are compared with
those of the mode `off`. Times of the UNet are what the server itself counts.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nereid.diffusion.feature_cache import Variant
from nereid.serving.errors import ServingError
from nereid.serving.options import ServeOptions
from nereid_bench.compare import Say
from nereid_bench.servers import HOST, LONGEST_SECONDS, serving
from nereid_bench.turns import turned
from nereid_client import Client
from nereid_client.scraping import Page
from nereid_export.drawing import psnr
from nereid_protocol.metrics import IMAGE_STEP_SECONDS, IMAGE_STEPS

OFF = "off"
_FIELDS = ("cache", "cache_interval", "guidance_cache", "guidance_cache_interval", "guidance_interval")
_TOLD_SECONDS = 0.5
"""Metrics are gathered before they are told."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptPlan:
    """`modes`: what requests ask for, by name; the first is without any. `at_once`: requests in flight, for each load.

    `right` tells of a picture, by its prompt's number, whether it shows what was asked for; None where nobody knows.
    """

    repository: Path
    modes: Mapping[str, Mapping[str, Any]]
    prompts: Sequence[str]
    steps: int
    side: int | None = None
    scheduler: str | None = None
    at_once: Sequence[int] = (1, 8)
    rounds: int = 3
    guidance: float | None = None
    right: Callable[[int, NDArray[np.uint8]], bool] | None = None


def parse_modes(text: str) -> dict[str, dict[str, Any]]:
    """`off;cache_interval=3;cache=light,guidance_interval=0.1:0.6`; raises ValueError naming the part that is no mode."""
    modes: dict[str, dict[str, Any]] = {OFF: {}}
    for part in (piece.strip() for piece in text.split(";")):
        if part in ("", OFF):
            continue
        asked: dict[str, Any] = {}
        for item in part.split(","):
            name, _, value = item.strip().partition("=")
            if name not in _FIELDS or not value:
                raise ValueError(f"{item.strip()!r} is not allowed; it must be like cache=light or guidance_cache_interval=2")
            if name == "guidance_interval":
                asked[name] = _interval(item.strip(), value)
            else:
                asked[name] = int(value) if name.endswith("_interval") and value.isdigit() else value
        modes[part] = asked
    return modes


def _interval(item: str, value: str) -> tuple[float, float]:
    try:
        first, last = map(float, value.split(":"))
    except ValueError:
        raise ValueError(f"{item!r} is not allowed; it must be like guidance_interval=0.1:0.6") from None
    return first, last


def kept(plan: KeptPlan, say: Say) -> list[dict[str, Any]]:
    """A row for each mode and load: medians of its rounds, and how like its pictures are to those without."""
    taken: dict[tuple[str, int], list[dict[str, float]]] = {}
    pictures: dict[str, list[NDArray[np.uint8]]] = {}
    with serving(plan.repository) as (client, options):
        _draw(plan, client, {}, 1, plan.prompts[:1])  # who comes first pays for what is made once
        for turn in range(plan.rounds):
            for at_once in plan.at_once:
                for name, asked in _turned(plan.modes, turn):
                    say(f"round {turn + 1} of {plan.rounds}: {name}, {at_once} at once")
                    made, found = _measure(plan, client, options, asked, at_once)
                    taken.setdefault((name, at_once), []).append(found)
                    pictures.setdefault(name, made)
    rows = []
    for (name, at_once), rounds in taken.items():
        row: dict[str, Any] = {"mode": name, "at_once": at_once, "steps": plan.steps}
        row |= {column: statistics.median(found[column] for found in rounds) for column in rounds[0]}
        plain = statistics.median(found["unet_ms"] for found in taken[OFF, at_once])
        row["times_fewer_unet_ms"] = plain / row["unet_ms"]
        likeness = [psnr(one, other) for one, other in zip(pictures[name], pictures[OFF], strict=True)]
        row["psnr"] = statistics.median(likeness)
        if plan.right is not None:
            row["score"] = 100 * statistics.mean(plan.right(number, picture) for number, picture in enumerate(pictures[name]))
        rows.append(row)
    return sorted(rows, key=lambda row: (row["at_once"], list(plan.modes).index(row["mode"])))


def _turned(modes: Mapping[str, Mapping[str, Any]], turn: int) -> list[tuple[str, Mapping[str, Any]]]:
    """All of them, each round beginning with another."""
    return turned(list(modes.items()), turn)


def _measure(
    plan: KeptPlan, client: Client, options: ServeOptions, asked: Mapping[str, Any], at_once: int
) -> tuple[list[NDArray[np.uint8]], dict[str, float]]:
    before, start = _counted(options), time.perf_counter()
    made = _draw(plan, client, asked, at_once, plan.prompts)
    seconds, after = time.perf_counter() - start, _counted(options)
    unet, whole, reused, rows = (now - then for now, then in zip(after, before, strict=True))
    count = len(plan.prompts)
    return made, {
        "unet_ms": 1000 * unet / count,
        "ms": 1000 * seconds * min(at_once, count) / count,
        "images_per_second": count / seconds,
        "steps_reused": reused / (whole + reused),
        "unet_rows": rows / count,
    }


def _draw(
    plan: KeptPlan, client: Client, asked: Mapping[str, Any], at_once: int, prompts: Sequence[str]
) -> list[NDArray[np.uint8]]:
    size = {} if plan.side is None else {"width": plan.side, "height": plan.side}
    given = {"scheduler": plan.scheduler, "guidance_scale": plan.guidance}
    given = {name: value for name, value in given.items() if value is not None}

    def one(seed: int, prompt: str) -> NDArray[np.uint8]:
        options = {**size, **given, **asked, "seed": seed, "num_inference_steps": plan.steps}
        return client.generate_image(prompt, timeout=LONGEST_SECONDS, **options).pixels[0]

    with ThreadPoolExecutor(at_once) as pool:
        return list(pool.map(one, range(len(prompts)), prompts))


def _counted(options: ServeOptions) -> tuple[float, float, float, float]:
    """Seconds in the UNet, whole steps, steps from kept features, and rows that were computed whole, until now."""
    time.sleep(_TOLD_SECONDS)
    page = Page.fetch(f"{HOST}:{options.metrics_port}", timeout=10)
    if page is None:
        raise ServingError("the server's metrics do not answer")
    return (
        page.total(f"{IMAGE_STEP_SECONDS.name}_sum") or 0.0,
        page.total(IMAGE_STEPS.name, engine=Variant.FULL) or 0.0,
        page.total(IMAGE_STEPS.name, engine=Variant.SHALLOW) or 0.0,
        page.total("nv_inference_count", model=Variant.FULL) or 0.0,
    )
