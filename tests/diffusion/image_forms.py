"""Requests and UNets whose answers are known, for tests of the loop and the service."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np

from nereid.diffusion.feature_cache import FEATURES, Variant
from nereid.diffusion.loop import DenoisingLoop
from nereid.diffusion.plan import OUT, EngineCall
from nereid.diffusion.requests import parse_image_request
from nereid.diffusion.run_lanes import cost_key
from nereid.diffusion.settings import Limits, Pipeline
from nereid.diffusion.solvers import SchedulerConfig, SchedulerName
from nereid.diffusion.start import start_runs
from nereid.diffusion.state import ImageRun, ImageTask
from nereid.diffusion.vae_tiles import Encode
from nereid.engines.costs import StepCosts
from nereid.flow.errors import LostError, RequestError

FIXED, ROW = 0.010, 0.005
"""Seconds of a call, and of each of its rows."""
Array = np.ndarray
Outputs = Mapping[str, Array]


def pipeline(**changes: Any) -> Pipeline:
    facts: dict[str, Any] = {
        "family": "sd",
        "latent_channels": 4,
        "vae_scale_factor": 8,
        "size_multiple": 8,
        "default_width": 64,
        "default_height": 64,
        "default_scheduler": SchedulerName.DDIM,
        "default_steps": 5,
        "default_guidance": 7.5,
        "few_step": False,
        "force_zeros_for_empty_prompt": False,
        "time_cond_proj_dim": None,
        "latents_to_rgb": ((0.1, 0.2, 0.3),) * 5,
        "scheduler": SchedulerConfig(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, steps_offset=1),
    }
    return Pipeline(**{**facts, **changes})


def request(**inputs: Array) -> dict[str, Array]:
    embeds = np.ones((1, 3, 2), np.float32)
    return {"prompt_embeds": embeds, "negative_prompt_embeds": -embeds, "seed": np.array([[3]]), **inputs}


def whole(value: int) -> Array:
    return np.array([[value]], np.int32)


def text(value: str) -> Array:
    return np.array([[value.encode()]], np.object_)


class Unet:
    """Notes its calls; `answer` makes the output from the inputs, at once, and `features` what a whole call gives besides."""

    def __init__(
        self,
        answer: Callable[[Mapping[str, Array]], Array] = lambda inputs: np.zeros_like(inputs["sample"]),
        features: Callable[[Mapping[str, Array]], Array] = lambda inputs: inputs["sample"][:, :2],
    ) -> None:
        self.answer, self.features = answer, features
        self.calls: list[dict[str, tuple[int, ...]]] = []
        self.variants: list[Variant] = []

    def __call__(self, call: EngineCall) -> Future[Outputs]:
        inputs = call.inputs
        self.calls.append({name: value.shape for name, value in inputs.items()})
        self.variants.append(call.variant)
        future: Future[Outputs] = Future()
        try:
            made = {OUT: self.answer(inputs)}
            if FEATURES in call.outputs:
                made[FEATURES] = self.features(inputs)
            future.set_result(made)
        except RequestError as error:
            future.set_exception(error)
        return future


class OnGpu(np.lib.mixins.NDArrayOperatorsMixin):
    """What numpy's functions take and give as cupy's arrays, and what nobody may read on the host but as single numbers."""

    def __init__(self, value: Any) -> None:
        self.value = np.asarray(value)

    def __array__(self, *_: Any, **__: Any) -> Array:
        raise AssertionError("an array on a GPU was taken to the host")

    def __array_ufunc__(self, function: Any, method: str, *inputs: Any, **options: Any) -> OnGpu:
        return OnGpu(getattr(function, method)(*_on_host(inputs), **options))

    def __array_function__(self, function: Any, _: Any, inputs: Any, options: Any) -> OnGpu:
        return OnGpu(function(*_on_host(inputs), **options))

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # such as __array_interface__, by which numpy reads without asking
            raise AttributeError(name)
        found = getattr(self.value, name)
        return (lambda *inputs, **options: OnGpu(found(*inputs, **options))) if callable(found) else found

    def __getitem__(self, key: Any) -> OnGpu:
        return OnGpu(self.value[key])

    def __len__(self) -> int:
        return len(self.value)

    def __float__(self) -> float:
        return float(self.value)

    def __bool__(self) -> bool:
        return bool(self.value)


def _on_host(inputs: Any) -> Any:
    if isinstance(inputs, tuple | list):
        return type(inputs)(_on_host(item) for item in inputs)
    return inputs.value if isinstance(inputs, OnGpu) else inputs


class SteppedUnet(Unet):
    """Answers a call only after `allow`, so that a test holds a run where it wants it."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._allowed = threading.Semaphore(0)
        self._pool = ThreadPoolExecutor(4)

    def allow(self, calls: int) -> None:
        for _ in range(calls):
            self._allowed.release()

    def __call__(self, call: EngineCall) -> Future[Outputs]:
        made = super().__call__(call)

        def wait() -> Outputs:
            self._allowed.acquire()
            return made.result()

        return self._pool.submit(wait)


class MortalUnet(Unet):
    """Dies of a call when `deadly` says so, and stays away for the next `away` calls."""

    def __init__(self, deadly: Callable[[Mapping[str, Array]], bool], away: int = 2, **options: Any) -> None:
        super().__init__(**options)
        self.deadly, self.away, self.deaths, self._absent = deadly, away, 0, 0

    def __call__(self, call: EngineCall) -> Future[Outputs]:
        lost: Future[Outputs] = Future()
        lost.set_exception(LostError("unet: Stub process 'unet_0_0' is not healthy."))
        if self._absent:
            self._absent -= 1
            return lost
        if self.deadly(call.inputs):
            self.deaths += 1
            self._absent = self.away
            return lost
        return super().__call__(call)


def no_picture(images: Array) -> tuple[Array, Array]:
    """Moments of a picture's latents that say nothing of it."""
    return (np.zeros((1, 4, 8, 8), np.float32),) * 2


def begun(
    inputs: dict[str, Array], facts: Pipeline | None = None, limits: Limits | None = None, encode: Encode = no_picture
) -> ImageTask:
    """A task at its first step."""
    parsed = parse_image_request(inputs, facts or pipeline(), limits or Limits())
    task = ImageTask(parsed, lambda task, error: None, lambda: False)
    task.runs = start_runs(task.request, encode, lambda: False)
    return task


def features(inputs: Mapping[str, Array]) -> Array:
    """Of a whole call: they follow the sample and the timestep, so that old ones differ from new ones."""
    return inputs["sample"][:, :2] + inputs["timestep"][:, :, None, None] / np.float32(1000)


def finish(loop: DenoisingLoop, *tasks: ImageTask, most: int = 10_000) -> None:
    """Tick until all of them have ended, well or not."""
    for _ in range(most):
        waiting = [task for task in tasks if not task.done and task.error is None]
        if not waiting:
            return
        loop.advance(waiting)
    raise AssertionError("the loop does not come to an end")


def known(run: ImageRun) -> StepCosts:
    """Costs of calls such as this run's, learned from enough of them that a busy machine changes little."""
    costs = StepCosts()
    for _ in range(20):
        for rows in (1, 2, 8):
            for variant in run.steps_left:
                costs.learn(cost_key(variant, run.shape), rows, FIXED + ROW * rows)
    return costs
