"""The served language model through the SDK: exactness, streams, limits, faults."""

from __future__ import annotations

import asyncio
import json
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from tokenizers import Tokenizer

from nereid_client import AsyncClient, Client, InvalidRequestError
from nereid_zoo.sections.chat import conversation
from nereid_zoo.sections.score import CHECKPOINT, held_out_briefs

from bad_texts import bad_parameters
from conftest import Served
from raw import metric, settled
from waiting import until

pytestmark = pytest.mark.triton

PROMPTS = [conversation(brief.text) for brief in held_out_briefs(12, seed=3)]
WHOLE = {"temperature": 0, "max_tokens": 120}


def prompt_ids(text: str) -> list[int]:
    return list(Tokenizer.from_file(str(CHECKPOINT / "tokenizer.json")).encode(text).ids)


@pytest.fixture
def exact(served: Served) -> Iterator[Client]:
    """The float32 engine."""
    with Client(served.grpc_url, name="exact", timeout=60) as client:
        yield client


@pytest.fixture
def int4(served: Served) -> Iterator[Client]:
    with Client(served.grpc_url, timeout=60) as client:
        yield client


@pytest.mark.torch
def test_embeddings_are_the_mean_of_transformers_last_hidden_states(exact: Client, int4: Client) -> None:
    torch = pytest.importorskip("torch")
    from transformers import AutoModel

    model = AutoModel.from_pretrained(CHECKPOINT, dtype=torch.float32).eval()
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda prompt: exact.embed_text(prompt), PROMPTS[:4]))
    for prompt, found in zip(PROMPTS[:4], together, strict=True):
        ids = prompt_ids(prompt)
        with torch.no_grad():
            wanted = model(torch.tensor([ids])).last_hidden_state[0].double().mean(0).numpy()
        assert found.num_input_tokens == len(ids)
        assert abs(found.embedding - wanted).max() < 1e-4 * abs(wanted).max()
        assert exact.embed_text(ids).embedding.tobytes() == found.embedding.tobytes()
    with pytest.raises(InvalidRequestError, match="exported without --embeddings"):
        int4.embed_text("a")


@pytest.mark.torch
def test_greedy_tokens_are_transformers_own(exact: Client) -> None:
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(CHECKPOINT)
    model = AutoModelForCausalLM.from_pretrained(CHECKPOINT, dtype=torch.float32).eval()
    for prompt in PROMPTS[:4]:
        inputs = tokenizer(prompt, return_tensors="pt")
        made = model.generate(
            input_ids=inputs.input_ids, attention_mask=inputs.attention_mask, do_sample=False, max_new_tokens=120
        )
        expected = made[0, inputs.input_ids.shape[1] :].tolist()
        result = exact.generate_text(prompt, **WHOLE)
        assert list(result.choices[0].token_ids) == expected
        assert result.num_input_tokens == inputs.input_ids.shape[1]


@pytest.mark.parametrize("settings", [WHOLE, {"temperature": 0.8, "top_k": 40, "seed": 4, "max_tokens": 120}])
def test_speculation_changes_nothing_but_the_number_of_calls(exact: Client, served: Served, settings: dict[str, float]) -> None:
    def accepted() -> float:
        return metric(served.metrics, "nereid_llm_accepted_draft_tokens_total", model="exact_llm")

    plain = [exact.generate_text(prompt, **settings).choices[0].token_ids for prompt in PROMPTS[:6]]
    for mode in ("ngram", "draft"):
        before = settled(accepted)
        made = [exact.generate_text(prompt, speculation=mode, **settings).choices[0].token_ids for prompt in PROMPTS[:6]]
        assert made == plain
        until(lambda before=before: accepted() > before)  # type: ignore[misc]


def test_the_next_turn_finds_the_answer_of_the_last_in_the_prefix_cache(int4: Client) -> None:
    for prompt, seconds in zip(PROMPTS[5:], (1, 4, 16), strict=False):  # each time another, for the next turn is cached as well
        first = int4.generate_text(prompt, temperature=0, max_tokens=100, ignore_eos=True)
        ids = [*prompt_ids(prompt), *first.choices[0].token_ids, *prompt_ids("and then")]
        time.sleep(seconds)  # the answer is read again while the server has nothing else to do
        warm = int4.generate_text(ids, temperature=0, max_tokens=30)
        if warm.num_cached_tokens >= len(ids) - 40:
            break
    assert warm.num_cached_tokens >= len(ids) - 40
    assert warm.num_cached_tokens > first.num_input_tokens


@pytest.mark.parametrize("settings", [WHOLE, {"temperature": 1.0, "top_p": 0.9, "seed": 11, "max_tokens": 120}])
def test_tokens_alone_and_in_a_batch_are_the_same(int4: Client, settings: dict[str, float]) -> None:
    alone = [int4.generate_text(prompt, **settings).choices[0].token_ids for prompt in PROMPTS]
    with ThreadPoolExecutor(12) as pool:
        together = list(pool.map(lambda prompt: int4.generate_text(prompt, **settings).choices[0].token_ids, PROMPTS))
    assert together == alone


