"""Real inputs of every component, and pictures: what PyTorch draws of some prompts, and what it calls its components with.

Static INT8 takes its ranges from such calls, quantised engines are checked on those of prompts that were set apart, and whole
pipelines below float32 are checked by drawing the same pictures again.
"""

from __future__ import annotations

import errno
import shutil
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nereid.diffusion.feature_cache import FEATURES, Variant
from nereid.diffusion.prompts import MAX_PROMPT_CHARACTERS
from nereid.diffusion.settings import Decoder, Pipeline
from nereid_export.components import TINY_DECODER
from nereid_export.drawing import Drawer
from nereid_export.end_error import WholeRuns
from nereid_export.engines.check import Inputs
from nereid_export.errors import ExportError
from nereid_export.frame import versions
from nereid_export.kept_arrays import read_arrays, write_arrays
from nereid_export.resume import RECORD, VERSIONED, Record

CALLS = 8
"""Calls of the UNet that are kept of each prompt's run at least, or all where it has fewer: evenly spread over its steps, at
other steps for each prompt."""
SET_APART = 2
"""Prompts, the last ones, that nothing is calibrated on: the check is made on them."""
PROMPTS = 10
"""How many are drawn where no file has them."""
MAX_PROMPTS = 200
_WORDS = (3, 9)


@dataclass(frozen=True, slots=True)
class Drawn:
    """A picture (uint8 H x W x 3) and what it was drawn of."""

    prompt: str
    seed: int
    steps: int
    picture: NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Calibration:
    """Inputs by component: those to take ranges from, and those to check on; all pictures, and runs of the UNet."""

    ranges: Mapping[str, Sequence[Inputs]] = field(default_factory=dict)
    checks: Mapping[str, Sequence[Inputs]] = field(default_factory=dict)
    pictures: Sequence[Drawn] = ()
    runs: WholeRuns | None = None
    """Of the prompts that were set apart."""


def read_prompts(file: Path) -> tuple[str, ...]:
    """Prompts, one a line; raises ExportError for a file that cannot be read, or whose prompts are not what can be asked for."""
    try:
        if file.exists() and not file.is_file():  # a device never ends, a pipe may never begin
            raise OSError(errno.EINVAL, "it is not a file")
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise ExportError(f"--calibration-prompts: {file} cannot be read: it is not UTF-8 text") from None
    except OSError as error:
        raise ExportError(f"--calibration-prompts: {file} cannot be read: {str(error.strerror).lower()}") from None
    lines = tuple(line.strip() for line in text.splitlines() if line.strip())
    if not SET_APART < len(lines) <= MAX_PROMPTS:
        raise ExportError(
            f"--calibration-prompts: {len(lines)} prompts in {file} are not allowed; it must be {SET_APART + 1} to {MAX_PROMPTS}"
        )
    for number, line in enumerate(lines, 1):
        if len(line) > MAX_PROMPT_CHARACTERS:
            raise ExportError(
                f"--calibration-prompts: {len(line)} characters in prompt {number} of {file} are not allowed; "
                f"it must be {MAX_PROMPT_CHARACTERS} at most, as in a request"
            )
    return lines


def drawn_prompts(tokenizer: Any, count: int = PROMPTS) -> tuple[str, ...]:
    """Random words of the tokenizer's vocabulary, for a checkpoint of which no prompts are known."""
    words = sorted(
        word
        for word in (token.removesuffix("</w>") for token in tokenizer.get_vocab() if token.endswith("</w>"))
        if len(word) > 1 and word.isascii() and word.isalpha()
    )
    if not words:
        raise ExportError("--calibration-prompts: the tokenizer has no words to draw prompts from; name a file of prompts")
    rng = Random(0)
    return tuple(" ".join(rng.choices(words, k=rng.randrange(*_WORDS))) for _ in range(count))


