"""How a turn of the ladder is taken: in a process that draws without Nereid, or by requests to a server of its own."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nereid.serving.errors import ServingError
from nereid_bench.ladder_rows import Found
from nereid_bench.server_memory import ServerMemory
from nereid_bench.servers import serving, serving_with
from nereid_client import Client

DrawSeed = Callable[[int], NDArray[np.uint8]]
"""A picture by its seed."""


def take_turn(turn: Mapping[str, Any]) -> Found:
    """Draw in a process of its own, one picture after the other; raises ServingError with the last thing that it said."""
    with tempfile.TemporaryDirectory() as folder:
        pixels = Path(folder) / "pixels.npz"
        command = [sys.executable, "-m", "nereid_bench.ladder_turn", json.dumps({**turn, "pixels": str(pixels)})]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode < 0:
            raise ServingError(f"its process was ended by {signal.Signals(-done.returncode).name}")
        if done.returncode:
            said = done.stderr.strip().splitlines() or [f"its process ended with {done.returncode}"]
            raise ServingError(said[-1])
        told = json.loads(done.stdout.splitlines()[-1])
        with np.load(pixels) as made:
            pictures = {int(number): made[number] for number in made.files}
    # It draws one after the other however many wait: what a picture takes alone says how many a second it draws.
    rate = 1000 * len(told["ms"]) / sum(told["ms"])
    return Found(ms=told["ms"], images_per_second=[rate], peak_bytes=int(told["peak_bytes"]), pixels=pictures)


def measured(draw: DrawSeed, lone: Sequence[int], load: Sequence[int], at_once: int) -> Found:
    """Pictures by their seeds: `lone` one after the other, then `load` with `at_once` in flight."""
    memory, found = ServerMemory(), Found()
    memory.reset()
    for seed in lone:
        start = time.perf_counter()
        found.pixels[seed] = draw(seed)
        found.ms.append(1000 * (time.perf_counter() - start))
    start = time.perf_counter()
    draw_at_once(draw, load, at_once)
    found.images_per_second.append(len(load) / (time.perf_counter() - start))
    found.peak_bytes = memory.peak_bytes()
    return found


def draw_at_once(draw: DrawSeed, seeds: Sequence[int], at_once: int) -> None:
    """With `at_once` in flight; where one fails, or somebody interrupts, the others, which may take hours, are not waited for."""
    pool = ThreadPoolExecutor(at_once)
    try:
        for _ in pool.map(draw, seeds):
            pass
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


@contextmanager
def running(repository: Path, batching: bool) -> Iterator[Client]:
    """Nereid; without `batching`, one picture is denoised at a time."""
    with serving(repository) if batching else serving_with(repository, "denoise", max_inflight=1) as (client, _):
        yield client
