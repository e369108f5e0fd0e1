"""The language model measured: engines side by side, the served path against the bare engine, and what each feature brings."""

from __future__ import annotations

import itertools
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import BrokenExecutor, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tokenizers import Tokenizer

from nereid.llm.sampling import Row, Sampling, sample
from nereid.llm.settings import LlmFacts
from nereid_bench.gguf_file import write_gguf
from nereid_bench.llm_adapters import adapter_speeds
from nereid_bench.llm_batching import in_flight_against_static
from nereid_bench.llm_peers import Engine, Weights, bare_speed, has_llama_cpp, installed, loaded
from nereid_bench.optimum_cli import LLM, converted, has_openvino_genai
from nereid_bench.servers import serving, serving_with
from nereid_bench.vllm_peer import require_vllm
from nereid_client import Client
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


PARTS = ("decode", "sampler", "served", "batching", "prefix", "speculation", "draft", "adapters")


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
    optimum_cli: Path | None = None
    """What makes OpenVINO GenAI's models; without it those are measured that are there."""
    vllm: Path | None = None
    """vLLM's command, where it is to be measured as a served peer."""


def measure(plan: LlmPlan, say: Say) -> dict[str, Any]:
    """The parts asked for, as one report."""
    if plan.vllm is not None:
        require_vllm(plan.vllm)
    cli = plan.optimum_cli
    zoo = prepare(plan.checkpoint, plan.work / "sections", say, cli)
    large = prepare(random_llama(plan.work / "llama-200m" / "checkpoint", plan.checkpoint), plan.work / "llama-200m", say, cli)
    report: dict[str, Any] = {"threads": plan.threads}
    repository = zoo.engine.parent.parent
    work: dict[str, Callable[[], Any]] = {
        "decode": lambda: decode_speeds({"200 M random": large, "sections": zoo}, plan, say),
        "sampler": lambda: [{"rows": rows, "microseconds_a_row": sampler_cost(rows)} for rows in (1, 8, 16)],
        "served": lambda: served_against_bare({"200 M random": large, "sections": zoo}, plan),
        "batching": lambda: in_flight_against_static(zoo, plan.requests * 3, plan.threads, say, plan.vllm),
        "prefix": lambda: prefix_cache(repository, plan),
        "speculation": lambda: speculation(repository),
        "draft": lambda: draft_speculation(plan, say),
        "adapters": lambda: adapter_speeds(
            large.checkpoint, plan.work / "adapters", plan.batches, plan.tokens, plan.threads, _export, say
        ),
    }
    for part in plan.parts:
        say(part)
        report[part] = work[part]()
    return report


def decode_speeds(models: Mapping[str, Weights], plan: LlmPlan, say: Say, rounds: int = 5) -> list[dict[str, Any]]:
    """Tokens a second of every engine at every batch size, all rows together: medians of rounds in which engines take turns.

    An engine whose process dies, as one does that was built for another processor, is left out and named.
    """
    found: list[dict[str, Any]] = []
    for name, weights in models.items():
        with ExitStack() as stack:
            engines = {engine: stack.enter_context(loaded(engine, weights, plan.threads)) for engine in installed(weights)}
            rows_of: dict[Engine, dict[str, Any]] = {e: {"model": name, "engine": str(e)} for e in engines}
            for rows in plan.batches:
                say(f"{name}: {rows} rows")
                taken: dict[Engine, list[float]] = {engine: [] for engine in engines}
                for tokens in (4, *[plan.tokens] * rounds):  # the first is to warm up
                    for engine, speed in list(engines.items()):
                        try:
                            taken[engine].append(speed(rows, tokens))
                        except BrokenExecutor:
                            say(f"{name}: {engine} is left out: its process died")
                            del engines[engine]
                for engine in engines:
                    rows_of[engine][f"batch {rows}"] = statistics.median(taken[engine][1:])
            found += [rows_of[engine] for engine in engines]
    return found


