"""A small Triton that serves only `llm`: its worker is killed, and no answer changes."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as grpc

from nereid_client import Client
from nereid_zoo.sections.chat import conversation
from nereid_zoo.sections.score import CHECKPOINT, held_out_briefs

from conftest import Served, export_llm, serving, set_parameters
from raw import metric
from waiting import until

pytestmark = pytest.mark.triton

PROMPTS = [conversation(brief.text) for brief in held_out_briefs(4, seed=3)]
SETTINGS = {"temperature": 0.8, "seed": 5, "max_tokens": 800, "ignore_eos": True, "logprobs": 1}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("small")
    export_llm(CHECKPOINT, folder / "repository")
    set_parameters(folder / "repository", "llm", kv_tokens=16384, stream_interval_seconds=0)
    yield from serving(folder / "repository", folder, {})


def workers(model: str) -> list[int]:
    """Worker processes of this test's server: they say in their command line what they serve."""
    found = []
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            words = (folder / "cmdline").read_bytes().decode().split("\0")
            parent = int((folder / "stat").read_bytes().rpartition(b")")[2].split()[1])
            owner = Path(f"/proc/{parent}/cmdline").read_bytes().decode()
        except OSError:
            continue
        if "nereid.engines.worker_main" in words and words[words.index("--name") + 1] == model and "small" in owner:
            found.append(int(folder.name))
    return found


def told(client: Client, prompt: str, begun: Callable[[], object] = lambda: None) -> tuple[str, list[int]]:
    deltas = []
    for delta in client.stream_text(prompt, **SETTINGS):
        deltas.append(delta)
        if len(deltas) == 1:
            begun()
    return "".join(delta.text for delta in deltas), [token for delta in deltas for token in delta.token_ids]


def test_a_killed_worker_costs_no_stream_a_token(small: Served) -> None:
    with Client(small.grpc_url, timeout=120) as client:
        with ThreadPoolExecutor(4) as pool:
            undisturbed = list(pool.map(told, [client] * 4, PROMPTS))
        before = workers("llm")
        assert len(before) == 1
        begun = threading.Semaphore(0)
        with ThreadPoolExecutor(4) as pool:
            running = [pool.submit(told, client, prompt, begun.release) for prompt in PROMPTS]
            assert all(begun.acquire(timeout=60) for _ in running)
            assert not any(future.done() for future in running)
            os.kill(before[0], signal.SIGKILL)
            assert [future.result() for future in running] == undisturbed
        assert len(after := workers("llm")) == 1
        assert after != before
        until(lambda: metric(small.metrics, "nereid_llm_worker_deaths_total", model="llm") == 1)
        until(lambda: metric(small.metrics, "nereid_llm_replayed_requests_total", model="llm") == 4)


def test_a_run_is_asked_about_and_answers_say_what_made_them(small: Served) -> None:
    def ask(**inputs: str) -> dict[str, str]:
        """The request's answers as one map of name to its last text."""
        answers: list[object] = []
        tensors = []
        for name, value in inputs.items():
            tensor = grpc.InferInput(name, [1], "BYTES")
            tensor.set_data_from_numpy(np.array([value.encode()], np.object_))
            tensors.append(tensor)
        with grpc.InferenceServerClient(small.grpc_url) as raw:
            raw.start_stream(lambda result, error: answers.append(error or result))
            raw.async_stream_infer("llm", tensors, enable_empty_final_response=True)
            raw.stop_stream()
        found: dict[str, str] = {}
        for answer in answers:
            assert isinstance(answer, grpc.InferResult), answer
            for output in answer.get_response().outputs:
                found[output.name] = bytes(answer.as_numpy(output.name)[-1]).decode() if output.datatype == "BYTES" else ""
        return found

    assert ask(watch="nobody")["run_state"] == "unknown"
    made = ask(text_input="<section", run_id="run-1")
    assert made["system_fingerprint"].startswith("nereid-")
    assert ask(watch="run-1") == {"run_state": "done", "system_fingerprint": made["system_fingerprint"]}
    assert ask(cancel="run-1")["run_state"] == "done"
