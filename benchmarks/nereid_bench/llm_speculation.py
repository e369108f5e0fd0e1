"""What speculative decoding brings: tokens a second with and without it, by prompt lookup and by a draft model."""

from __future__ import annotations

import statistics
import time
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from nereid_bench.llm_weights import deepened, export
from nereid_bench.servers import serving
from nereid_zoo.sections.chat import conversation

_PROMPTS = tuple(conversation(f"features section for a {topic}, six cards") for topic in ("gym", "museum", "hotel", "bakery"))
_REPETITIVE = {"repetitive": {"temperature": 0, "max_tokens": 400}}
_HOSTILE = {"hostile": {"temperature": 3.0, "max_tokens": 200, "ignore_eos": True, "seed": 4}}
_SAMPLED = {"sampled": {"temperature": 0.8, "max_tokens": 400, "seed": 4}}


def speculation(repository: Path) -> dict[str, Any]:
    """Tokens a second with and without prompt lookup: repetitive sections, and noise at a high temperature."""
    return _speculating(repository, "ngram", _PROMPTS, {**_REPETITIVE, **_HOSTILE})


def draft_speculation(checkpoint: Path, work: Path, say: Callable[[str], None]) -> dict[str, Any]:
    """Speculative decoding: the zoo's model is the draft of one ten times as deep that mostly agrees with it (see deepened)."""
    from nereid_export.llm import LlmExportOptions

    repository = work / "repository"
    if not (repository / "llm").is_dir():
        say("exporting the deep model with its draft")
        deep = deepened(checkpoint, work / "checkpoint")
        export(LlmExportOptions(checkpoint=deep, out=repository, draft=checkpoint, eight_bit_share=0.0))
    return _speculating(repository, "draft", _PROMPTS, {**_REPETITIVE, **_SAMPLED, **_HOSTILE})


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
