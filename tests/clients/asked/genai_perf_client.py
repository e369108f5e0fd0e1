"""genai-perf: load on Triton's own protocol as it asks vLLM's backend, and on chats."""

from __future__ import annotations

import json

from told import CHECKPOINT, FOLDER, GATEWAY, KEY, LLM, TRITON_GRPC, Client, command, expect

client = Client("genai-perf", "genai-perf")


def load(*more: str) -> None:
    out = FOLDER / more[1]
    words = ["profile", "--model", LLM, "--tokenizer", CHECKPOINT, "--streaming", "--concurrency", 2, "--request-count", 8]
    words += ["--isl", 32, "--osl", 8, "--artifact-dir", out, *more]
    command("genai-perf", *words)
    (file,) = out.rglob("*_genai_perf.json")
    found = json.loads(file.read_text())
    expect(found["request_throughput"]["avg"] > 0, "there is no throughput")


@client.capability("kserve with vllm")
def kserve() -> None:
    load("--endpoint-type", "kserve", "--backend", "vllm", "--url", TRITON_GRPC)


@client.capability("chats")
def chats() -> None:
    load("--endpoint-type", "chat", "--url", GATEWAY, "--header", f"Authorization: Bearer {KEY}")


client.main()
