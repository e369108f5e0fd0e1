"""lm-evaluation-harness: its local-completions gives the scores of its own hf backend on the same checkpoint."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from told import BASE, CHECKPOINT, FOLDER, GATEWAY, LLM, TOOLS, Client, command, expect

client = Client("lm-evaluation-harness", "lm_eval")
KINDS = ("hero", "features", "pricing", "testimonials", "gallery", "contact", "footer")
PLACES = ("a bakery", "a museum", "a gym", "a florist", "a law firm", "a bicycle shop")
GREEDY = ["generation_kwargs:", "  until: ['</h2>']", "  max_gen_toks: 16", "  do_sample: false"]
ONE_THREAD = {"OMP_NUM_THREADS": "1"}
"""The server computes beside it."""
NEAR = 2e-3
"""Nats of one answer: both compute in float32, in another order."""


@cache
def tasks() -> Path:
    """Three local tasks, of each kind that scores prompts, and one that generates."""
    folder = FOLDER / "tasks"
    folder.mkdir()
    choices = [f'<section class="{kind}">' for kind in KINDS]
    docs = [
        {"brief": f"{kind} section for {place}", "choices": choices, "answer": label, "text": f"{choices[label]}\n  <h2>"}
        for label, kind in enumerate(KINDS)
        for place in PLACES
    ]
    (folder / "docs.jsonl").write_text("".join(f"{json.dumps(doc)}\n" for doc in docs))
    asked = '"<|im_start|>user\\n{{brief}}<|im_end|>\\n<|im_start|>assistant\\n"'
    kinds = {
        "choice": [f"doc_to_text: {asked}", "doc_to_choice: choices", "doc_to_target: answer", "target_delimiter: ''"],
        "likelihood": [f"doc_to_text: {asked}", "doc_to_target: text", "target_delimiter: ''"],
        "rolling": ["doc_to_text: ''", "doc_to_target: brief"],
        "written": [f"doc_to_text: {asked}", "doc_to_target: text"],
    }
    outputs = {"choice": "multiple_choice", "likelihood": "loglikelihood", "rolling": "loglikelihood_rolling"}
    metrics = {"choice": ("acc", "acc_norm"), "likelihood": ("perplexity", "acc"), "rolling": ("word_perplexity",)}
    for name, lines in kinds.items():
        listed = "\n".join(f"  - metric: {metric}" for metric in metrics.get(name, ("exact_match",)))
        more = GREEDY if name == "written" else []
        text = [f"task: zoo_{name}", "dataset_path: json", "test_split: test"]
        text.append(f"output_type: {outputs.get(name, 'generate_until')}")
        text += ["dataset_kwargs:", "  data_files:", f"    test: {folder / 'docs.jsonl'}", *lines, *more, "metric_list:", listed]
        (folder / f"{name}.yaml").write_text("\n".join(text) + "\n")
    return folder


def scores(task: str, model: str, arguments: str, *more: str) -> tuple[dict[str, Any], list[Any]]:
    """A task's figures, and what the model said of each document."""
    out = FOLDER / f"{task}-{model}"
    words = ["run", "--model", model, "--model_args", arguments, "--tasks", f"zoo_{task}", "--include_path", tasks()]
    command("lm_eval", *words, "--output_path", out, "--log_samples", "--batch_size", "8", *more, seconds=400, **ONE_THREAD)
    (results,), (samples,) = out.rglob("results_*.json"), out.rglob("samples_*.jsonl")
    found = json.loads(results.read_text())["results"][f"zoo_{task}"]
    lines = sorted((json.loads(line) for line in samples.read_text().splitlines()), key=lambda line: line["doc_id"])
    figures = {name: value for name, value in found.items() if isinstance(value, float) and "stderr" not in name}
    return figures, [line["filtered_resps"] for line in lines]


def served(task: str) -> tuple[dict[str, Any], list[Any]]:
    where = f"model={LLM},base_url={BASE}/completions,tokenizer={CHECKPOINT},num_concurrent=4,max_length=512"
    return scores(task, "local-completions", where)


def reference(task: str) -> tuple[dict[str, Any], list[Any]]:
    return scores(task, "hf", f"pretrained={CHECKPOINT},dtype=float32,max_length=512", "--device", "cpu")


def same(task: str) -> None:
    """The same figures, and the same log probability of each answer."""
    (ours, said), (theirs, said_there) = served(task), reference(task)
    expect(ours.keys() == theirs.keys() and ours, f"figures are {sorted(ours)} and {sorted(theirs)}")
    for name, value in ours.items():
        expect(abs(value - theirs[name]) <= 1e-3 * max(1, abs(theirs[name])), f"{name} is {value}, hf's is {theirs[name]}")
    pairs = list(zip(_numbers(said), _numbers(said_there), strict=True))
    worst = max(abs(a - b) for a, b in pairs)
    expect(worst <= NEAR, f"log probabilities differ by up to {worst:.4f}")


def _numbers(said: Any) -> list[float]:
    if isinstance(said, list | tuple):
        return [number for item in said for number in _numbers(item)]
    if isinstance(said, bool) or said in ("True", "False"):
        return [float(said in (True, "True"))]
    return [float(said)]


@client.capability("multiple choice as with hf")
def choice() -> None:
    same("choice")


@client.capability("loglikelihood as with hf")
def likelihood() -> None:
    same("likelihood")


@client.capability("rolling loglikelihood as with hf")
def rolling() -> None:
    same("rolling")


@client.capability("generate_until as with hf")
def written() -> None:
    (_, said), (_, said_there) = served("written"), reference("written")
    equal = sum(a == b for a, b in zip(said, said_there, strict=True))
    expect(equal >= 0.95 * len(said), f"{equal} of {len(said)} answers are hf's")


@client.capability("local-chat-completions")
def chats() -> None:
    where = f"model={TOOLS},base_url={GATEWAY}/v1/chat/completions,num_concurrent=2"
    _, said = scores("written", "local-chat-completions", where, "--apply_chat_template")
    expect(all(answer[0] for answer in said), "an answer is empty")


client.main()
