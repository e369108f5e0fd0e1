"""OpenAI's Python package: pictures, drawn, changed, and drawn anew where a mask says so."""

from __future__ import annotations

import base64
from typing import Any

import openai

from halves import DRAWN, DRAWN_ANEW, expect_left_drawn_anew, see_through
from told import IMAGES, Client, expect

client = Client("openai-python", "openai")
api = openai.OpenAI()


@client.capability("images")
def images() -> None:
    made = api.images.generate(model=IMAGES, prompt="a red circle", size="128x128", n=2)
    found = [base64.b64decode(item.b64_json or "") for item in made.data or []]
    expect(len(found) == 2 and all(item.startswith(b"\x89PNG") for item in found), "there are not two PNG pictures")


@client.capability("images streamed")
def images_streamed() -> None:
    events = list(api.images.generate(model=IMAGES, prompt="a red circle", stream=True, partial_images=2))
    kinds = [event.type for event in events]
    expect(kinds == ["image_generation.partial_image"] * 2 + ["image_generation.completed"], f"events are {kinds}")


def drawn() -> bytes:
    made = api.images.generate(model=IMAGES, prompt=DRAWN, extra_body={"seed": 1})
    return base64.b64decode((made.data or [])[0].b64_json or "")


@client.capability("images edited")
def edits() -> None:
    made = api.images.edit(model=IMAGES, image=("a.png", drawn()), prompt=DRAWN_ANEW, n=2, output_format="webp")
    found = [base64.b64decode(item.b64_json or "") for item in made.data or []]
    expect(len(found) == 2 and all(item[8:12] == b"WEBP" for item in found), "there are not two WebP pictures")
    varied = api.images.create_variation(model=IMAGES, image=drawn(), response_format="b64_json")
    expect((varied.data or [])[0].b64_json, "there is no variation")


@client.capability("images edited with a mask")
def masks() -> None:
    """What is transparent is drawn anew: in the mask, or, without one, in the picture."""
    before = drawn()
    clear = see_through(before)
    asked: Any = {"model": IMAGES, "prompt": DRAWN_ANEW, "extra_body": {"seed": 2}}
    made = api.images.edit(image=("a.png", before), mask=("mask.png", clear), **asked)
    expect_left_drawn_anew(before, base64.b64decode((made.data or [])[0].b64_json or ""))
    alone = api.images.edit(image=[("a.png", clear)], **asked)
    expect_left_drawn_anew(before, base64.b64decode((alone.data or [])[0].b64_json or ""))
    events = list(api.images.edit(image=("a.png", before), mask=("mask.png", clear), stream=True, partial_images=1, **asked))
    kinds = [event.type for event in events]
    expect(kinds == ["image_edit.partial_image", "image_edit.completed"], f"events are {kinds}")
    expect(events[-1].b64_json == (made.data or [])[0].b64_json, "the stream draws another picture")
    try:
        api.images.edit(image=("a.png", before), mask=("mask.png", before), **asked)
    except openai.BadRequestError as error:
        expect(error.param == "mask", f"param is {error.param}")
        return
    expect(False, "a mask in which nothing is transparent is no error")
