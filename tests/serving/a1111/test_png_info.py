"""What AUTOMATIC1111's png-info reads of a picture."""

from __future__ import annotations

import base64
import io
import json

import httpx
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from nereid.serving.gateway.a1111.answers import picture_info

from webui_forms import DRAW, OF_A_CHAT, PNG_INFO, refused, text


@pytest.mark.parametrize("lead", ["", "data:image/png;base64,", "data:image/png;base64, "])
def test_a_pictures_parameters_are_read_from_it(api: httpx.Client, lead: str) -> None:
    drawn = api.post(DRAW, json=OF_A_CHAT).json()
    told = api.post(PNG_INFO, json={"image": lead + drawn["images"][0]}).json()
    assert told["info"] == json.loads(drawn["info"])["infotexts"][0]
    parameters = told["parameters"]
    assert (parameters["Prompt"], parameters["Negative prompt"], parameters["Steps"]) == ("a box", "rain", "6")
    assert (parameters["Sampler"], parameters["Size-1"], parameters["Size-2"]) == ("DPM++ 2M Karras", "64", "48")
    assert told["items"] == {}


def test_a_picture_without_parameters_has_none(api: httpx.Client) -> None:
    plain = api.post(PNG_INFO, json={"image": text(Image.new("RGB", (8, 8)))})
    assert (plain.status_code, plain.json()) == (200, {"info": "", "items": {}, "parameters": {}})
    assert "no picture that can be read" in refused(api.post(PNG_INFO, json={"image": "aGk="}), "image")
    refused(api.post(PNG_INFO, json={}), "image")


def test_texts_that_are_long_when_unpacked_are_refused(api: httpx.Client) -> None:
    packed = PngInfo()
    for number in range(3):
        packed.add_text(f"text{number}", "a" * 500_000, zip=True)
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "PNG", pnginfo=packed)
    assert len(buffer.getvalue()) < 10_000
    message = refused(api.post(PNG_INFO, json={"image": base64.b64encode(buffer.getvalue()).decode()}), "image")
    assert "more than 1048576 characters" in message


def test_values_in_quotation_marks_stay_whole() -> None:
    told = picture_info({"parameters": 'a, b: c\nSteps: 4, Hashes: "x: 1, y: 2", Size: 8x16, Model: m', "Comment": "hi"})
    assert told["items"] == {"Comment": "hi"}
    wanted = {"Prompt": "a, b: c", "Negative prompt": "", "Steps": "4", "Hashes": '"x: 1, y: 2"', "Size-1": "8", "Size-2": "16"}
    assert told["parameters"] == {**wanted, "Model": "m"}
    assert picture_info({"parameters": "only words"})["parameters"] == {"Prompt": "only words", "Negative prompt": ""}
