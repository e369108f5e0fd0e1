"""Trains `sections` on briefs and sections made on the way; resumable between its snapshots."""

from __future__ import annotations

import itertools
import math
import time
from dataclasses import dataclass
from pathlib import Path
from random import Random

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from nereid.zoo.sections import model
from nereid.zoo.sections.briefs import sample_brief
from nereid.zoo.sections.chat import conversation
from nereid.zoo.sections.html import write_section


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingPlan:
    """How long, and where. `batch_size` counts conversations."""

    work: Path
    device: str = "cpu"
    minutes: float = 52
    batch_size: int = 24
    peak: float = 2.5e-3
    seed: int = 0


def train(plan: TrainingPlan, destination: Path) -> None:
    """Train within the budget and save an ordinary transformers folder (fp16) to `destination`."""
    torch.manual_seed(plan.seed)
    plan.work.mkdir(parents=True, exist_ok=True)
    tokenizer = model.train_tokenizer(plan.work / "tokenizer")
    llama = model.make_model(tokenizer).to(plan.device)
    fit(plan, tokenizer, llama)
    llama.half().save_pretrained(destination, safe_serialization=True)
    tokenizer.save_pretrained(destination)


def fit(plan: TrainingPlan, tokenizer: PreTrainedTokenizerFast, llama: LlamaForCausalLM) -> None:
    """Next-token loss on the answers; the briefs count for a tenth, which teaches their wording."""
    optimizer = torch.optim.AdamW(llama.parameters(), lr=plan.peak, weight_decay=0.05, betas=(0.9, 0.95))
    rng = Random(plan.seed + 1)
    start = time.monotonic()
    for step in itertools.count():
        done = (time.monotonic() - start) / (60 * plan.minutes)
        if done >= 1:
            return
        rate = plan.peak * min(1.0, done / 0.02 + 0.02) * (0.01 + 0.495 * (1 + math.cos(math.pi * done)))
        for group in optimizer.param_groups:
            group["lr"] = rate
        ids, weights = _batch(plan, tokenizer, rng)
        logits = llama(input_ids=ids[:, :-1]).logits
        losses = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
        kept = weights[:, 1:].flatten()
        loss = (losses * kept).sum() / kept.sum()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(llama.parameters(), 1.0)
        optimizer.step()
        if step % 50 == 0:
            print(time.strftime("%H:%M:%S"), "sections", step, f"loss={loss.item():.4f} rate={rate:.2e}", flush=True)


def _batch(plan: TrainingPlan, tokenizer: PreTrainedTokenizerFast, rng: Random) -> tuple[Tensor, Tensor]:
    """Token ids and loss weights, rows x longest; of twice as many conversations those of similar length are taken."""
    drawn = []
    for _ in range(plan.batch_size * 4):
        brief = sample_brief(rng, name_chance=0.8)  # copying a name is the hardest part
        section = write_section(brief.demand, rng)
        drawn.append((conversation(brief.text), conversation(brief.text, section)))
    drawn.sort(key=lambda pair: len(pair[1]))
    first = rng.randrange(0, len(drawn), plan.batch_size)
    rows = drawn[first : first + plan.batch_size]
    opened = [len(tokenizer(opening).input_ids) for opening, _ in rows]
    whole = [tokenizer(text).input_ids for _, text in rows]
    longest = max(map(len, whole))
    ids = torch.full((len(rows), longest), tokenizer.pad_token_id)
    weights = torch.zeros(len(rows), longest)
    for row, (tokens, answer) in enumerate(zip(whole, opened, strict=True)):
        ids[row, : len(tokens)] = torch.tensor(tokens)
        weights[row, :answer] = 0.1
        weights[row, answer : len(tokens)] = 1.0
    return ids.to(plan.device), weights.to(plan.device)
