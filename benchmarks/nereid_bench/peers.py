"""What Nereid is compared with: diffusers as it is, and the batching server that people build around it or around engines.

Each peer is a process of its own that takes jobs from a pipe, so that all pay for crossing a process border.
"""

from __future__ import annotations

import multiprocessing as mp
import os
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from nereid.serving.errors import ServingError
from nereid_bench.workload import GUIDANCE, SCHEDULERS, Job, Settings

MAX_BATCH = 8
WINDOW_SECONDS = 0.1


class Peer(StrEnum):
    NEREID = "a: Nereid, gRPC"
    NEREID_GOALS = "a: the same, deadline_seconds given"
    DIFFUSERS = "b: diffusers, one at a time"
    DIFFUSERS_BATCHED = "c: diffusers, batches of 8 or 100 ms"
    ENGINES_BATCHED = "d: same engines, batches of 8 or 100 ms"


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerSettings:
    """The same for all peers. `side` is the picture's width and height in pixels."""

    checkpoint: Path
    repository: Path
    threads: int
    side: int


SERVED = (Peer.NEREID, Peer.NEREID_GOALS)
"""Nereid itself; told what a good answer is, or not."""

Draw = Callable[[list[str], list[int], int, str], None]
"""Draws prompts with seeds, all with the same steps and scheduler."""


@dataclass(slots=True)
class PeerProcess:
    """A peer behind a pipe; `draw` may be called from many threads."""

    peer: Peer
    settings: PeerSettings
    _process: Any = None
    _pipe: Connection | None = None
    _waiting: dict[int, tuple[threading.Event, list[Settings]]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __enter__(self) -> PeerProcess:
        context = mp.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(self.peer, self.settings, theirs), daemon=True)
        self._process.start()
        self._pipe.recv()  # says "ready"
        threading.Thread(target=self._receive, daemon=True).start()
        return self

    def draw(self, job: Job) -> Settings:
        event = threading.Event()
        answer: list[Settings] = []
        assert self._pipe is not None
        with self._lock:
            self._waiting[job.number] = (event, answer)
            self._pipe.send(job)
        event.wait()
        return answer[0]

    def _receive(self) -> None:
        assert self._pipe is not None
        while True:
            try:
                number, made_with = self._pipe.recv()
            except (EOFError, OSError):
                return
            event, answer = self._waiting.pop(number)
            answer.append(made_with)
            event.set()

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.join()


def _serve(peer: Peer, settings: PeerSettings, pipe: Connection) -> None:
    os.environ["OMP_NUM_THREADS"] = str(settings.threads)
    draw = engine_drawer(settings) if peer is Peer.ENGINES_BATCHED else diffusers_drawer(settings)
    draw(["warm up"], [0], 2, "ddim")
    pipe.send("ready")
    limit = 1 if peer is Peer.DIFFUSERS else MAX_BATCH
    while True:
        batch: list[Job] = [pipe.recv()]
        deadline = time.perf_counter() + WINDOW_SECONDS
        while len(batch) < limit and pipe.poll(max(0.0, deadline - time.perf_counter())):
            batch.append(pipe.recv())
        first = batch[0]
        draw([job.prompt for job in batch], [job.seed for job in batch], first.steps, first.scheduler)
        for job in batch:
            pipe.send((job.number, first.settings))


def diffusers_scheduler(name: str, config: Mapping[str, Any]) -> Any:
    """diffusers' scheduler of this name in requests, with what a checkpoint's own one says.

    DDIM's default, to clip at 1, is for pixels; checkpoints with latents whose scheduler is DDIM say that it does not.
    """
    from diffusers import (
        DDIMScheduler,
        DPMSolverMultistepScheduler,
        EulerDiscreteScheduler,
        LCMScheduler,
        UniPCMultistepScheduler,
    )

    several = (DDIMScheduler, EulerDiscreteScheduler, DPMSolverMultistepScheduler, UniPCMultistepScheduler)
    kinds: dict[str, Any] = {**dict(zip(SCHEDULERS, several, strict=True)), "lcm": LCMScheduler}
    return kinds[name].from_config({"clip_sample": False, **config})


