"""Adapters of language models as PEFT saves them, and what PEFT computes with them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from nereid_export.llm_adapters import Adapter


def loaded(checkpoint: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()


def make_adapter(checkpoint: Path, folder: Path, seed: int = 1, size: float = 0.3, **settings: Any) -> Path:
    """An adapter with random weights, its B too, which PEFT begins as zeros; returns its folder."""
    torch.manual_seed(seed)
    chosen = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM", **settings}
    model = get_peft_model(loaded(checkpoint), LoraConfig(**chosen))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn_like(parameter) * size)
    model.save_pretrained(folder)
    return folder


def peft_logits(checkpoint: Path, adapter: Path | None, ids: Sequence[int]) -> np.ndarray:
    """What PEFT and transformers make of the tokens: tokens x vocabulary, float32; without an adapter the model's own."""
    model = loaded(checkpoint)
    if adapter is not None:
        model = PeftModel.from_pretrained(model, adapter).eval()
    with torch.no_grad():
        return np.asarray(model(torch.tensor([list(ids)])).logits[0].numpy())


def named(**folders: Path) -> tuple[Adapter, ...]:
    return tuple(Adapter.parse(f"{name}={folder}") for name, folder in folders.items())
