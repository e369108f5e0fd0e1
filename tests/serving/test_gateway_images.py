"""Images through the gateway: edits, variations, quality, addresses, partial ones, and what is refused by name."""

from __future__ import annotations

import base64
import io
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from PIL import Image
from typer.testing import CliRunner

from nereid.serving.errors import ServingError
from nereid.serving.gateway.launch import Launch, Rules
from nereid.serving.gateway.service import GatewayOptions
from nereid.serving.options import ServeOptions
from nereid_client.main import app

from drawing_models import FACTS, STEPS, Drawers, drawing_repository
from gateway_before import gateway

GENERATE, EDIT, VARY = "/v1/images/generations", "/v1/images/edits", "/v1/images/variations"
BODY: dict[str, Any] = {"prompt": "a box", "seed": 9}
BLUE = Image.new("RGB", (64, 48), (0, 0, 255))


def png(picture: Image.Image = BLUE) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def pixels(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)))


def shown(item: dict[str, Any]) -> np.ndarray:
    return pixels(base64.b64decode(item["b64_json"]))


@pytest.fixture
def drawers() -> Drawers:
    return Drawers()


@pytest.fixture
def triton_models(drawers: Drawers) -> dict[str, Any]:
    return drawers.all()


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    return drawing_repository(tmp_path / "repository")


@pytest.fixture
def api(repository: Path, triton: int) -> Iterator[httpx.Client]:
    with gateway(repository, triton) as running, httpx.Client(base_url=running.url, timeout=60) as client:
        yield client


def edit(api: httpx.Client, route: str = EDIT, files: Any = None, **fields: Any) -> httpx.Response:
    return api.post(route, data={**BODY, **fields}, files=files or {"image": ("blue.png", png(), "image/png")})


def refused(answer: httpx.Response, param: str) -> str:
    error = answer.json()["error"]
    assert (answer.status_code, error["param"], error["type"]) == (400, param, "invalid_request_error"), error
    return str(error["message"])


# --- edits and variations ---


def test_an_edit_starts_from_the_picture_that_is_sent(api: httpx.Client, drawers: Drawers) -> None:
    made = edit(api, strength="0.5", num_inference_steps="4", n="2", guidance_interval=["0.2", "0.9"]).json()
    assert [shown(item)[0, 0].tolist() for item in made["data"]] == [[255, 255, 0]] * 2
    assert (made["size"], made["output_format"], made["background"], made["quality"]) == ("64x48", "png", "opaque", "auto")
    assert made["warnings"] == ["one"]
    asked = drawers.asked[-1]
    assert (asked["prompt"], asked["strength"], asked["num_inference_steps"], asked["seed"]) == (b"a box", 0.5, 4, 9)


def test_lists_of_a_form_are_fields_of_a_request(api: httpx.Client, drawers: Drawers) -> None:
    for name in ("timesteps[]", "timesteps"):
        answer = edit(api, **{name: ["900", "500", "100"]})
        assert answer.status_code == 200, answer.text
        assert drawers.asked[-1]["timesteps"].tolist() == [900, 500, 100]
    assert "a list of 2 is not allowed" in refused(edit(api, seed=["1", "2"]), "seed")


def test_a_variation_needs_no_prompt(api: httpx.Client, drawers: Drawers) -> None:
    made = api.post(VARY, data={"strength": "0.3"}, files={"image": png()}).json()
    assert shown(made["data"][0])[0, 0].tolist() == [255, 255, 0]
    assert drawers.asked[-1]["prompt"] == b""
    files = {"image": png(), "mask": png(half_clear())}
    assert "a variation is one of the whole picture; leave it out" in refused(api.post(VARY, files=files), "mask")
    assert api.post(VARY, files={"image": png(half_clear())}).status_code == 200
    assert "mask_image" not in drawers.asked[-1]


def test_openais_package_edits_streams_and_varies(repository: Path, triton: int) -> None:
    with gateway(repository, triton) as running:
        client = openai.OpenAI(base_url=f"{running.url}/v1", api_key="none", max_retries=0)
        made = client.images.edit(image=("a.png", png()), prompt="x", model="text_to_image", user="me", extra_body={"seed": 3})
        assert made.data is not None
        assert shown({"b64_json": made.data[0].b64_json})[0, 0].tolist() == [255, 255, 0]
        several: Any = [("a.png", png())]
        events = list(client.images.edit(image=several, prompt="x", stream=True, partial_images=2, size="auto"))
        assert [event.type for event in events] == ["image_edit.partial_image"] * 2 + ["image_edit.completed"]
        varied = client.images.create_variation(image=png(), response_format="url", n=1, size="64x48")  # type: ignore[call-overload]
        assert varied.data[0].url.startswith(running.url)


