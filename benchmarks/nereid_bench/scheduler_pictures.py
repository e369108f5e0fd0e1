"""Draws the pictures of `nereid bench schedulers`, setting by setting in turns, and keeps them: none is drawn twice."""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from nereid_bench.scheduler_settings import Setting
from nereid_bench.server_memory import ServerMemory
from nereid_bench.servers import LONGEST_SECONDS, serving

SEED_STRIDE = 10_000
"""Between two seeds of one caption: caption i has i, as scorers draw it, then i + 10000, ..."""
_FIGURES = "figures"
"""The text of a PNG that has its seconds and bytes: picture and figures are one file, there whole or not at all."""


@dataclass(frozen=True, slots=True)
class Asked:
    """One picture that every setting draws."""

    prompt: str
    seed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawn:
    """A picture, uint8 height x width x 3; how long its caller waited, and what the server's processes held at most.

    `peak_bytes` is the sum of each process's own peak, engines and Python included: what processes share counts in each.
    """

    pixels: NDArray[np.uint8]
    seconds: float
    peak_bytes: int


Draw = Callable[[Asked, Setting], Drawn]


def asked_for(prompts: Sequence[str], seeds: int) -> list[Asked]:
    """Every prompt with `seeds` seeds: all prompts with their first one come first."""
    return [Asked(prompt, number + SEED_STRIDE * seed) for seed in range(seeds) for number, prompt in enumerate(prompts)]


@dataclass(frozen=True, slots=True)
class KeptPictures:
    """Pictures of an earlier run with the same engines, in a folder that is named by their digest."""

    folder: Path

    def read(self, asked: Asked, setting: Setting) -> Drawn | None:
        """None where it was not drawn, or its file is damaged."""
        try:
            with Image.open(self._file(asked, setting)) as image:
                pixels = np.asarray(image)
                figures = json.loads(image.info[_FIGURES])
            return Drawn(pixels=pixels, seconds=float(figures["seconds"]), peak_bytes=int(figures["peak_bytes"]))
        except (OSError, SyntaxError, ValueError, KeyError, TypeError):  # Pillow says SyntaxError of a broken PNG
            return None

    def has(self, asked: Asked, setting: Setting) -> bool:
        return self.read(asked, setting) is not None

    def write(self, asked: Asked, setting: Setting, drawn: Drawn) -> None:
        """Whole or not at all."""
        file = self._file(asked, setting)
        file.parent.mkdir(parents=True, exist_ok=True)
        told = PngInfo()
        told.add_text(_FIGURES, json.dumps({"seconds": drawn.seconds, "peak_bytes": drawn.peak_bytes}))
        beside = file.with_suffix(".new")
        Image.fromarray(drawn.pixels).save(beside, format="PNG", pnginfo=told)
        beside.replace(file)

    def _file(self, asked: Asked, setting: Setting) -> Path:
        return self.folder / short_digest(dict(setting.fields)) / f"{short_digest([asked.prompt, asked.seed])}.png"


def short_digest(told: Any) -> str:
    """One short word for what can be said in JSON."""
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:16]


def draw_missing(
    settings: Sequence[Setting],
    pictures: Sequence[Asked],
    kept: KeptPictures,
    drawer: Callable[[], contextlib.AbstractContextManager[Draw]],
    told: Callable[[str], None],
) -> int:
    """Draw what is not kept; returns how many were. The server is started only where something is missing.

    Every round draws one picture with each setting, in an order of its own: a slow minute of the machine falls on all settings,
    and on none for ever. `told` is what is being drawn, once a round.
    """
    rounds = [[one for one in settings if not kept.has(asked, one)] for asked in pictures]
    missing = sum(map(len, rounds))
    if not missing:
        return 0
    with drawer() as draw:
        for number, (asked, left) in enumerate(zip(pictures, rounds, strict=True)):
            if not left:
                continue
            told(f"picture {number + 1} of {len(pictures)}: {len(left)} settings")
            Random(number).shuffle(left)
            for setting in left:
                kept.write(asked, setting, draw(asked, setting))
    return missing


@contextmanager
def served(repository: Path, name: str, more: dict[str, Any]) -> Iterator[Draw]:
    """Draw through a real Triton and the SDK, one request at a time, with `more` fields of every request."""
    with serving(repository, name) as (client, _):
        memory = ServerMemory()

        def draw(asked: Asked, setting: Setting) -> Drawn:
            memory.reset()
            start = time.perf_counter()
            result = client.generate_image(asked.prompt, timeout=LONGEST_SECONDS, seed=asked.seed, **setting.fields, **more)
            seconds = time.perf_counter() - start
            return Drawn(pixels=result.pixels[0], seconds=seconds, peak_bytes=memory.peak_bytes())

        for _ in range(2):  # the first requests fill caches
            client.generate_image("warm up", seed=0, num_inference_steps=4, **more)
        yield draw
