"""OpenAI's Python package: files and batches."""

from __future__ import annotations

import json
import time
from typing import Any

import openai

from told import LLM, Client, expect

client = Client("openai-python", "openai")
api = openai.OpenAI()


def line(name: str, url: str, **body: Any) -> bytes:
    return json.dumps({"custom_id": name, "method": "POST", "url": url, "body": {"model": LLM, **body}}).encode()


def done(batch: Any) -> Any:
    """The batch at its end."""
    deadline = time.monotonic() + 60
    while batch.status not in ("completed", "failed", "expired", "cancelled") and time.monotonic() < deadline:
        time.sleep(0.2)
        batch = api.batches.retrieve(batch.id)
    return batch


@client.capability("files and batches")
def batches() -> None:
    sent = api.files.create(file=("requests.jsonl", line("a", "/v1/completions", prompt="<a", max_tokens=4)), purpose="batch")
    expect(api.files.wait_for_processing(sent.id).status == "processed", "the file is not processed")
    batch = done(api.batches.create(input_file_id=sent.id, endpoint="/v1/completions", completion_window="24h"))
    expect(batch.status == "completed" and batch.output_file_id, f"the batch is {batch.status}")
    answer = json.loads(api.files.content(batch.output_file_id).text)
    expect(answer["response"]["status_code"] == 200, "the answer is not there")
    expect(batch.model == LLM and batch.usage and batch.usage.output_tokens == 4, f"it tells {batch.model}, {batch.usage}")


@client.capability("batch of embeddings")
def embedding_batch() -> None:
    """In the order of the input, with its counts; files are listed and deleted."""
    lines = [line(str(place), "/v1/embeddings", input=f"text {place}") for place in range(3)]
    sent = api.files.create(file=("requests.jsonl", b"\n".join(lines)), purpose="batch")
    expect(sent.id in {file.id for file in api.files.list(purpose="batch")}, "the file is not listed")
    batch = api.batches.create(
        input_file_id=sent.id, endpoint="/v1/embeddings", completion_window="24h", metadata={"for": "clients"}
    )
    batch = done(batch)
    expect(batch.status == "completed" and batch.request_counts.completed == 3, f"the batch is {batch.status}")
    expect(batch.metadata == {"for": "clients"}, f"its metadata are {batch.metadata}")
    expect(batch.id in {item.id for item in api.batches.list(limit=5)}, "the batch is not listed")
    answers = [json.loads(text) for text in api.files.content(batch.output_file_id).text.splitlines()]
    expect([answer["custom_id"] for answer in answers] == ["0", "1", "2"], "the answers are in another order")
    numbers = answers[0]["response"]["body"]["data"][0]["embedding"]
    made = api.embeddings.create(model=LLM, input="text 0", encoding_format="float")
    expect(numbers == made.data[0].embedding, "a batch gives another embedding")
    expect(api.files.delete(sent.id).deleted, "the file is not deleted")


@client.capability("batch that fails or is cancelled")
def broken_batch() -> None:
    """Answers that are errors have a file of their own; a file whose lines are wrong fails with their numbers."""
    lines = [line("good", "/v1/completions", prompt="<a", max_tokens=4), line("bad", "/v1/completions", prompt="<a", top_p=7)]
    sent = api.files.create(file=("requests.jsonl", b"\n".join(lines)), purpose="batch")
    batch = done(api.batches.create(input_file_id=sent.id, endpoint="/v1/completions", completion_window="24h"))
    expect(batch.status == "completed" and batch.request_counts.failed == 1, f"the batch is {batch.status}")
    wrong = json.loads(api.files.content(batch.error_file_id).text)
    expect(wrong["custom_id"] == "bad" and wrong["response"]["status_code"] == 400, f"the error file has {wrong}")
    sent = api.files.create(file=("requests.jsonl", lines[0] + b"\n{}"), purpose="batch")
    batch = done(api.batches.create(input_file_id=sent.id, endpoint="/v1/completions", completion_window="24h"))
    expect(batch.status == "failed" and [item.line for item in batch.errors.data] == [2], f"the batch is {batch}")
    many = b"\n".join(line(str(place), "/v1/completions", prompt="<a", max_tokens=400) for place in range(200))
    sent = api.files.create(file=("requests.jsonl", many), purpose="batch")
    batch = api.batches.create(input_file_id=sent.id, endpoint="/v1/completions", completion_window="24h")
    batch = done(api.batches.cancel(batch.id))
    expect(batch.status == "cancelled", f"the batch is {batch.status}")
