"""llama-benchy: speed of prompts and answers, with its own bounds of an answer's length."""

from __future__ import annotations

import contextlib
import functools
import http.server
import json
import threading
from collections.abc import Iterator

from told import BASE, CHECKPOINT, FOLDER, KEY, LLM, Client, command, expect

client = Client("llama-benchy", "llama-benchy")


@contextlib.contextmanager
def book() -> Iterator[str]:
    """A text of this machine: its own is fetched from elsewhere."""
    lines = (f"features section for a museum, {i} cards, called Golden Lane" for i in range(3000))
    (FOLDER / "book.txt").write_text("\n".join(lines))
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(FOLDER))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}/book.txt"
    server.shutdown()


def bench(*more: str) -> None:
    out = FOLDER / "result.json"
    with book() as url:
        words = ["--base-url", BASE, "--api-key", KEY, "--model", LLM, "--tokenizer", CHECKPOINT, "--book-url", url]
        words += ["--pp", 64, "--tg", 16, "--runs", 2, "--concurrency", 1, 2, "--skip-coherence", "--exit-on-first-fail"]
        command("llama-benchy", *words, "--save-result", out, "--format", "json", *more)
    found = json.loads(out.read_text())["benchmarks"]
    expect(len(found) == 2 and all(row["tg_throughput"]["mean"] > 0 for row in found), "a speed is missing")


@client.capability("speed at two concurrencies")
def speed() -> None:
    bench()


@client.capability("answers of an exact length")
def exact() -> None:
    bench("--exact-tg")


@client.capability("without its caches")
def uncached() -> None:
    bench("--no-cache")


client.main()
