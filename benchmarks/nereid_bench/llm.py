"""The language model measured: engines side by side, the served path against the bare engine, and what each feature brings."""

from __future__ import annotations

import itertools
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tokenizers import Tokenizer

from nereid.engines.digests import sign
from nereid.engines.onnx_causal import OnnxCausalEngine
from nereid.flow.metrics import Recorder
from nereid.llm.observer import LlmObserver
from nereid.llm.sampling import Row, Sampling, sample
from nereid.llm.service import LlmModel, LlmService
from nereid.llm.settings import LlmFacts, LlmLimits
from nereid.serving.options import ServeOptions
from nereid_bench.compare import serving
from nereid_bench.gguf_file import write_gguf
from nereid_bench.llm_peers import Engine, Weights, bare_speed, installed, loaded
from nereid_client import Client
from nereid_client.texts import text_tensors
from nereid_export.configs import read_config, write_config
from nereid_zoo.sections.chat import conversation
from nereid_zoo.sections.score import held_out_briefs

if TYPE_CHECKING:
    from nereid_export.llm import LlmExportOptions

Say = Callable[[str], None]

LLAMA_200M = {
    "vocab_size": 32_000,
    "hidden_size": 1024,
    "intermediate_size": 2816,
    "num_hidden_layers": 12,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "max_position_embeddings": 2048,
}
"""200 million parameters, random: what weights do not change can be measured on them."""


PARTS = ("decode", "sampler", "served", "batching", "prefix", "speculation", "draft")


@dataclass(frozen=True, slots=True, kw_only=True)
class LlmPlan:
    """What to measure, and where engines and checkpoints are kept."""

    work: Path
    checkpoint: Path
    threads: int
    batches: tuple[int, ...] = (1, 2, 4, 8, 16)
    tokens: int = 48
    requests: int = 32
    parts: tuple[str, ...] = PARTS


def measure(plan: LlmPlan, say: Say) -> dict[str, Any]:
    """The parts asked for, as one report."""
    zoo = prepare(plan.checkpoint, plan.work / "sections", say)
    large = prepare(random_llama(plan.work / "llama-200m" / "checkpoint", plan.checkpoint), plan.work / "llama-200m", say)
    report: dict[str, Any] = {"threads": plan.threads}
    repository = zoo.engine.parent.parent
    work: dict[str, Callable[[], Any]] = {
        "decode": lambda: decode_speeds({"200 M random": large, "sections": zoo}, plan, say),
        "sampler": lambda: [{"rows": rows, "microseconds_a_row": sampler_cost(rows)} for rows in (1, 8, 16)],
        "served": lambda: served_against_bare({"200 M random": large, "sections": zoo}, plan),
        "batching": lambda: in_flight_against_static(repository, plan),
        "prefix": lambda: prefix_cache(repository, plan),
        "speculation": lambda: speculation(repository, plan),
        "draft": lambda: draft_speculation(plan, say),
    }
    for part in plan.parts:
        say(part)
        report[part] = work[part]()
    return report


def decode_speeds(models: Mapping[str, Weights], plan: LlmPlan, say: Say, rounds: int = 5) -> list[dict[str, Any]]:
    """Tokens a second of every engine at every batch size, all rows together: medians of rounds in which engines take turns."""
    found: list[dict[str, Any]] = []
    for name, weights in models.items():
        with ExitStack() as stack:
            engines = {engine: stack.enter_context(loaded(engine, weights, plan.threads)) for engine in installed()}
            rows_of: dict[Engine, dict[str, Any]] = {e: {"model": name, "engine": str(e)} for e in engines}
            for rows in plan.batches:
                say(f"{name}: {rows} rows")
                for speed in engines.values():
                    speed(rows, 4)  # to warm up
                taken = [{engine: speed(rows, plan.tokens) for engine, speed in engines.items()} for _ in range(rounds)]
                for engine, row in rows_of.items():
                    row[f"batch {rows}"] = statistics.median(speeds[engine] for speeds in taken)
            found += rows_of.values()
    return found