def test_a_prefix_hit_gives_the_same_tokens(served: Served, int4: Client) -> None:
    prompt = conversation("Make a features section for a museum called Quiet Harbor, 4 cards")
    before = settled(lambda: metric(served.metrics, "nereid_llm_prefix_cache_hit_tokens_total", model="llm"))
    first, second = (int4.generate_text(prompt, **WHOLE) for _ in range(2))
    assert second.num_cached_tokens >= 16
    assert second.choices[0].token_ids == first.choices[0].token_ids
    until(lambda: metric(served.metrics, "nereid_llm_prefix_cache_hit_tokens_total", model="llm") > before)


def test_speculating_does_not_change_the_answer(exact: Client) -> None:
    for prompt in PROMPTS[:4]:
        plain, speculated = (exact.generate_text(prompt, speculation=mode, **WHOLE) for mode in ("none", "ngram"))
        assert speculated.choices[0].token_ids == plain.choices[0].token_ids


def test_a_stream_adds_up_over_grpc_and_http(served: Served, int4: Client) -> None:
    whole = int4.generate_text(PROMPTS[0], **WHOLE)
    with Client(served.http_url, protocol="http", timeout=60) as http:
        for client in (int4, http):
            deltas = list(client.stream_text(PROMPTS[0], **WHOLE))
            assert "".join(delta.text for delta in deltas) == whole.text
            assert [delta.finish_reason for delta in deltas[:-1]] == [None] * (len(deltas) - 1)
            assert deltas[-1].finish_reason == whole.choices[0].finish_reason
        assert http.generate_text(PROMPTS[0], **WHOLE).text == whole.text


def test_the_async_client_streams_several_at_once(served: Served, int4: Client) -> None:
    async def ask(client: AsyncClient, prompt: str) -> str:
        return "".join([delta.text async for delta in client.stream_text(prompt, **WHOLE)])

    async def all_of_them() -> list[str]:
        async with AsyncClient(served.grpc_url, timeout=60) as client:
            return list(await asyncio.gather(*(ask(client, prompt) for prompt in PROMPTS[:5])))

    assert asyncio.run(all_of_them()) == [int4.generate_text(prompt, **WHOLE).text for prompt in PROMPTS[:5]]


def test_generate_endpoint_speaks_like_the_vllm_backend(served: Served) -> None:
    body = {
        "text_input": PROMPTS[1],
        "sampling_parameters": json.dumps({"temperature": 0, "max_tokens": 8}),
        "exclude_input_in_output": True,
        "return_num_output_tokens": True,
        "return_finish_reason": True,
    }
    request = urllib.request.Request(f"http://{served.http_url}/v2/models/llm/generate", json.dumps(body).encode())
    with urllib.request.urlopen(request, timeout=30) as answer:
        made = json.load(answer)
    assert made["text_output"].startswith("<")
    assert (made["num_output_tokens"], made["finish_reason"]) == (8, "length")
    assert "cumulative_logprob" not in made


def test_answers_keep_to_a_schema_and_to_a_choice(int4: Client) -> None:
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"], "additionalProperties": False}
    made = int4.generate_text("n", structured_outputs={"json": schema}, max_tokens=200, temperature=1, seed=2)
    if made.choices[0].finish_reason == "stop":
        assert isinstance(json.loads(made.text)["n"], int)
    assert int4.generate_text("x", structured_outputs={"choice": ["red", "blue"]}, max_tokens=20).text in ("red", "blue")
    with pytest.raises(InvalidRequestError, match=r"structured_outputs\.regex"):
        int4.generate_text("x", structured_outputs={"regex": "[a"})


def test_leaving_a_stream_frees_its_row(served: Served, int4: Client) -> None:
    def cancelled() -> float:
        return metric(served.metrics, "nereid_llm_requests_total", model="llm", outcome="cancelled")

    before = cancelled()
    stream = int4.stream_text(PROMPTS[0], ignore_eos=True, temperature=0, max_tokens=1500)
    next(iter(stream))
    stream.close()  # type: ignore[attr-defined]
    until(lambda: cancelled() > before)
    until(lambda: metric(served.metrics, "nereid_llm_requests_running", model="llm") == 0)


def test_bad_requests_are_sentences_and_the_server_keeps_serving(int4: Client) -> None:
    cases = bad_parameters(2048)
    assert len(cases) >= 40
    for settings, words in cases:
        with pytest.raises(InvalidRequestError) as caught:
            int4.generate_text("a", **settings)
        assert all(word in str(caught.value) for word in words), str(caught.value)
        assert "\n" not in str(caught.value)
    with pytest.raises(InvalidRequestError, match="input_ids"):
        int4.generate_text([5, 99_999])
    assert int4.generate_text("a", max_tokens=2).num_output_tokens >= 1


def test_token_ids_may_go_in(int4: Client) -> None:
    ids = int4.generate_text("<section", max_tokens=1, temperature=0)
    assert ids.num_input_tokens >= 1
    assert int4.generate_text([5, 6, 7], max_tokens=3, temperature=0).num_input_tokens == 3
