"""Fine-tunes `sections` to plan pages: what it reads are briefs of pages and the plans that answer them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from nereid.page.plan import asked_of_planner
from nereid_zoo.optimisation import optimizer_step, report, schedule
from nereid_zoo.page.plans import plan_text, sample_page_brief
from nereid_zoo.sections.chat import conversation
from nereid_zoo.stages import finished_stage

_KIND = re.compile(r"^[a-z]+:", re.MULTILINE)
_KIND_WEIGHT = 8.0
"""Which sections a page has is what a plan is for; most of its tokens are the words of their briefs, which may be many."""
_NEIGHBOURS = 4
"""So many times as many conversations are drawn as a batch has, and neighbours in length taken: little of it is padding."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannerPlan:
    """How long, where, and from which checkpoint."""

    source: Path
    work: Path
    device: str = "cpu"
    minutes: float = 45.0
    batch_size: int = 16
    peak: float = 1.2e-3
    seed: int = 0


def train(plan: PlannerPlan, destination: Path) -> None:
    """Fine-tune within the budget and save an ordinary transformers folder (fp16) to `destination`.

    The finished training is kept in the work folder, and skipped when run again.
    """
    torch.manual_seed(plan.seed)
    plan.work.mkdir(parents=True, exist_ok=True)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(plan.source)
    llama = LlamaForCausalLM.from_pretrained(plan.source, dtype=torch.float32, use_safetensors=True)
    key = {"minutes": plan.minutes, "seed": plan.seed, "source": str(plan.source.resolve())}
    finished = finished_stage(plan.work / "planner", key, partial(_fit_and_keep, plan, tokenizer, llama))
    llama = LlamaForCausalLM.from_pretrained(finished, dtype=torch.float32, use_safetensors=True)
    llama.half().save_pretrained(destination, safe_serialization=True)
    tokenizer.save_pretrained(destination)


def _fit_and_keep(plan: PlannerPlan, tokenizer: PreTrainedTokenizerFast, llama: LlamaForCausalLM, folder: Path) -> None:
    fit(plan, tokenizer, llama.to(plan.device), Random(plan.seed + 1))
    llama.cpu().save_pretrained(folder, safe_serialization=True)


def fit(plan: PlannerPlan, tokenizer: PreTrainedTokenizerFast, llama: LlamaForCausalLM, rng: Random) -> None:
    """Next-token loss on the answers."""
    llama.train()
    optimizer = torch.optim.AdamW(llama.parameters(), lr=plan.peak, weight_decay=0.05, betas=(0.9, 0.95))
    for step, rate in schedule("planner", plan.minutes, peak=plan.peak):
        ids, weights = (tensor.to(plan.device) for tensor in batch(plan.batch_size, tokenizer, rng))
        logits = llama(input_ids=ids[:, :-1]).logits
        losses = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
        kept = weights[:, 1:].flatten()
        loss = (losses * kept).sum() / kept.sum()
        optimizer_step(optimizer, loss, rate)
        if step % 50 == 0:
            report("planner", step, loss=loss.item(), rate=rate)


def batch(size: int, tokenizer: PreTrainedTokenizerFast, rng: Random) -> tuple[Tensor, Tensor]:
    """Token ids and loss weights, rows x longest: 0 on the brief, 1 on the plan, more on the kinds of its sections."""
    drawn = sorted((_conversation(rng) for _ in range(size * _NEIGHBOURS)), key=lambda row: len(row[0]))
    first = rng.randrange(0, len(drawn), size)
    rows = drawn[first : first + size]
    encoded = [tokenizer(whole, return_offsets_mapping=True) for whole, _ in rows]
    longest = max(len(made.input_ids) for made in encoded)
    ids = torch.full((len(rows), longest), tokenizer.pad_token_id)
    weights = torch.zeros(len(rows), longest)
    for row, (made, (whole, opened)) in enumerate(zip(encoded, rows, strict=True)):
        begins = torch.tensor(made.offset_mapping)[:, 0]
        ids[row, : len(begins)] = torch.tensor(made.input_ids)
        of_plan = weights[row, : len(begins)]
        of_plan[begins >= opened] = 1
        for kind in _KIND.finditer(whole, opened):
            of_plan[(begins >= kind.start()) & (begins < kind.end())] = _KIND_WEIGHT
    return ids, weights


def _conversation(rng: Random) -> tuple[str, int]:
    """A whole one, and where its answer begins."""
    page = sample_page_brief(rng, invented=0.5)
    message, answer = asked_of_planner(page.text), plan_text(page.demand, rng)
    return conversation(message, answer), len(conversation(message))