def prepare(checkpoint: Path, work: Path, say: Say) -> Weights:
    """Our int4 export and onnxruntime-genai's own, both without 8-bit matrices, unless they are there."""
    from nereid_export.llm import LlmExportOptions

    repository, genai = work / "repository", work / "genai"
    if not (repository / "llm").is_dir():
        say(f"exporting {checkpoint}")
        _export(LlmExportOptions(checkpoint=checkpoint, out=repository, eight_bit_share=0.0))
    if not (genai / "genai_config.json").is_file():
        say(f"building {checkpoint} for onnxruntime-genai")
        command = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-i", str(checkpoint), "-o", str(genai)]
        command += ["-p", "int4", "-e", "cpu", "-c", str(work / "cache"), "--extra_options", "block_size=32", "accuracy_level=4"]
        subprocess.run(command, check=True, capture_output=True)
    gguf = work / "model-q4_0.gguf"
    if Engine.LLAMA_CPP in installed() and not gguf.is_file():
        write_gguf(checkpoint, gguf)
    facts = LlmFacts.read(repository / "llm" / "1")
    return Weights(engine=repository / "llm" / "1", genai=genai, gguf=gguf, checkpoint=checkpoint, vocabulary=facts.vocabulary)


def _export(options: LlmExportOptions) -> None:
    from rich.console import Console
    from rich.progress import Progress

    from nereid_export.cli import Bar
    from nereid_export.llm import export_llm

    with Progress(console=Console(stderr=True), transient=True) as progress:
        export_llm(options, Bar(progress))


def random_llama(folder: Path, tokenizer_from: Path) -> Path:
    """Write the 200 M Llama with random weights; its tokenizer is borrowed and never used."""
    if not (folder / "config.json").is_file():
        import torch
        from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

        torch.manual_seed(0)
        LlamaForCausalLM(LlamaConfig(**LLAMA_200M, bos_token_id=None, eos_token_id=2, pad_token_id=0)).save_pretrained(folder)
        AutoTokenizer.from_pretrained(tokenizer_from).save_pretrained(folder)
    return folder


def sampler_cost(rows: int, vocabulary: int = 32_000, repeats: int = 200) -> float:
    """Microseconds a row with top-k 40 and top-p 0.9, the median."""
    logits = np.random.default_rng(0).standard_normal((rows, vocabulary)).astype(np.float32) * 3
    settings = [Row(Sampling(top_k=40, top_p=0.9, seed=row), 5) for row in range(rows)]
    taken = []
    for _ in range(repeats):
        start = time.perf_counter()
        sample(logits, settings)
        taken.append(time.perf_counter() - start)
    return 1e6 * statistics.median(taken) / rows


@contextmanager
def serving_with(repository: Path, **parameters: object) -> Iterator[tuple[Client, ServeOptions]]:
    """The repository served with other parameters of `llm`; its engines are linked, not copied."""
    with tempfile.TemporaryDirectory(dir=repository.parent) as folder:
        linked = Path(folder) / "repository"
        shutil.copytree(repository, linked, copy_function=os.link)
        file = linked / "llm" / "config.pbtxt"
        config = read_config(file)
        file.unlink()  # the link, not the original
        for name, value in parameters.items():
            config.parameters[name].string_value = str(value)
        write_config(config, file.parent)
        sign(linked)
        with serving(linked) as served:
            yield served