def prepare(checkpoint: Path, work: Path, say: Say, optimum_cli: Path | None = None) -> Weights:
    """Our int4 exports and the peers' own, all without 8-bit matrices, unless they are there."""
    from nereid_export.llm import LlmEngine, LlmExportOptions

    repository, openvino, genai = work / "repository", work / "openvino", work / "genai"
    for engine, out in ((LlmEngine.ONNXRUNTIME, repository), (LlmEngine.OPENVINO, openvino)):
        if not (out / "llm").is_dir():
            say(f"exporting {checkpoint} for {engine}")
            _export(LlmExportOptions(checkpoint=checkpoint, out=out, engine=engine, eight_bit_share=0.0))
    if not (genai / "genai_config.json").is_file():
        say(f"building {checkpoint} for onnxruntime-genai")
        command = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-i", str(checkpoint), "-o", str(genai)]
        command += ["-p", "int4", "-e", "cpu", "-c", str(work / "cache"), "--extra_options", "block_size=32", "accuracy_level=4"]
        subprocess.run(command, check=True, capture_output=True)
    if has_openvino_genai():
        converted(checkpoint, work / "openvino-genai", optimum_cli, *LLM)
    gguf = work / "model-q4_0.gguf"
    if has_llama_cpp() and not gguf.is_file():
        write_gguf(checkpoint, gguf)
    facts = LlmFacts.read(repository / "llm" / "1")
    return Weights(
        engine=repository / "llm" / "1",
        openvino=openvino / "llm" / "1",
        genai=genai,
        openvino_genai=work / "openvino-genai",
        gguf=gguf,
        checkpoint=checkpoint,
        vocabulary=facts.vocabulary,
    )


def _export(options: LlmExportOptions) -> None:
    from nereid_export.bar import progress_bar
    from nereid_export.llm import export_llm

    with progress_bar() as bar:
        export_llm(options, bar)


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


def speculation(repository: Path) -> dict[str, Any]:
    """Tokens a second with and without prompt lookup: repetitive sections, and noise at a high temperature."""
    return _speculating(repository, "ngram", _PROMPTS, {**_REPETITIVE, **_HOSTILE})


_PROMPTS = tuple(conversation(f"features section for a {topic}, six cards") for topic in ("gym", "museum", "hotel", "bakery"))
_REPETITIVE = {"repetitive": {"temperature": 0, "max_tokens": 400}}
_HOSTILE = {"hostile": {"temperature": 3.0, "max_tokens": 200, "ignore_eos": True, "seed": 4}}
_SAMPLED = {"sampled": {"temperature": 0.8, "max_tokens": 400, "seed": 4}}


def draft_speculation(plan: LlmPlan, say: Say) -> dict[str, Any]:
    """Speculative decoding: the zoo's model is the draft of one ten times as deep that mostly agrees with it (see deepened)."""
    from nereid_export.llm import LlmExportOptions

    work = plan.work / "deep"
    repository = work / "repository"
    if not (repository / "llm").is_dir():
        say("exporting the deep model with its draft")
        checkpoint = deepened(plan.checkpoint, work / "checkpoint")
        _export(LlmExportOptions(checkpoint=checkpoint, out=repository, draft=plan.checkpoint, eight_bit_share=0.0))
    return _speculating(repository, "draft", _PROMPTS, {**_REPETITIVE, **_SAMPLED, **_HOSTILE})


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


def _speculating(
    repository: Path, mode: str, prompts: Sequence[str], workloads: Mapping[str, Mapping[str, Any]]
) -> dict[str, dict[str, float]]:
    """Tokens a second of one request at a time, with and without speculation in turn, and the share of accepted drafts."""
    found: dict[str, dict[str, float]] = {}
    with serving(repository) as (client, options):
        for name, settings in workloads.items():
            speeds: dict[str, list[float]] = {"none": [], mode: []}
            before = _draft_counts(options.metrics_port)
            for _ in range(4):
                for prompt in prompts:
                    for kind, kept in speeds.items():
                        start = time.perf_counter()
                        result = client.generate_text(prompt, speculation=kind, **settings)
                        kept.append(result.num_output_tokens / (time.perf_counter() - start))
            time.sleep(1)  # metrics are written in strides
            drafted, accepted = (after - old for after, old in zip(_draft_counts(options.metrics_port), before, strict=True))
            plain, quick = (statistics.median(speeds[kind]) for kind in ("none", mode))
            accepted_share = accepted / drafted if drafted else 0.0
            found[name] = {"plain": plain, "speculating": quick, "ratio": quick / plain, "accepted": accepted_share}
    return found


def _draft_counts(port: int) -> tuple[float, float]:
    """Draft tokens proposed, and of these accepted, since the server's start."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        text = answer.read().decode()

    def value(name: str) -> float:
        return sum(float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if line.startswith(name))

    return value("nereid_llm_draft_tokens_total"), value("nereid_llm_accepted_draft_tokens_total")
