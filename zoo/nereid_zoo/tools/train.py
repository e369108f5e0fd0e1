"""Trains LoRA weights that teach `sections` to call a tool and to answer in JSON; merges them into a checkpoint.

Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", 2021.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from random import Random

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerFast

from nereid_zoo.optimisation import cosine_rate, optimizer_step, report
from nereid_zoo.sections.chat import END
from nereid_zoo.sections.score import CHECKPOINT as BASE
from nereid_zoo.tools.examples import TEMPLATE, example

ADAPTER = BASE.parent / "tools"
"""The shipped LoRA weights."""
RANK = 16
_LAYERS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolsPlan:
    """How long; conversations in a batch, and the highest learning rate. `start`: LoRA weights to go on from.

    The shipped weights went through 240 steps, and from there through 260 at half the rate.
    """

    steps: int = 500
    start: Path | None = None
    batch_size: int = 8
    peak: float = 4e-3
    seed: int = 0


def train(plan: ToolsPlan, out: Path, base: Path = BASE) -> None:
    """Write PEFT's folder of LoRA weights (fp16) for `base` to `out`."""
    from peft import LoraConfig, PeftModel, get_peft_model

    torch.manual_seed(plan.seed)
    tokenizer = AutoTokenizer.from_pretrained(base)
    llama = LlamaForCausalLM.from_pretrained(base, dtype=torch.float32, use_safetensors=True)
    if plan.start is not None:
        taught = PeftModel.from_pretrained(llama, plan.start, is_trainable=True).float()
    else:
        config = LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules=_LAYERS, task_type="CAUSAL_LM")
        taught = get_peft_model(llama, config)
    _fit(plan, tokenizer, taught, Random(plan.seed))
    taught.peft_config["default"].base_model_name_or_path = "sections"
    taught.half().save_pretrained(out)
    (out / "README.md").unlink(missing_ok=True)


def merge(out: Path, adapter: Path = ADAPTER, base: Path = BASE) -> None:
    """Write a transformers folder: `base` with the adapter's weights, and the template that shows tools."""
    from peft import PeftModel

    llama = LlamaForCausalLM.from_pretrained(base, dtype=torch.float32, use_safetensors=True)
    PeftModel.from_pretrained(llama, adapter).merge_and_unload().half().save_pretrained(out, safe_serialization=True)
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        shutil.copy(base / name, out / name)
    (out / "chat_template.jinja").write_text(TEMPLATE)


def _fit(plan: ToolsPlan, tokenizer: PreTrainedTokenizerFast, taught: torch.nn.Module, rng: Random) -> None:
    """Next-token loss on the assistant's turns alone."""
    taught.train()
    weights = [weight for weight in taught.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=plan.peak, betas=(0.9, 0.95), weight_decay=0.0)
    for step in range(plan.steps):
        ids, kept = _batch(plan, tokenizer, rng)
        logits = taught(input_ids=ids[:, :-1]).logits
        losses = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
        loss = losses[kept[:, 1:].flatten()].mean()
        optimizer_step(optimizer, loss, cosine_rate(plan.peak, step / plan.steps, rise=step / 10 + 0.1))
        if step % 10 == 0:
            right = (logits.argmax(-1) == ids[:, 1:])[kept[:, 1:]].float().mean()
            report("tools", step, loss=loss.item(), right=right.item())


def _batch(plan: ToolsPlan, tokenizer: PreTrainedTokenizerFast, rng: Random) -> tuple[Tensor, Tensor]:
    """Token ids, and which of them are the assistant's, rows x longest; neighbours in length of four times as many."""
    drawn = sorted((example(rng) for _ in range(4 * plan.batch_size)), key=lambda pair: len(pair[0]) + len(pair[1]))
    first = rng.randrange(0, len(drawn), plan.batch_size)
    rows = []
    for opening, turn in drawn[first : first + plan.batch_size]:
        before = tokenizer(opening).input_ids
        rows.append((before, [*before, *tokenizer(f"{turn}{END}").input_ids]))
    longest = max(len(whole) for _, whole in rows)
    ids = torch.full((len(rows), longest), tokenizer.pad_token_id)
    kept = torch.zeros(len(rows), longest, dtype=torch.bool)
    for row, (before, whole) in enumerate(rows):
        ids[row, : len(whole)] = torch.tensor(whole)
        kept[row, len(before) : len(whole)] = True
    return ids, kept
