"""Images through the gateway: quality, addresses, partial ones, and the options of the gateway for them."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest
from typer.testing import CliRunner

from nereid.serving.errors import ServingError
from nereid.serving.gateway.launch import Launch, Rules
from nereid.serving.gateway.service import GatewayOptions
from nereid.serving.options import ServeOptions
from nereid_client.main import app

from drawing_models import FACTS, STEPS, Drawers, drawing_repository
from gateway_before import gateway
from picture_calls import BODY, GENERATE, edit, events, pixels, refused, shown
from waiting import until

# --- quality ---


@pytest.mark.parametrize(
    ("quality", "steps", "told"),
    [
        (None, None, "auto"),
        ("auto", None, "auto"),
        ("standard", None, "medium"),
        ("low", STEPS // 2, "low"),
        ("hd", STEPS * 2, "high"),
    ],
)
def test_quality_is_how_many_of_the_usual_steps_are_taken(
    api: httpx.Client, drawers: Drawers, quality: str | None, steps: int | None, told: str
) -> None:
    made = api.post(GENERATE, json={**BODY, "quality": quality})
    assert drawers.asked[-1].get("num_inference_steps") == steps
    assert made.json()["quality"] == told


def test_quality_is_refused_where_the_steps_are_chosen_or_not_known(api: httpx.Client, repository: Path, triton: int) -> None:
    both = api.post(GENERATE, json={**BODY, "quality": "low", "num_inference_steps": 3})
    assert "low is not allowed with num_inference_steps" in refused(both, "quality")
    assert "'xhigh' is not allowed" in refused(api.post(GENERATE, json={**BODY, "quality": "xhigh"}), "quality")
    drawing_repository(repository.parent / "other", {})
    with gateway(repository.parent / "other", triton) as running:
        unknown = httpx.post(f"{running.url}{GENERATE}", json={**BODY, "quality": "high"})
    assert "this model does not say its steps" in refused(unknown, "quality")


# --- addresses ---


@pytest.mark.parametrize("form", ["png", "jpeg", "webp"])
def test_a_picture_can_be_fetched_by_its_address_without_a_key(repository: Path, triton: int, form: str) -> None:
    with gateway(repository, triton, api_key="secret") as running:
        keyed = {"Authorization": "Bearer secret"}
        body = {**BODY, "response_format": "url", "output_format": form, "n": 2}
        made = httpx.post(f"{running.url}{GENERATE}", json=body, headers=keyed).json()
        urls = [item["url"] for item in made["data"]]
        assert len(set(urls)) == 2
        assert all(url.startswith(f"{running.url}/pictures/") and url.endswith(f".{form}") for url in urls)
        assert not any("b64_json" in item for item in made["data"])
        found = httpx.get(urls[0])
        assert (found.status_code, found.headers["content-type"]) == (200, f"image/{form}")
        assert found.headers["cache-control"].startswith("private, max-age=")
        assert abs(pixels(found.content).astype(int) - 9).max() <= 3
        assert httpx.get(f"{running.url}/v1/models").status_code == 401
        page = httpx.get(f"{running.url}/metrics").text
        assert "nereid_gateway_pictures 2.0" in page
        assert 'nereid_gateway_requests_total{route="GET /pictures",status="200"} 1.0' in page
        other = httpx.get(f"{running.url}/pictures/guessed.png")
        assert (other.status_code, other.json()["error"]["code"]) == (404, "not_found")
        assert "no picture 'guessed.png' is kept here; each is for 600 s" in other.json()["error"]["message"]


def test_a_picture_is_gone_once_its_time_is_over_and_its_memory_free(repository: Path, triton: int) -> None:
    with gateway(repository, triton, rules=Rules(url_seconds=1.0)) as running:
        for _ in range(10):  # a machine that stands still for a second fetches one too late, and not all
            made = httpx.post(f"{running.url}{GENERATE}", json={**BODY, "response_format": "url"}).json()
            url = made["data"][0]["url"]
            if (fetched := httpx.get(url).status_code) == 200:
                break
        assert fetched == 200
        until(lambda: "nereid_gateway_picture_bytes 0.0" in httpx.get(f"{running.url}/metrics").text)  # nobody has asked for it
        assert httpx.get(url).status_code == 404


def test_pictures_that_cannot_be_kept_together_have_no_addresses(repository: Path, triton: int) -> None:
    body = {**BODY, "response_format": "url", "n": 2}
    with gateway(repository, triton, rules=Rules(url_megabytes=0)) as running:
        answer = httpx.post(f"{running.url}{GENERATE}", json=body, timeout=60)
    assert "bytes of pictures; 0 are kept; it must be b64_json" in refused(answer, "response_format")


def test_addresses_are_of_the_host_that_was_asked_or_that_the_operator_names(repository: Path, triton: int) -> None:
    body = {**BODY, "response_format": "url"}

    def url(address: str, **headers: str) -> str:
        made = httpx.post(f"{address}{GENERATE}", json=body, headers=headers)
        return str(made.json()["data"][0]["url"]) if made.status_code == 200 else refused(made, "response_format")

    with gateway(repository, triton) as running:
        assert url(running.url, Host="api.example:8443").startswith("http://api.example:8443/pictures/")
        forwarded = {"X-Forwarded-Host": "evil.example", "X-Forwarded-Proto": "https", "Forwarded": "host=evil.example"}
        assert url(running.url, **forwarded).startswith(f"{running.url}/pictures/")
        assert "without a host" in url(running.url, Host="evil.example/x?")
    with gateway(repository, triton, rules=Rules(public_url="https://api.example/nereid")) as running:
        assert url(running.url, Host="evil.example/x?").startswith("https://api.example/nereid/pictures/")


def test_a_stream_has_no_addresses(api: httpx.Client) -> None:
    streamed = api.post(GENERATE, json={**BODY, "response_format": "url", "stream": True})
    assert "url is not allowed with stream; it must be b64_json" in refused(streamed, "response_format")


# --- streams ---


def test_partial_images_of_an_edit_are_spread_over_the_steps_that_it_takes(api: httpx.Client) -> None:
    made = events(edit(api, stream="true", partial_images="3", num_inference_steps="20", strength="0.4"))
    kinds = [event["type"] for event in made]
    assert kinds == ["image_edit.partial_image"] * 3 + ["image_edit.completed"]
    steps = [int(shown(event)[0, 0, 0]) for event in made[:3]]
    assert steps == [14, 16, 18]  # of 13 to 20
    assert [event["partial_image_index"] for event in made[:3]] == [0, 1, 2]
    assert {(event["size"], event["output_format"], event["background"]) for event in made} == {("64x48", "png", "opaque")}
    assert made[-1]["warnings"] == ["one"]


def test_a_stream_of_a_picture_that_is_none_is_an_http_error(api: httpx.Client) -> None:
    assert "no picture that can be read" in refused(edit(api, files={"image": b"GIF89a"}, stream="true"), "image")


# --- options ---


def test_the_rules_for_pictures_reach_the_gateways_process_and_are_checked(tmp_path: Path) -> None:
    rules = Rules(url_seconds=5.0, url_megabytes=3, public_url="https://api.example", a1111=True)
    launch = Launch(repository="/r", grpc_url="", metrics_url="", ready_url="", drain_seconds=1, listener=3, heart=4, rules=rules)
    assert Launch.from_argument(launch.to_argument()) == launch
    served = ServeOptions(repository=tmp_path)
    GatewayOptions(port=8080, rules=rules).check(served)
    for wrong, option in (
        (Rules(url_seconds=0), "--openai-url-seconds: 0 is not allowed"),
        (Rules(url_megabytes=0), "--openai-url-megabytes: 0 is not allowed"),
        (Rules(public_url="api.example"), "--openai-public-url: 'api.example' is not allowed"),
        (Rules(public_url="https://api.example/?a"), "--openai-public-url"),
    ):
        with pytest.raises(ServingError, match=option.replace("?", r"\?")):
            GatewayOptions(port=8080, rules=wrong).check(served)


def test_the_options_of_nereid_serve_are_those_rules(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[GatewayOptions] = []
    monkeypatch.setattr("nereid.serving.cli._run", lambda options, gateway: seen.append(gateway))
    pictures = ["--openai-url-seconds", "5", "--openai-url-megabytes", "3", "--openai-public-url", "https://api.example/"]
    for more in ([], [*pictures, "--a1111"]):
        made = CliRunner().invoke(app, ["serve", "--openai-port", "8080", *more])
        assert made.exit_code == 0, made.output
    plain, chosen = (options.rules for options in seen)
    assert (plain.url_seconds, plain.url_megabytes, plain.public_url, plain.a1111) == (600, 128, "", False)
    assert (chosen.url_seconds, chosen.url_megabytes, chosen.public_url, chosen.a1111) == (5, 3, "https://api.example", True)


def test_facts_of_a_pipeline_are_read_from_its_files(repository: Path) -> None:
    from nereid.serving.gateway.repository import offered_models

    made = offered_models(repository)["text_to_image"].image
    assert (made.steps, made.size_multiple, made.is_flow) == (FACTS["default_steps"], 8, False)
