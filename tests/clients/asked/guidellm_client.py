"""guidellm: synthetic load over chats and completions."""

from __future__ import annotations

import json

from told import CHECKPOINT, FOLDER, GATEWAY, KEY, LLM, Client, command, expect

client = Client("guidellm", "guidellm")


def load(path: str, profile: str) -> None:
    out = FOLDER / f"{path.strip('/').replace('/', '-')}.json"
    words = ["run", "--disable-console-interactive"]
    words += ["--backend", f"kind=openai_http,target={GATEWAY},model={LLM},request_format={path},api_key={KEY}"]
    words += ["--profile", profile, "--constraint", "kind=max_requests,count=6"]
    words += ["--tokenizer", f"kind=huggingface_auto,model={CHECKPOINT}"]
    words += ["--data", "kind=synthetic_text,prompt_tokens=32,output_tokens=8", "--output", f"kind=json,path={out}"]
    command("guidellm", *words)
    (found,) = json.loads(out.read_text())["benchmarks"]
    totals = found["metrics"]["request_totals"]
    expect(totals["successful"] == 6 and not totals["errored"], f"requests are {totals}")


@client.capability("chats")
def chats() -> None:
    load("/v1/chat/completions", "kind=synchronous")


@client.capability("completions")
def completions() -> None:
    load("/v1/completions", "kind=concurrent,streams=2")


client.main()
