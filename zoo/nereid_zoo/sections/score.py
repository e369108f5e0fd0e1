"""Scores sections written from held-out briefs, greedily: by the PyTorch model, and by a served engine."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random

from nereid_client import Client
from nereid_zoo.sections.briefs import Brief, sample_brief
from nereid_zoo.sections.chat import conversation
from nereid_zoo.sections.html import mistakes

CHECKPOINT = Path(__file__).resolve().parents[2] / Path(__file__).parent.name / "checkpoint"
"""The trained checkpoint, an ordinary transformers folder."""

MAX_NEW_TOKENS = 400

Write = Callable[[list[str]], Iterator[str]]
"""Sections for briefs, in order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """How many sections were right; `wrong` holds a brief and its mistakes each."""

    written: int
    right: int
    wrong: tuple[tuple[str, list[str]], ...]

    @property
    def percent(self) -> float:
        return 100 * self.right / self.written


def held_out_briefs(count: int, seed: int = 0) -> list[Brief]:
    """Briefs whose pair of kind and topic training has never seen."""
    rng = Random(seed)
    return [sample_brief(rng, held_out=True) for _ in range(count)]


def score(write: Write, briefs: list[Brief], progress: Callable[[int], None] = lambda done: None) -> Score:
    """Write a section for every brief and compare."""
    wrong = []
    for done, (html, brief) in enumerate(zip(write([brief.text for brief in briefs]), briefs, strict=True), 1):
        if found := mistakes(html, brief.demand):
            wrong.append((brief.text, found))
        progress(done)
    return Score(written=len(briefs), right=len(briefs) - len(wrong), wrong=tuple(wrong))


def torch_writer(checkpoint: Path, *, batch: int = 32) -> Write:
    """Write with transformers' own `generate` in float32, greedily."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(checkpoint, padding_side="left")
    llama = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()

    def write(texts: list[str]) -> Iterator[str]:
        for start in range(0, len(texts), batch):
            chats = [[{"role": "user", "content": text}] for text in texts[start : start + batch]]
            prompts = [tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True) for chat in chats]
            inputs = tokenizer(prompts, return_tensors="pt", padding=True)
            made = llama.generate(
                input_ids=inputs.input_ids,
                attention_mask=inputs.attention_mask,
                do_sample=False,
                max_new_tokens=MAX_NEW_TOKENS,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
            )
            yield from tokenizer.batch_decode(made[:, inputs.input_ids.shape[1] :], skip_special_tokens=True)

    return write


def served_writer(client: Client, *, at_once: int = 8) -> Write:
    """Write through a running server, several requests in flight."""
    from concurrent.futures import ThreadPoolExecutor

    def one(text: str) -> str:
        return client.generate_text(conversation(text), temperature=0, max_tokens=MAX_NEW_TOKENS).text

    def write(texts: list[str]) -> Iterator[str]:
        with ThreadPoolExecutor(at_once) as pool:
            yield from pool.map(one, texts)

    return write