def diffusers_drawer(settings: PeerSettings) -> Draw:
    """StableDiffusionPipeline in float32."""
    import torch
    from diffusers import StableDiffusionPipeline

    torch.set_num_threads(settings.threads)
    pipeline = StableDiffusionPipeline.from_pretrained(settings.checkpoint, torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    made = {name: diffusers_scheduler(name, pipeline.scheduler.config) for name in SCHEDULERS}

    def draw(prompts: list[str], seeds: list[int], steps: int, scheduler: str) -> None:
        pipeline.scheduler = made[scheduler]
        pipeline(
            prompts,
            num_inference_steps=steps,
            guidance_scale=GUIDANCE,
            height=settings.side,
            width=settings.side,
            generator=[torch.Generator().manual_seed(seed) for seed in seeds],
            output_type="np",
        )

    return draw


def engine_drawer(settings: PeerSettings) -> Draw:
    """The exported ONNX engines in this process, without Triton and without continuous batching."""
    from nereid.diffusion.prompts import PromptService
    from nereid.diffusion.settings import Pipeline
    from nereid.diffusion.solvers import SchedulerName, SolverState, advance, build_table, predict_clean
    from nereid.flow.noise import Purpose, normal

    sessions = {name: engine_session(settings, name) for name in ("text_encoder", "unet", "vae_decoder")}
    pipeline = Pipeline.read(settings.repository / "denoise" / "1")
    tokenizer = PromptService.read(settings.repository / "tokenizer" / "1")
    side = settings.side // pipeline.vae_scale_factor

    def draw(prompts: list[str], seeds: list[int], steps: int, scheduler: str) -> None:
        ids = tokenizer.encode(prompts, [""] * len(prompts))
        both = np.concatenate([ids["input_ids"], ids["negative_input_ids"]])
        states = sessions["text_encoder"].run(None, {"input_ids": both})[0]
        table = build_table(SchedulerName(scheduler), pipeline.scheduler, steps)
        shape = (pipeline.latent_channels, side, side)
        noise = [normal(seed, Purpose.INITIAL_LATENTS, shape) for seed in seeds]
        runs = [SolverState.start(value * np.float32(table.initial_scale)) for value in noise]
        for step in range(steps):
            samples = np.stack([run.sample for run in runs])
            timesteps = np.full((2 * len(runs), 1), table.timesteps[step], np.float32)
            feeds = {"sample": np.concatenate([samples] * 2), "timestep": timesteps, "encoder_hidden_states": states}
            positive, negative = np.split(sessions["unet"].run(None, feeds)[0], 2)
            guided = negative + np.float32(GUIDANCE) * (positive - negative)
            tables, places = [table] * len(runs), [step] * len(runs)
            clean = predict_clean(tables, places, samples, guided)
            advance(tables, places, runs, clean, [None] * len(runs))
        sessions["vae_decoder"].run(None, {"latents": np.stack([run.sample for run in runs])})

    return draw


def require_onnx_engines(settings: PeerSettings) -> None:
    """Raise ServingError for a repository whose engines the peers cannot run without Triton."""
    backend = _config(settings, "unet").backend
    if backend != "onnxruntime":
        raise ServingError(
            f"{settings.repository}: unet is for the backend {backend}; export with --engine onnxruntime to compare"
        )


def _config(settings: PeerSettings, model: str) -> Any:
    from google.protobuf import text_format
    from tritonclient.grpc import model_config_pb2

    try:
        text = (settings.repository / model / "config.pbtxt").read_text()
    except OSError:
        raise ServingError(f"{settings.repository} has no {model}; `make export` puts it there") from None
    return text_format.Parse(text, model_config_pb2.ModelConfig())


def engine_session(settings: PeerSettings, model: str) -> Any:
    """An ONNX Runtime session of one exported engine, with the options that its config.pbtxt gives the served one."""
    import onnxruntime as ort

    from nereid.engines.onnx_options import session_options

    folder, config = settings.repository / model, _config(settings, model)
    options = session_options({}, {key: value.string_value for key, value in config.parameters.items()})
    options.intra_op_num_threads = settings.threads
    return ort.InferenceSession(str(folder / "1" / "model.onnx"), options, providers=["CPUExecutionProvider"])


@dataclass(slots=True)
class LoneEngines:
    """The engines of one lone request, called in its order, in a process of their own without Triton."""

    settings: PeerSettings
    _pool: Any = None

    def __enter__(self) -> LoneEngines:
        self._pool = mp.get_context("spawn").Pool(1, _open_engines, (self.settings,))
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.terminate()
        self._pool.join()

    def seconds(self, steps: int) -> float:
        """Time of one request's engine calls."""
        return float(self._pool.apply(_run_engines, (self.settings.side, steps)))


_engines: dict[str, Any] = {}


def _open_engines(settings: PeerSettings) -> None:
    for name in ("text_encoder", "unet", "vae_decoder"):
        _engines[name] = engine_session(settings, name)


def _run_engines(side: int, steps: int) -> float:
    text, unet, vae = (_engines[name] for name in ("text_encoder", "unet", "vae_decoder"))
    shapes = {item.name: item.shape for item in unet.get_inputs()}
    tokens, width = text.get_inputs()[0].shape[1], shapes["encoder_hidden_states"][2]
    random = np.random.default_rng(0)
    latents = random.standard_normal((2, shapes["sample"][1], side // 8, side // 8), np.float32)
    states = random.standard_normal((2, tokens if isinstance(tokens, int) else 77, width), np.float32)
    start = time.perf_counter()
    text.run(None, {"input_ids": np.ones((2, states.shape[1]), np.int32)})
    for step in range(steps):
        timestep = np.full((2, 1), 999 - step, np.float32)
        unet.run(None, {"sample": latents, "timestep": timestep, "encoder_hidden_states": states})
    vae.run(None, {"latents": latents[:1]})
    return time.perf_counter() - start