@pytest.mark.parametrize(
    ("size", "change", "expected", "warning"),
    [
        ((64, 48), {}, (64, 48), None),
        ((61, 50), {}, (64, 48), "image: 61 x 50 pixels were scaled to 64 x 48, and cut to these proportions"),
        ((128, 96), {"size": "64x48"}, (64, 48), "image: 128 x 96 pixels were scaled to 64 x 48"),
        ((64, 48), {"size": "32x32"}, (32, 32), "image: 64 x 48 pixels were scaled to 32 x 32, and cut to these proportions"),
        ((64, 48), {"size": "auto"}, (64, 48), None),
    ],
)
def test_a_picture_of_another_size_is_brought_to_one_that_is_drawn_and_that_is_told(
    api: httpx.Client, size: tuple[int, int], change: dict[str, str], expected: tuple[int, int], warning: str | None
) -> None:
    made = edit(api, files={"image": png(BLUE.resize(size))}, **change).json()
    assert shown(made["data"][0]).shape[:2] == expected[::-1]
    assert made["warnings"] == ([warning] if warning else []) + ["one"]


def half_clear(size: tuple[int, int] = (64, 48)) -> Image.Image:
    """Its left half is transparent."""
    made = Image.new("RGBA", size, (0, 0, 255, 255))
    made.paste((9, 9, 9, 0), (0, 0, size[0] // 2, size[1]))
    return made


LEFT = np.repeat(np.arange(64)[None] < 32, 48, axis=0) * np.uint8(255)


@pytest.mark.parametrize(
    "files", [{"image": png(), "mask": png(half_clear())}, {"image": png(half_clear())}], ids=["mask", "picture"]
)
def test_what_is_transparent_is_edited_and_the_rest_stays(api: httpx.Client, drawers: Drawers, files: Any) -> None:
    answer = edit(api, files=files)
    assert answer.status_code == 200, answer.text
    asked = drawers.asked[-1]
    assert np.array_equal(asked["mask_image"], LEFT)
    assert asked["init_image"][0, 63].tolist() == [0, 0, 255]
    assert "strength" not in asked  # the server's own, for a mask


def test_a_mask_is_brought_to_the_size_of_its_picture(api: httpx.Client, drawers: Drawers) -> None:
    sent = {"image": png(BLUE.resize((160, 96))), "mask": png(half_clear((160, 96)))}
    assert edit(api, files=sent, size="64x48").status_code == 200
    asked = drawers.asked[-1]
    assert asked["mask_image"].shape == asked["init_image"].shape[:2] == (48, 64)
    assert np.unique(asked["mask_image"]).tolist() == [0, 255]
    assert np.array_equal(asked["mask_image"][:, [0, 63]], LEFT[:, [0, 63]])


def test_a_picture_that_is_hardly_transparent_is_edited_as_a_whole(api: httpx.Client, drawers: Drawers) -> None:
    assert edit(api, files={"image": png(Image.new("RGBA", (64, 48), (0, 0, 255, 200)))}).status_code == 200
    assert "mask_image" not in drawers.asked[-1]


def test_partial_images_of_a_part_are_spread_over_all_steps(api: httpx.Client) -> None:
    made = events(edit(api, files={"image": png(half_clear())}, stream="true", partial_images="3", num_inference_steps="20"))
    assert [int(shown(event)[0, 0, 0]) for event in made[:3]] == [5, 10, 15]


def test_an_edit_says_what_its_part_begins_as_and_how_latents_are_brought_to_its_size(
    api: httpx.Client, drawers: Drawers
) -> None:
    answer = edit(
        api, files={"image": png(half_clear())}, size="128x96", inpainting_fill="latent_noise", latent_upscale="bicubic"
    )
    assert answer.status_code == 200, answer.text
    asked = drawers.asked[-1]
    assert (asked["inpainting_fill"], asked["latent_upscale"]) == (b"latent_noise", b"bicubic")
    assert (asked["init_image"].shape, asked["mask_image"].shape) == ((48, 64, 3), (96, 128))
    assert shown(answer.json()["data"][0]).shape == (96, 128, 3)
    varied = {"latent_upscale": "bilinear", "size": "128x96"}
    assert api.post(VARY, data=varied, files={"image": png()}).status_code == 200
    assert drawers.asked[-1]["init_image"].shape == (48, 64, 3)
    sent = {"inpainting_fill": "latent_noise"}
    assert "not supported" in refused(api.post(VARY, data=sent, files={"image": png()}), "inpainting_fill")


OPAQUE, SMALL = {"image": png(), "mask": png()}, {"image": png(), "mask": png(half_clear((32, 48)))}
TWO = [("image[]", png()), ("image[]", png())]
TWO_MASKS = [("image", png()), ("mask", png(half_clear())), ("mask", png(half_clear()))]


@pytest.mark.parametrize(
    ("files", "fields", "param", "words"),
    [
        (OPAQUE, {}, "mask", "mask: it has no transparent pixels; it must have some, which say what is edited"),
        (SMALL, {}, "mask", "mask: 32 x 48 is not allowed; it must be 64 x 48, as image is"),
        ({"image": png(), "mask": b"GIF89a"}, {}, "mask", "no picture that can be read"),
        (TWO_MASKS, {}, "mask", "2 pictures are not allowed; it must be one"),
        (TWO, {}, "image", "2 pictures are not allowed; it must be one"),
        ({"mask": b"", "other": ""}, {}, "other", "this file is not supported"),
        ({"image": b""}, {}, "image", "it is missing"),
        ({"image": b"GIF89a"}, {}, "image", "no picture that can be read; it must be a picture in PNG, JPEG or WebP"),
        (None, {"prompt": ""}, "prompt", "it is missing"),
        (None, {"n": "many"}, "n", "'many' is not allowed; it must be "),
        (None, {"strength": "much"}, "strength", "'much' is not allowed; it must be "),
        (None, {"background": "transparent"}, "background", "it must be auto or opaque or absent"),
        (None, {"input_fidelity": "high"}, "input_fidelity", "it must be low or absent"),
        (None, {"wind": "x"}, "wind", "this field is not supported"),
        (None, {"output_format": "gif"}, "output_format", "'gif' is not allowed"),
        (None, {"stream": "true", "n": "2"}, "n", "2 images cannot be streamed"),
        (None, {"prompt": "WRONG"}, "size", "size: 500 is not allowed"),
    ],
)
def test_what_an_edit_cannot_have_is_refused_by_name(
    api: httpx.Client, files: Any, fields: dict[str, str], param: str, words: str
) -> None:
    assert words in refused(edit(api, files=files, **fields), param)


def test_a_mask_that_nobody_has_chosen_and_values_that_change_nothing_are_taken(api: httpx.Client) -> None:
    files = {"image": png(), "mask": ("", b"")}
    answer = edit(api, files=files, size="", background="auto", input_fidelity="low", frame_count="1", user="", quality="auto")
    assert answer.status_code == 200, answer.text


def test_an_edit_is_a_form_of_bounded_size(repository: Path, triton: int) -> None:
    limits = {"max_picture_bytes": 50_000, "max_picture_pixels": 3000}
    with gateway(repository, triton, **limits) as running, httpx.Client(base_url=running.url) as api:
        plain = api.post(EDIT, json=BODY)
        assert (plain.status_code, plain.json()["error"]["message"].partition(":")[0]) == (415, "content-type")
        assert edit(api, files={"image": b"x" * 60_000}).status_code == 413
        assert edit(api, prompt="x" * 200_000).status_code == 413
        assert "64 x 48 is not allowed; it must be a picture of 3000 pixels" in refused(edit(api), "image")


def test_bodies_with_pictures_have_a_bound_together_and_free_it_when_they_are_done(repository: Path, triton: int) -> None:
    with gateway(repository, triton, max_pictures_bytes=20_000) as running, httpx.Client(base_url=running.url) as api:
        for _ in range(3):
            assert edit(api, prompt="x" * 15_000).status_code == 200
        busy = edit(api, prompt="x" * 25_000)
        assert (busy.status_code, busy.json()["error"]["code"], busy.headers["retry-after"]) == (503, "queue_full", "1")
        assert edit(api).status_code == 200


def test_a_model_need_be_named_only_where_there_are_several(api: httpx.Client, repository: Path, triton: int) -> None:
    assert api.post(GENERATE, json=BODY).status_code == 200
    assert edit(api, model="nobody").status_code == 404
    (repository / "xl_text_to_image_stream" / "1").mkdir(parents=True)
    (repository / "xl_text_to_image_stream" / "1" / "pipeline.json").write_text("{}")
    with gateway(repository, triton) as running, httpx.Client(base_url=running.url) as both:
        for answer in (both.post(GENERATE, json=BODY), edit(both)):
            words = "it is missing; it must be one of those served here: text_to_image, xl_text_to_image"
            assert words in refused(answer, "model")


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
        made = httpx.post(f"{running.url}{GENERATE}", json={**BODY, "response_format": "url"}).json()
        url = made["data"][0]["url"]
        assert httpx.get(url).status_code == 200
        deadline = time.monotonic() + 30
        while "nereid_gateway_picture_bytes 0.0" not in httpx.get(f"{running.url}/metrics").text:  # nobody has asked for it
            assert time.monotonic() < deadline
            time.sleep(0.1)
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


def events(answer: httpx.Response) -> list[dict[str, Any]]:
    return [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: {")]


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
