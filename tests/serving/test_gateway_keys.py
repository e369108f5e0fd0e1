"""API keys by name, their limits, and pages of other origins."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from nereid.serving.errors import ServingError
from nereid.serving.gateway.keys import Caller, Keys, RateLimitError
from nereid.serving.gateway.launch import Launch, Rules
from nereid.serving.gateway.service import GatewayOptions
from nereid.serving.options import ServeOptions

from gateway_before import gateway, small_repository

FILE = '[alice]\nkey = "key-of-alice"\n[bob]\nkey = "key-of-bob"\nrequests_per_minute = 2\n'
MODELS, CHAT = "/v1/models", "/v1/chat/completions"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "keys.toml").write_text(FILE)
    return tmp_path / "keys.toml"


@pytest.fixture
def api(tmp_path: Path, file: Path) -> Iterator[httpx.Client]:
    rules = Rules(keys=str(file), cors_origins=("https://app.example",))
    repository = small_repository(tmp_path / "repository")
    with gateway(repository, 9, api_key="own", rules=rules) as running, httpx.Client(base_url=running.url) as client:
        yield client


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def test_every_key_of_the_file_and_the_environments_are_taken_and_no_other(api: httpx.Client) -> None:
    taken = [api.get(MODELS, headers=bearer(key)).status_code for key in ("own", "key-of-alice", "key-of-bob", "mallory")]
    assert taken == [200, 200, 200, 401]
    assert api.get(MODELS, headers={"Authorization": "Bearer"}).status_code == 401
    assert api.get(MODELS).json()["error"]["code"] == "invalid_api_key"
    assert api.get(MODELS, headers={"Authorization": "bearer own"}).status_code == 200


def test_a_key_that_has_had_its_requests_is_told_when_to_ask_again(api: httpx.Client, caplog: pytest.LogCaptureFixture) -> None:
    def ask(key: str) -> httpx.Response:
        return api.post(CHAT, json={}, headers=bearer(key))

    assert [ask("key-of-bob").headers["x-ratelimit-remaining-requests"] for _ in range(2)] == ["1", "0"]
    with caplog.at_level(logging.INFO, "nereid"):
        refused = ask("key-of-bob")
    error = refused.json()["error"]
    assert (refused.status_code, error["code"], error["type"]) == (429, "rate_limit_exceeded", "rate_limit_error")
    assert 1 <= int(refused.headers["retry-after"]) <= 30
    assert "key bob" in error["message"]
    assert any("key bob" in record.getMessage() for record in caplog.records)
    assert ask("key-of-alice").status_code == 400  # others are not held up; this is the body
    assert api.get(MODELS, headers=bearer("key-of-bob")).status_code == 200
    page = api.get("/metrics").text
    assert 'nereid_gateway_requests_by_key_total{key="bob",status="429"} 1.0' in page
    assert 'nereid_gateway_requests_by_key_total{key="alice",status="400"} 1.0' in page
    assert "key-of" not in page


def test_requests_a_minute_are_filled_steadily() -> None:
    now = [0.0]
    caller = Caller("bob", requests_per_minute=60, clock=lambda: now[0])

    def ask() -> int:
        try:
            with caller.asking():
                return 0
        except RateLimitError as error:
            return error.seconds

    assert [ask() for _ in range(61)] == [0] * 60 + [1]
    now[0] = 2.5
    assert [ask() for _ in range(3)] == [0, 0, 1]
    now[0] = 1000
    assert sum(ask() == 0 for _ in range(100)) == 60


def test_requests_at_once_are_bounded_and_given_back() -> None:
    caller = Caller("bob", requests_at_once=1)
    with caller.asking(), pytest.raises(RateLimitError, match="under way"):
        caller.asking().__enter__()
    with caller.asking():
        pass


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no keys"),
        ("[a", "cannot be read"),
        ("[a]\nkey = 3", "it must be a table with key"),
        ('a = "x"', "it must be a table with key"),
        ('[a]\nkey = " x"', "its key is not allowed; it must be of ASCII characters that are seen"),
        ('[a]\nkey = ""', "its key is not allowed"),
        ('[a]\nkey = "schlüssel"', "its key is not allowed"),
        ('["a b"]\nkey = "x"', "not allowed as a name"),
        ('[default]\nkey = "x"', "not allowed as a name"),
        ('[a]\nkey = "x"\nlimit = 3', "limit is not known"),
        ('[a]\nkey = "x"\nrequests_per_minute = true', "requests_per_minute True is not allowed"),
        ('[a]\nkey = "x"\nrequests_at_once = 0', "at least 1"),
        ('[a]\nkey = "x"\n[b]\nkey = "x"', "b has the key that a has already"),
    ],
)
def test_a_file_of_keys_that_is_none_keeps_serve_from_starting(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "keys.toml").write_text(text)
    options = GatewayOptions(port=8080, rules=Rules(keys=str(tmp_path / "keys.toml")))
    with pytest.raises(ServingError, match=words):
        options.check(ServeOptions(repository=tmp_path))


def test_a_key_of_the_environment_that_no_header_could_bring_is_refused() -> None:
    with pytest.raises(ServingError, match=r"^NEREID_API_KEY: its value is not allowed; it must be of ASCII characters") as told:
        Keys.of("secret\n", None)
    assert "secret" not in str(told.value)


def test_keys_of_a_file_let_the_gateway_listen_elsewhere(tmp_path: Path, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NEREID_API_KEY", raising=False)
    served = ServeOptions(repository=tmp_path)
    GatewayOptions(port=8080, host="0.0.0.0", rules=Rules(keys=str(file))).check(served)
    with pytest.raises(ServingError, match=r"--openai-cors: 'app\.example' is not allowed"):
        GatewayOptions(port=8080, rules=Rules(cors_origins=("app.example",))).check(served)


def test_keys_are_not_kept_as_they_are(file: Path) -> None:
    assert "key-of" not in repr(Keys.of("key-of-me", file).callers)


def test_a_page_of_an_allowed_origin_may_ask_and_no_other(api: httpx.Client, tmp_path: Path) -> None:
    asks = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization,content-type"}
    allowed = api.options(CHAT, headers={"Origin": "https://app.example", **asks})
    assert allowed.status_code == 200  # without a key: browsers send none with this question
    assert allowed.headers["access-control-allow-origin"] == "https://app.example"
    assert "authorization" in allowed.headers["access-control-allow-headers"].lower()
    other = api.options(CHAT, headers={"Origin": "https://elsewhere.example", **asks})
    assert "access-control-allow-origin" not in other.headers
    refused = api.get(MODELS, headers={"Origin": "https://app.example"})
    assert (refused.status_code, refused.headers["access-control-allow-origin"]) == (401, "https://app.example")
    assert "x-request-id" in refused.headers["access-control-expose-headers"]
    with gateway(small_repository(tmp_path / "other"), 9) as running:
        plain = httpx.get(f"{running.url}{MODELS}", headers={"Origin": "https://app.example"})
    assert "access-control-allow-origin" not in plain.headers


@pytest.mark.parametrize(("origins", "status"), [(("https://app.example",), 200), (("*",), 400)])
def test_a_page_that_is_named_may_ask_a_gateway_of_its_readers_own_network(
    tmp_path: Path, origins: tuple[str, ...], status: int
) -> None:
    # https://github.com/ollama/ollama/issues/7000, https://github.com/lmstudio-ai/lmstudio-bug-tracker/issues/392
    asks = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Private-Network": "true"}
    with gateway(small_repository(tmp_path), 9, rules=Rules(cors_origins=origins)) as running:
        answer = httpx.options(f"{running.url}{CHAT}", headers={"Origin": "https://app.example", **asks})
    assert answer.status_code == status
    assert answer.headers.get("access-control-allow-private-network") == ("true" if status == 200 else None)


def test_rules_reach_the_gateways_process() -> None:
    launch = Launch(
        repository="r",
        grpc_url="g",
        metrics_url="m",
        ready_url="y",
        drain_seconds=1,
        listener=3,
        heart=4,
        rules=Rules(keys="/k", cors_origins=("*",), lenient=True),
    )
    assert Launch.from_argument(launch.to_argument()) == launch
