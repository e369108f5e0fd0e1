"""AIPerf: load over chats, completions, responses, embeddings and pictures, drawn and changed."""

from __future__ import annotations

import json
from typing import Any

from told import CHECKPOINT, FOLDER, GATEWAY, IMAGES, KEY, LLM, Client, command, expect

client = Client("AIPerf", "aiperf")


WHOLE = ("--extra-inputs", "ignore_eos:true")
"""An answer that ends at once is an error to it."""


def load(kind: str, model: str, *more: Any) -> None:
    out = FOLDER / kind
    words = ["profile", "--model", model, "--url", GATEWAY, "--api-key", KEY, "--endpoint-type", kind, "--ui", "none"]
    words += ["--request-count", 6, "--concurrency", 2, "--tokenizer", CHECKPOINT, "--output-artifact-dir", out]
    command("aiperf", *words, *more, HF_HUB_OFFLINE="")  # offline it looks for a local folder in its cache alone
    (file,) = out.rglob("profile_export_aiperf.json")
    found = json.loads(file.read_text())
    answered = found["request_count"]["avg"]
    expect(answered == 6, f"{answered} of 6 requests were answered: {found.get('error_summary')}")


@client.capability("chats")
def chats() -> None:
    load("chat", LLM, "--streaming", "--isl", 32, "--osl", 8, *WHOLE)


@client.capability("completions")
def completions() -> None:
    load("completions", LLM, "--streaming", "--isl", 32, "--osl", 8, *WHOLE)


@client.capability("responses")
def responses() -> None:
    load("responses", LLM, "--streaming", "--isl", 32, "--osl", 8, *WHOLE)


@client.capability("images")
def images() -> None:
    load("image_generation", IMAGES, "--isl", 8, "--extra-inputs", "size:128x128")


@client.capability("images edited")
def edits() -> None:
    """Of pictures that it makes itself."""
    load("image_edit", IMAGES, "--isl", 8, "--image-width-mean", 128, "--image-height-mean", 128, "--image-format", "png")


@client.capability("embeddings")
def embeddings() -> None:
    load("embeddings", LLM, "--isl", 32)


client.main()
