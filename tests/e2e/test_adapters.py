"""A language model with adapters before a real Triton: chosen by name, apart in the prefix cache; and models that come and go."""

from __future__ import annotations

import json
import shutil
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import openai
import pytest

pytest.importorskip("peft")
from peft_adapters import make_adapter, named

from nereid.serving.gateway.launch import Rules
from nereid.serving.options import ServeOptions
from nereid.serving.supervisor import Supervisor
from nereid_client import Client
from nereid_client.errors import InvalidRequestError

from conftest import ZOO, Served, export_llm, gateway
from raw import metric
from waiting import until

pytestmark = [pytest.mark.triton, pytest.mark.torch]

SECTIONS = ZOO / "sections" / "checkpoint"
PROMPT = "Write a pricing section for a bakery called Golden Lane with three tiers and an order button. " * 4


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("adapters")
    sql = make_adapter(SECTIONS, folder / "sql", seed=1, size=0.1, target_modules="all-linear")
    poems = make_adapter(SECTIONS, folder / "poems", seed=2, size=0.1, r=2, target_modules=["k_proj", "v_proj"])
    export_llm(SECTIONS, folder / "repository", adapters=named(sql=sql, poems=poems))
    options = replace(ServeOptions.on_free_ports(folder / "repository", folder / "triton.log"), follow=True)
    with Supervisor(options) as supervisor:
        ports = (options.http_port, options.grpc_port, options.metrics_port, options.health_port)
        yield Served(options.repository, *ports, supervisor, {})


@pytest.fixture(scope="module")
def api(served: Served) -> Iterator[openai.OpenAI]:
    with gateway(served, rules=Rules(aliases={"gpt-4o": "sql"})) as url:
        yield openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=60)


def complete(api: openai.OpenAI, model: str, prompt: str = PROMPT, **more: Any) -> Any:
    return api.completions.create(model=model, prompt=prompt, **{"max_tokens": 40, "temperature": 0, **more})


def test_each_name_answers_by_its_own_weights(served: Served, api: openai.OpenAI) -> None:
    """Through the gateway, the SDK and Triton's own endpoint the same."""
    assert [model.id for model in api.models.list()] == ["llm", "gpt-4o", "sql", "poems"]
    texts = {name: complete(api, name).choices[0].text for name in ("llm", "sql", "poems", "gpt-4o")}
    assert texts["gpt-4o"] == texts["sql"]
    assert len({*texts.values()}) == 3
    assert complete(api, "llm", extra_body={"lora_name": "poems"}).choices[0].text == texts["poems"]
    with Client(served.grpc_url, timeout=60) as client:
        assert client.generate_text(PROMPT, max_tokens=40, temperature=0, lora_name="sql").text == texts["sql"]
        with pytest.raises(InvalidRequestError, match=r"lora_name: 'prose' .* one of this model's adapters: sql, poems"):
            client.generate_text(PROMPT, lora_name="prose")
    body = json.dumps({"text_input": PROMPT, "lora_name": "poems", "temperature": 0, "max_tokens": 40})
    request = urllib.request.Request(f"http://{served.http_url}/v2/models/llm/generate", body.encode())
    with urllib.request.urlopen(request, timeout=60) as answer:
        assert json.load(answer)["text_output"] == PROMPT + texts["poems"]


def test_in_one_batch_each_answers_as_alone(api: openai.OpenAI) -> None:
    names = ["llm", "sql", "poems", "sql", "llm", "poems", "sql", "gpt-4o"]

    def ask(number: int) -> str:
        made = complete(api, names[number], PROMPT[: 100 + number], seed=number, temperature=1, max_tokens=80)
        return str(made.choices[0].text)

    alone = [ask(number) for number in range(len(names))]
    with ThreadPoolExecutor(len(names)) as pool:
        assert list(pool.map(ask, range(len(names)))) == alone


def test_a_prompt_is_found_in_the_cache_by_its_own_adapter_alone(api: openai.OpenAI) -> None:
    prompt = "A prompt that nobody has sent before, long enough for a few blocks of the prefix cache. " * 3
    cached = [complete(api, name, prompt).usage.prompt_tokens_details.cached_tokens for name in ("sql", "poems", "llm", "sql")]
    assert cached[:3] == [0, 0, 0]
    assert cached[3] > 16


def test_streams_scores_and_several_answers_are_the_adapters(api: openai.OpenAI) -> None:
    whole = complete(api, "sql", n=2, seed=3, temperature=1, logprobs=1, echo=True)
    chunks = list(complete(api, "sql", n=2, seed=3, temperature=1, stream=True))
    for choice in whole.choices:
        text = "".join(c.text for chunk in chunks for c in chunk.choices if c.index == choice.index)
        assert PROMPT + text == choice.text
    assert {chunk.model for chunk in chunks} == {whole.model} == {"sql"}
    base = complete(api, "llm", logprobs=1, echo=True)
    scores = [answer.choices[0].logprobs.token_logprobs[1:40] for answer in (whole, base)]
    assert scores[0] != scores[1]


def test_numbers_tell_the_adapters(served: Served, api: openai.OpenAI) -> None:
    complete(api, "poems")
    until(
        lambda: metric(served.metrics, "nereid_llm_adapter_requests_total", adapter="poems", model="llm", outcome="success") > 0
    )


def test_models_come_and_go_while_others_are_served(served: Served, api: openai.OpenAI, tmp_path: Path) -> None:
    with pytest.raises(openai.NotFoundError):
        complete(api, "second_llm")
    more = make_adapter(SECTIONS, tmp_path / "verse", seed=5, target_modules=["q_proj"])
    export_llm(SECTIONS, served.repository, name="second", adapters=named(verse=more))
    until(lambda: {"second_llm", "verse"} <= {model.id for model in api.models.list()})
    assert complete(api, "verse").model == "verse"
    assert complete(api, "sql").choices[0].text
    shutil.rmtree(served.repository / "second_llm")
    until(lambda: [model.id for model in api.models.list()] == ["llm", "gpt-4o", "sql", "poems"])
    for name in ("second_llm", "verse"):
        with pytest.raises(openai.NotFoundError) as caught:
            complete(api, name)
        assert caught.value.code == "model_not_found"
    assert complete(api, "sql").choices[0].text
    supervisor: Any = served.supervisor
    until(lambda: "second_llm" not in supervisor._triton.stubs().values() and supervisor.readiness()[0])