def calibrate(
    drawer: Callable[[], Drawer],
    pipeline: Pipeline,
    prompts: Sequence[str],
    folder: Path,
    source: str,
    told: Callable[[str], None],
    *,
    whole_runs: bool = True,
) -> Calibration:
    """Draw every prompt of this pipeline and keep what the components are called with; with `whole_runs`, finish such, too.

    What `folder` has of an interrupted run with these prompts, this `source` (a checkpoint's digest) and these versions is not
    drawn again, and `drawer` is asked for only where something is.
    """
    record = Record(folder / RECORD, {"prompts": list(prompts), "source": source, "versions": versions(VERSIONED)})
    if record.read() is None:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        record.write({})
    ranges: dict[str, list[Inputs]] = defaultdict(list)
    checks: dict[str, list[Inputs]] = defaultdict(list)
    pictures, ready = [], None
    for number, prompt in enumerate(prompts):
        file = folder / f"{number}.npz"
        if (kept := _read(file)) is None:
            told(f"drawing picture {number + 1} of {len(prompts)} with PyTorch")
            ready = ready or drawer()
            _write(file, *(kept := _draw(ready, prompt, number)))
        steps, picture, calls = kept
        pictures.append(Drawn(prompt, number, steps, picture))
        for name, inputs in calls:
            (checks if number >= len(prompts) - SET_APART else ranges)[name].append(inputs)
    file, runs = folder / "runs.npz", None
    if whole_runs and (runs := WholeRuns.read(file, pipeline)) is None:
        told("finishing runs with PyTorch")
        runs = WholeRuns.by(ready or drawer(), prompts[-SET_APART:])
        runs.write(file)
    return Calibration(ranges, checks, pictures, runs)


def _draw(drawer: Drawer, prompt: str, number: int) -> tuple[int, NDArray[np.uint8], list[tuple[str, Inputs]]]:
    made: list[tuple[str, Inputs]] = []
    listening = replace(drawer, called=lambda name, inputs: made.append((name, inputs)))
    usual = drawer.pipeline.default_steps
    # Runs of different lengths visit different timesteps; few-step models know only their own.
    steps = usual if drawer.pipeline.few_step else usual + number % usual
    (picture,) = listening.draw([prompt], [number], steps=steps)
    listening.encode(picture)
    if drawer.pipeline.tiny_decoder:  # it is called with what the full one is
        made += [(TINY_DECODER, inputs) for name, inputs in made if name == Decoder.FULL.component]
    unet = [call for call in made if call[0] == Variant.FULL]
    apart = max(1, len(unet) // CALLS)
    kept = [call for call in made if call[0] != Variant.FULL] + unet[number % apart :: apart]
    if (cache := drawer.pipeline.cache) is not None:
        # What the outer part of the UNet would be called with, had the step before been the last whole one.
        for (_, before), (_, inputs) in list(pairwise(unet))[number % apart :: apart]:
            features = drawer.runs[Variant.FULL](before, [FEATURES])[FEATURES]
            told = {name: value for name, value in inputs.items() if cache.attends or name != "encoder_hidden_states"}
            kept.append((Variant.SHALLOW, {**told, FEATURES: features}))
    return steps, picture, kept


def _write(file: Path, steps: int, picture: NDArray[np.uint8], calls: Sequence[tuple[str, Inputs]]) -> None:
    arrays = {f"{index} {name} {key}": value for index, (name, inputs) in enumerate(calls) for key, value in inputs.items()}
    write_arrays(file, {"steps": np.array(steps, dtype=np.int32), "picture": picture, **arrays})


def _read(file: Path) -> tuple[int, NDArray[np.uint8], list[tuple[str, Inputs]]] | None:
    """None where there is no such file, or it is not as it was written."""
    if (arrays := read_arrays(file)) is None:
        return None
    steps, picture = int(arrays.pop("steps")), arrays.pop("picture")
    calls: dict[tuple[int, str], dict[str, NDArray]] = defaultdict(dict)
    for key, value in arrays.items():
        index, name, tensor = key.split(" ")
        calls[int(index), name][tensor] = value
    return steps, picture, [(name, inputs) for (_, name), inputs in sorted(calls.items(), key=lambda item: item[0][0])]