def served_against_bare(
    models: Mapping[str, Weights], plan: LlmPlan, streams: int = 8, tokens: int = 128
) -> list[dict[str, Any]]:
    """Tokens a second of eight streams through Triton, and of the bare engine reading the same prompts and decoding
    eight rows greedily, in turn; with the engine on all cores, and on half of them.

    Without the prefix cache: it would spare the served prompts, and read answers again while the bare engine is measured.
    """
    prompt = conversation("features section for a museum")
    rows = []
    for (name, weights), threads in itertools.product(models.items(), sorted({plan.threads, max(1, plan.threads // 2)})):
        ids = Tokenizer.from_file(str(weights.engine / "tokenizer.json")).encode(prompt).ids
        served, bare = [], []
        with serving_with(weights.engine.parent.parent, threads=threads, prefix_cache_megabytes=0) as (client, _):
            options = {"max_tokens": tokens, "ignore_eos": True, "temperature": 0.8, "top_k": 40}

            def stream(seed: int, client: Client = client, options: dict[str, Any] = options) -> int:
                return sum(len(delta.token_ids) for delta in client.stream_text(prompt, seed=seed, **options))

            with ThreadPoolExecutor(streams) as pool:
                list(pool.map(stream, range(streams)))
                for _ in range(3):
                    start = time.perf_counter()
                    total = sum(pool.map(stream, range(streams)))
                    served.append(total / (time.perf_counter() - start))
                    bare.append(bare_speed(weights, ids, streams, tokens, threads))
        whole, part = statistics.median(bare), statistics.median(served)
        rows.append({"model": name, "engine threads": threads, "served": part, "bare": whole, "lost": 1 - part / whole})
    return rows


@dataclass(frozen=True, slots=True, kw_only=True)
class TextJob:
    """One request: when it arrives, its prompt, how many tokens it wants."""

    arrival: float
    prompt: tuple[int, ...]
    tokens: int


@dataclass(slots=True)
class TextOutcome:
    """Seconds from arrival to the first and the last token, and between tokens."""

    first: float
    last: float
    gaps: list[float] = field(default_factory=list)


SHORT_ANSWERS = (10, 25, 50, 100, 200)
LONG_ANSWERS = (20, 50, 100, 200, 400)


def text_jobs(count: int, rate: float, vocabulary: int, answers: Sequence[int] = SHORT_ANSWERS, seed: int = 0) -> list[TextJob]:
    """Poisson arrivals; prompts of 10 to 200 tokens, answers of the lengths given."""
    rng, now, jobs = random.Random(seed), 0.0, []
    for _ in range(count):
        now += rng.expovariate(rate)
        prompt = tuple(rng.randrange(3, vocabulary) for _ in range(rng.randint(10, 200)))
        jobs.append(TextJob(arrival=now, prompt=prompt, tokens=rng.choice(answers)))
    return jobs


def in_flight_against_static(repository: Path, plan: LlmPlan) -> list[dict[str, Any]]:
    """The same arrivals, fast enough to fill all, answered greedily: in flight through Triton, in flight without Triton, and by
    static batches of 8 or 100 ms around the bare engine."""
    folder = repository / "llm" / "1"
    vocabulary = LlmFacts.read(folder).vocabulary
    rows: list[dict[str, Any]] = []
    for name, lengths in {"10 to 200": SHORT_ANSWERS, "20 to 400": LONG_ANSWERS}.items():
        jobs = text_jobs(plan.requests * 3, 100.0, vocabulary, lengths)
        made = {}
        with serving_with(repository, threads=plan.threads, prefix_cache_megabytes=0) as (client, _):
            made["in flight, served"] = _drive(jobs, partial(_stream, client))
        with in_process(folder, plan.threads) as ask:
            made["in flight, no Triton"] = _drive(jobs, ask)
        static = StaticBatcher(OnnxCausalEngine.load(folder / "model.onnx", tokens=32_768, threads=plan.threads))
        made["static batches"] = _drive(jobs, static.ask)
        static.stop()
        rows += [{"answers": name, "batching": kind, **_summary(jobs, *outcomes)} for kind, outcomes in made.items()]
    return rows


Ask = Callable[[TextJob, Callable[[], None]], None]
"""Answers a job, and tells of each token; returns when all are there."""


def _sampling(job: TextJob) -> dict[str, Any]:
    return {"max_tokens": job.tokens, "ignore_eos": True, "temperature": 0}


def _stream(client: Client, job: TextJob, told: Callable[[], None]) -> None:
    for delta in client.stream_text(list(job.prompt), **_sampling(job)):
        for _ in delta.token_ids:
            told()


@dataclass(slots=True, eq=False)
class _Caller:
    """One request's way back where there is no Triton."""

    told: Callable[[], None]
    done: threading.Event = field(default_factory=threading.Event)

    def send(self, outputs: Mapping[str, np.ndarray]) -> None:
        for _ in outputs["output_ids"]:
            self.told()

    def close(self, error: Exception | None = None) -> None:
        self.done.set()

    def is_cancelled(self) -> bool:
        return False


@contextmanager
def in_process(folder: Path, threads: int) -> Iterator[Ask]:
    """The `llm` service of an engine's folder, without Triton: in this process, its engine in the worker it starts."""
    limits = LlmLimits(prefix_cache_megabytes=0, threads=threads)
    observer = LlmObserver(Recorder(lambda metric, value, labels: None))
    service = LlmService(LlmModel.read("llm", folder, limits, None), observer)

    def ask(job: TextJob, told: Callable[[], None]) -> None:
        caller = _Caller(told)
        service.handle(text_tensors(job.prompt, _sampling(job), stream=True), caller)
        caller.done.wait()

    yield ask
    service.stop()


class StaticBatcher:
    """What people build around an engine: collect up to 8 requests or 100 ms, answer all when the longest is done."""

    def __init__(self, engine: OnnxCausalEngine) -> None:
        self._engine = engine
        engine.arrange(8, 1024)
        self._waiting: list[tuple[TextJob, threading.Event]] = []
        self._changed = threading.Condition()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def ask(self, job: TextJob, told: Callable[[], None]) -> None:
        done = threading.Event()
        with self._changed:
            self._waiting.append((job, done))
            self._changed.notify()
        done.wait()
        for _ in range(job.tokens):
            told()

    def stop(self) -> None:
        with self._changed:
            self._stopping = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        while True:
            with self._changed:
                while not (self._waiting or self._stopping):
                    self._changed.wait()
                if self._stopping:
                    return
            time.sleep(0.1)
            with self._changed:
                batch, self._waiting = self._waiting[:8], self._waiting[8:]
            self._answer([job for job, _ in batch])
            for _, done in batch:
                done.set()

    def _answer(self, jobs: Sequence[TextJob]) -> None:
        last = []
        for row, job in enumerate(jobs):
            last.append(int(self._engine.extend(row, 0, job.prompt)[0].argmax()))
        for place in range(max(job.tokens for job in jobs)):
            last = self._engine.decode(last, [len(job.prompt) + place for job in jobs]).argmax(axis=1).tolist()


def _drive(jobs: Sequence[TextJob], ask: Callable[[TextJob, Callable[[], None]], None]) -> tuple[list[TextOutcome], float]:
    """Send each job at its time; outcomes, and the seconds from the first arrival to the last answer."""
    start = time.perf_counter() + 0.1
    outcomes = [TextOutcome(0, 0) for _ in jobs]

    def one(index: int) -> None:
        job, times = jobs[index], []
        time.sleep(max(0.0, start + job.arrival - time.perf_counter()))
        ask(job, lambda: times.append(time.perf_counter() - start - job.arrival))
        outcomes[index] = TextOutcome(times[0], times[-1], [b - a for a, b in itertools.pairwise(times)])

    threads = [threading.Thread(target=one, args=(index,)) for index in range(len(jobs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return outcomes, time.perf_counter() - start - jobs[0].arrival


def _summary(jobs: Sequence[TextJob], outcomes: Sequence[TextOutcome], seconds: float) -> dict[str, float]:
    """`goodput`: first token within half a second and the answer within 20 ms a token beyond it."""
    firsts = [outcome.first for outcome in outcomes]
    gaps = [gap for outcome in outcomes for gap in outcome.gaps]
    good = [o.first <= 0.5 and o.last <= 0.5 + 0.02 * job.tokens for job, o in zip(jobs, outcomes, strict=True)]
    return {
        "tokens_per_second": sum(job.tokens for job in jobs) / seconds,
        "ttft_p50": float(np.percentile(firsts, 50)),
        "ttft_p95": float(np.percentile(firsts, 95)),
        "itl_p50": float(np.percentile(gaps, 50)),
        "itl_p95": float(np.percentile(gaps, 95)),
        "goodput": sum(good) / len(good),
    }


def prefix_cache(repository: Path, plan: LlmPlan) -> dict[str, float]:
    """Questions under one long system prompt: share of prompt tokens found, and time to the first token, cold and warm."""
    system = " ".join(brief.text for brief in held_out_briefs(40, seed=5))
    questions = [brief.text for brief in held_out_briefs(plan.requests, seed=6)]
    firsts, cached, total = [], 0, 0
    with serving(repository) as (client, _):
        list(client.stream_text("warm up", max_tokens=2))
        for question in questions:
            start = time.perf_counter()
            stream = client.stream_text(f"<|im_start|>system\n{system}<|im_end|>\n{conversation(question)}", max_tokens=4)
            delta = next(stream)
            firsts.append(time.perf_counter() - start)
            cached, total = cached + delta.num_cached_tokens, total + delta.num_input_tokens
            list(stream)
    cold, warm = firsts[0], statistics.median(firsts[1:])
    return {"hit_rate": cached / total, "ttft_cold": cold, "ttft_warm": warm, "ratio": cold / warm}


def speculation(repository: Path, plan: LlmPlan) -> dict[str, Any]:
    """Tokens a second with and without prompt lookup: repetitive sections, and noise at a high temperature."""
    return _guessing(repository, "ngram", _PROMPTS, {**_REPETITIVE, **_HOSTILE})


_PROMPTS = tuple(conversation(f"features section for a {topic}, six cards") for topic in ("gym", "museum", "hotel", "bakery"))
_REPETITIVE = {"repetitive": {"temperature": 0, "max_tokens": 400}}
_HOSTILE = {"hostile": {"temperature": 3.0, "max_tokens": 200, "ignore_eos": True, "seed": 4}}
_SAMPLED = {"sampled": {"temperature": 0.8, "max_tokens": 400, "seed": 4}}


def draft_speculation(plan: LlmPlan, say: Say) -> dict[str, Any]:
    """The zoo's model guesses for one ten times as deep that mostly agrees with it (see deepened)."""
    from nereid_export.llm import LlmExportOptions

    work = plan.work / "deep"
    repository = work / "repository"
    if not (repository / "llm").is_dir():
        say("exporting the deep model with its draft")
        checkpoint = deepened(plan.checkpoint, work / "checkpoint")
        _export(LlmExportOptions(checkpoint=checkpoint, out=repository, draft=plan.checkpoint, eight_bit_share=0.0))
    return _guessing(repository, "draft", _PROMPTS, {**_REPETITIVE, **_SAMPLED, **_HOSTILE})


def deepened(checkpoint: Path, folder: Path, layers: int = 60, noise: float = 0.1) -> Path:
    """Write the model with random layers behind its own, whose share of the residual stream is small: as slow as a large
    model, and mostly of the small one's opinion."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if not (folder / "config.json").is_file():
        torch.manual_seed(0)
        small = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
        config = type(small.config)(**{**small.config.to_dict(), "num_hidden_layers": layers})
        large = type(small)(config)
        large.load_state_dict(small.state_dict(), strict=False)
        with torch.no_grad():
            for layer in large.model.layers[small.config.num_hidden_layers :]:
                for matrix in (layer.self_attn.o_proj, layer.mlp.down_proj):
                    matrix.weight *= noise
        large.save_pretrained(folder)
        AutoTokenizer.from_pretrained(checkpoint).save_pretrained(folder)
    return folder


def _guessing(
    repository: Path, mode: str, prompts: Sequence[str], workloads: Mapping[str, Mapping[str, Any]]
) -> dict[str, dict[str, float]]:
    """Tokens a second of one request at a time, with and without guesses in turn, and the share of guesses that were right."""
    found: dict[str, dict[str, float]] = {}
    with serving(repository) as (client, options):
        for name, settings in workloads.items():
            speeds: dict[str, list[float]] = {"none": [], mode: []}
            before = _guess_counts(options.metrics_port)
            for _ in range(4):
                for prompt in prompts:
                    for kind, kept in speeds.items():
                        start = time.perf_counter()
                        result = client.generate_text(prompt, speculation=kind, **settings)
                        kept.append(result.num_output_tokens / (time.perf_counter() - start))
            time.sleep(1)  # metrics are written in strides
            guessed, accepted = (after - old for after, old in zip(_guess_counts(options.metrics_port), before, strict=True))
            plain, quick = (statistics.median(speeds[kind]) for kind in ("none", mode))
            accepted_share = accepted / guessed if guessed else 0.0
            found[name] = {"plain": plain, "guessing": quick, "ratio": quick / plain, "accepted": accepted_share}
    return found


def _guess_counts(port: int) -> tuple[float, float]:
    """Tokens guessed, and of these accepted, since the server's start."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        text = answer.read().decode()

    def value(name: str) -> float:
        return sum(float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if line.startswith(name))

    return value("nereid_llm_draft_tokens_total"), value("nereid_llm_accepted_draft_tokens_total")
