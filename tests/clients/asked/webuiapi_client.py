"""webuiapi, a client of AUTOMATIC1111's API: pictures of prompts and of pictures, masks, progress, settings, lists."""

from __future__ import annotations

import json
import threading
import time
from typing import Any

import webuiapi
from PIL import ImageOps

from halves import DRAWN, DRAWN_ANEW, expect_left_drawn_anew, png, white
from told import GATEWAY, IMAGES, KEY, Client, expect

client = Client("webuiapi", "webuiapi")
SMALL = {"width": 128, "height": 128, "steps": 4}


def api() -> webuiapi.WebUIApi:
    """Any user's name will do."""
    return webuiapi.WebUIApi(baseurl=f"{GATEWAY}/sdapi/v1", username="anybody", password=KEY)


@client.capability("txt2img")
def draw() -> None:
    made = api().txt2img(prompt="a red circle", negative_prompt="blue", seed=7, batch_size=2, **SMALL)
    expect([picture.size for picture in made.images] == [(128, 128)] * 2, f"pictures are {made.images}")
    expect(made.info["all_seeds"] == [7, 8] and len(made.info["infotexts"]) == 2, f"it tells {made.info}")


@client.capability("img2img")
def redraw() -> None:
    first = api().txt2img(prompt="a red circle", **SMALL).image
    made = api().img2img(images=[first], prompt="a blue circle", denoising_strength=0.6, **SMALL)
    expect(made.image.size == (128, 128), f"pictures are {made.images}")


@client.capability("img2img with a mask")
def masks() -> None:
    """Of the whole picture, of a part that is drawn larger, and of what is not white."""
    before = api().txt2img(prompt=DRAWN, seed=1, **SMALL).image
    asked: Any = {"images": [before], "prompt": DRAWN_ANEW, "seed": 2, "denoising_strength": 1, "inpainting_fill": 1, **SMALL}
    for whole in (False, True):
        made = api().img2img(mask_image=white(before), inpaint_full_res=whole, **asked).image
        expect_left_drawn_anew(png(before), png(made))
    other = ImageOps.invert(white(before))
    made = api().img2img(mask_image=other, inpainting_mask_invert=1, inpaint_full_res=False, **asked).image
    expect_left_drawn_anew(png(before), png(made))


@client.capability("parameters of a picture")
def parameters() -> None:
    made = api().txt2img(prompt="a red circle", **SMALL)
    expect(made.image.info["parameters"] == made.info["infotexts"][0], "the picture does not have them")
    told = api().png_info(made.image).info
    expect(told == made.info["infotexts"][0], f"the server reads {told!r}")


@client.capability("progress and interruption")
def interruption() -> None:
    made: list[Any] = []
    many = {**SMALL, "steps": 50, "n_iter": 40}
    drawing = threading.Thread(target=lambda: made.append(api().txt2img(prompt="a red circle", **many)))
    drawing.start()
    deadline = time.monotonic() + 60
    while api().get_progress()["progress"] == 0 and drawing.is_alive():
        expect(time.monotonic() < deadline, "there is no progress")
        time.sleep(0.01)
    told = api().get_progress()
    expect(told["state"]["job_count"] == 40 and 0 < told["progress"] < 1, f"it tells {json.dumps(told)[:300]}")
    api().interrupt()
    drawing.join(60)
    expect(len(made[0].images) < 40 and made[0].info["interrupted"], f"{len(made[0].images)} pictures were drawn")
    api().util_wait_for_ready(0.1)


@client.capability("settings")
def settings() -> None:
    api().util_set_model(IMAGES)
    expect(api().util_get_current_model() == IMAGES, "the model is another one")
    api().set_options(api().get_options())
    expect(api().util_get_current_model() == IMAGES, "the model is another one")


@client.capability("lists")
def lists() -> None:
    expect(IMAGES in api().util_get_model_names(), "the model is not listed")
    expect("Euler a" in [item["name"] for item in api().get_samplers()], "the sampler is not listed")
    asked = ("sd_vae", "upscalers", "latent_upscale_modes", "loras", "hypernetworks", "face_restorers", "realesrgan_models")
    for name in (*asked, "prompt_styles", "embeddings", "scripts", "cmd_flags", "memory"):
        told = getattr(api(), f"get_{name}")()
        expect("error" not in told, f"{name}: {told}")
    expect(api().refresh_checkpoints() is None, "models cannot be asked for again")


client.main()
