"""Edits and variations of pictures, and of parts of them, through the gateway, and what is refused by name."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from PIL import Image

from drawing_models import Drawers
from gateway_before import gateway
from picture_calls import BLUE, BODY, EDIT, GENERATE, VARY, edit, events, half_clear, png, refused, shown


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


@pytest.mark.parametrize("size", ["99999x99999", "1032x1024", "0x64", "64x0"])
def test_a_picture_is_not_made_larger_than_the_model_draws_or_empty(api: httpx.Client, drawers: Drawers, size: str) -> None:
    """Before it is scaled: a small request would take all of the gateway's memory."""
    shown_size = size.replace("x", " x ")
    for answer in (
        edit(api, size=size),
        api.post(EDIT, data={"prompt": "a box", "size": size}, files={"image": png(), "mask": png(half_clear())}),
        api.post(VARY, data={"size": size}, files={"image": png()}),
    ):
        assert refused(answer, "size") == f"size: {shown_size} is not allowed; it must be 1 to 1048576 pixels"
    assert drawers.asked == []


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
    top = Image.new("RGBA", (64, 48), (0, 0, 255, 255))
    top.paste((0, 0, 0, 0), (0, 0, 64, 12))
    assert edit(api, files={"image": png(top)}, size="128x64", latent_upscale="bilinear").status_code == 200
    assert np.array_equal(drawers.asked[-1]["mask_image"], np.repeat(np.arange(64)[:, None] < 16, 128, axis=1) * 255)
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


def url(data: bytes, kind: str = "png") -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


WHOLE, PART = url(png()), url(png(half_clear()))


@pytest.mark.parametrize(
    "sent",
    [
        {"images": [{"image_url": WHOLE}], "mask": {"image_url": PART}},
        {"images": [{"image_url": WHOLE, "type": "image_url"}], "mask": PART},
        {"image": WHOLE, "mask": PART},
        {"image": {"url": WHOLE, "type": "image_url"}, "mask": {"url": PART}},
        {"image": base64.b64encode(png(half_clear())).decode()},
    ],
    ids=["OpenAI's", "mixed", "texts", "xAI's", "base64"],
)
def test_an_edit_may_be_json_with_pictures_as_texts(api: httpx.Client, drawers: Drawers, sent: dict[str, Any]) -> None:
    more = {"num_inference_steps": 4, "guidance_interval": [0.2, 0.9], "inpainting_fill": "latent_nothing", "user": "me"}
    answer = api.post(EDIT, json={**BODY, **sent, **more})
    assert answer.status_code == 200, answer.text
    asked = drawers.asked[-1]
    assert np.array_equal(asked["mask_image"], LEFT)
    assert asked["init_image"][0, 63].tolist() == [0, 0, 255]
    assert (asked["num_inference_steps"], asked["inpainting_fill"]) == (4, b"latent_nothing")
    streamed = events(api.post(EDIT, json={**BODY, **sent, "stream": True, "partial_images": 1}))
    assert [event["type"] for event in streamed] == ["image_edit.partial_image", "image_edit.completed"]


@pytest.mark.parametrize(
    ("sent", "param", "words"),
    [
        ({}, "images", "images: it is missing; it must be a list of one picture, as image_url, a data: URL of it"),
        ({"images": []}, "images", "at least 1 item"),
        ({"images": [{"image_url": WHOLE}] * 2}, "images", "at most 1 item"),
        ({"images": [{"image_url": WHOLE}], "image": WHOLE}, "image", "image: it is not allowed beside images"),
        ({"images": [{"file_id": "file-1"}]}, "images.0.file_id", "this field is not supported"),
        ({"images": [{}]}, "images.0.image_url", "it is missing; it must be a data: URL of a picture"),
        ({"images": [{"image_url": "https://a.example/a.png"}]}, "images.0.image_url", "its bytes in base64, or a data: URL"),
        ({"image": "file.png"}, "image", "its bytes in base64, or a data: URL of it"),
        ({"image": WHOLE, "mask": {"url": "http://a"}}, "mask.url", "its bytes in base64, or a data: URL of it"),
        ({"image": WHOLE, "mask": WHOLE}, "mask", "it has no transparent pixels"),
        ({"image": 3}, "image", "3 is not allowed"),
        ({"image": WHOLE, "prompt": None}, "prompt", "it is missing"),
        ({"image": WHOLE, "wind": "x"}, "wind", "this field is not supported"),
    ],
)
def test_json_that_is_no_edit_is_refused_by_name(api: httpx.Client, sent: dict[str, Any], param: str, words: str) -> None:
    assert words in refused(api.post(EDIT, json={**BODY, **sent}), param)


@pytest.mark.parametrize(
    "files",
    [
        [("image[]", png()), ("mask[]", png(half_clear()))],
        [("image[0]", png()), ("mask[0]", png(half_clear()))],
        [("image", WHOLE.encode()), ("mask", PART.encode())],
    ],
    ids=["lists", "places", "addresses"],
)
def test_pictures_of_a_form_may_be_called_as_lists_are_and_be_data_urls(api: httpx.Client, drawers: Drawers, files: Any) -> None:
    answer = edit(api, files=files)
    assert answer.status_code == 200, answer.text
    assert np.array_equal(drawers.asked[-1]["mask_image"], LEFT)
    as_text = api.post(EDIT, data={**BODY, "image": WHOLE}, files={"mask": png(half_clear())})
    assert as_text.status_code == 200, as_text.text
    assert "its bytes in base64" in refused(edit(api, files={"image": b"data:image/png;base64,??"}), "image")


def test_an_edit_is_of_bounded_size(repository: Path, triton: int) -> None:
    limits = {"max_picture_bytes": 50_000, "max_picture_pixels": 3000}
    with gateway(repository, triton, **limits) as running, httpx.Client(base_url=running.url) as api:
        plain = api.post(EDIT, json=BODY)
        assert "it must be a list of one picture, as image_url" in refused(plain, "images")
        untyped = api.post(EDIT, content=b"hi")
        assert (untyped.status_code, untyped.json()["error"]["message"].partition(":")[0]) == (415, "content-type")
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
