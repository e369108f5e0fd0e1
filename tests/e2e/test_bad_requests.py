"""Bad values: each is one sentence that names the field, and the server keeps serving. Table-driven, through the server."""

from __future__ import annotations

import numpy as np
import pytest
from tritonclient.utils import InferenceServerException

from nereid_client import Client

from conftest import Served
from raw import column, embeddings, infer, text

pytestmark = pytest.mark.triton

I32, F32, I64 = np.int32, np.float32, np.int64

PICTURE = {"init_image": np.zeros((1, 32, 32, 3), np.uint8)}

# Through the whole pipeline: name of the case, inputs besides the prompt, words that the answer must hold.
PIPELINE = [
    ("steps 0", {"num_inference_steps": column(I32, 0)}, ["num_inference_steps", "0", "1 to 200"]),
    ("steps negative", {"num_inference_steps": column(I32, -3)}, ["num_inference_steps", "-3"]),
    ("steps 10,000", {"num_inference_steps": column(I32, 10_000)}, ["num_inference_steps", "10000"]),
    ("steps two values", {"num_inference_steps": np.array([[4, 5]], I32)}, ["num_inference_steps"]),
    ("steps as float", {"num_inference_steps": column(F32, 4)}, ["num_inference_steps", "INT32"]),
    ("steps rank 3", {"num_inference_steps": np.zeros((1, 1, 1), I32)}, ["num_inference_steps"]),
    ("guidance NaN", {"guidance_scale": column(F32, np.nan)}, ["guidance_scale", "nan", "0 to 50"]),
    ("guidance infinite", {"guidance_scale": column(F32, np.inf)}, ["guidance_scale", "inf"]),
    ("guidance negative", {"guidance_scale": column(F32, -1)}, ["guidance_scale", "-1"]),
    ("guidance huge", {"guidance_scale": column(F32, 1e30)}, ["guidance_scale"]),
    ("guidance as double", {"guidance_scale": column(np.float64, 3)}, ["guidance_scale", "FP32"]),
    ("guidance as text", {"guidance_scale": text("7")}, ["guidance_scale"]),
    ("width 13", {"width": column(I32, 13)}, ["width", "13", "multiple of 4"]),
    ("width 0", {"width": column(I32, 0)}, ["width", "0"]),
    ("width negative", {"width": column(I32, -64)}, ["width", "-64"]),
    ("height 30", {"height": column(I32, 30)}, ["height", "30", "multiple of 4"]),
    ("height huge", {"height": column(I32, 2**30)}, ["height"]),
    ("too many pixels", {"width": column(I32, 4096), "height": column(I32, 4096)}, ["4096 x 4096", "1048576 pixels"]),
    ("unknown scheduler", {"scheduler": text("heun9")}, ["scheduler", "heun9", "dpmpp_2m"]),
    ("scheduler with code", {"scheduler": text("__import__('os')")}, ["scheduler"]),
    ("scheduler empty", {"scheduler": text("")}, ["scheduler"]),
    ("scheduler undecodable", {"scheduler": text(b"\xff\xfe")}, ["scheduler", "UTF-8"]),
    ("scheduler as number", {"scheduler": column(I32, 3)}, ["scheduler"]),
    (
        "lcm with 51 steps",
        {"scheduler": text("lcm"), "num_inference_steps": column(I32, 51)},
        ["num_inference_steps", "51"],
    ),
    ("seed negative", {"seed": column(I64, -1)}, ["seed", "-1"]),
    ("seed as INT32", {"seed": column(I32, 5)}, ["seed", "INT64"]),
    ("seed two rows", {"seed": column(I64, 1, 2)}, ["batch size"]),
    ("no images", {"num_images_per_prompt": column(I32, 0)}, ["num_images_per_prompt", "0"]),
    ("65 images", {"num_images_per_prompt": column(I32, 65)}, ["num_images_per_prompt", "65"]),
    ("more images than places", {"num_images_per_prompt": column(I32, 17)}, ["num_images_per_prompt", "17"]),
    ("timeout 0", {"timeout_seconds": column(F32, 0)}, ["timeout_seconds"]),
    ("timeout NaN", {"timeout_seconds": column(F32, np.nan)}, ["timeout_seconds", "nan"]),
    ("strength alone", {"strength": column(F32, 0.5)}, ["strength", "init_image"]),
    (
        "strength above 1",
        {"strength": column(F32, 1.5), "init_image": np.zeros((1, 32, 32, 3), np.uint8)},
        ["strength", "1.5"],
    ),
    ("strength 0", {"strength": column(F32, 0), "init_image": np.zeros((1, 32, 32, 3), np.uint8)}, ["strength", "0.0"]),
    ("picture of odd size", {"init_image": np.zeros((1, 30, 32, 3), np.uint8)}, ["height", "30"]),
    ("picture with alpha", {"init_image": np.zeros((1, 32, 32, 4), np.uint8)}, ["init_image"]),
    ("picture as float", {"init_image": np.zeros((1, 32, 32, 3), F32)}, ["init_image", "UINT8"]),
    ("picture rank 3", {"init_image": np.zeros((32, 32, 3), np.uint8)}, ["batch size"]),
    (
        "picture not as wide as asked",
        {"init_image": np.zeros((1, 32, 32, 3), np.uint8), "width": column(I32, 64)},
        ["init_image", "width"],
    ),
    ("mask alone", {"mask_image": np.full((1, 32, 32), 255, np.uint8)}, ["mask_image", "init_image"]),
    ("mask of another size", {**PICTURE, "mask_image": np.zeros((1, 32, 16), np.uint8)}, ["mask_image", "(32, 16)", "(32, 32)"]),
    ("mask of ones", {**PICTURE, "mask_image": np.ones((1, 32, 32), np.uint8)}, ["mask_image", "1", "128 to 255"]),
    ("mask of truth values", {**PICTURE, "mask_image": np.ones((1, 32, 32), bool)}, ["mask_image", "UINT8"]),
    ("mask with colours", {**PICTURE, "mask_image": np.zeros((1, 32, 32, 3), np.uint8)}, ["mask_image"]),
    ("fill without mask", {**PICTURE, "inpainting_fill": text("latent_noise")}, ["inpainting_fill", "mask_image"]),
    ("upscale without picture", {"latent_upscale": text("bilinear")}, ["latent_upscale", "init_image"]),
    (
        "upscale of an odd picture",
        {"init_image": np.zeros((1, 31, 32, 3), np.uint8), "latent_upscale": text("bilinear"), "height": column(I32, 32)},
        ["init_image", "31"],
    ),
    ("latents of wrong size", {"latents": np.zeros((1, 4, 9, 9), F32)}, ["latents", "(1, 4, 8, 8)"]),
    ("latents with NaN", {"latents": np.full((1, 4, 8, 8), np.nan, F32)}, ["latents", "NaN"]),
    ("latents of 5 channels", {"latents": np.zeros((1, 5, 8, 8), F32)}, ["latents"]),
    ("prompt undecodable", {"prompt": text(b"\xff\xff")}, ["prompt", "UTF-8"]),
    ("negative prompt undecodable", {"negative_prompt": text(b"\xc3")}, ["negative_prompt", "UTF-8"]),
    ("prompt absurdly long", {"prompt": text("a " * 20_000)}, ["prompt", "20000"]),
    # Triton's own ensemble scheduler answers this one, without naming the input.
    ("prompt missing", {"prompt": None}, []),
    ("prompt as number", {"prompt": column(I32, 1)}, ["prompt"]),
    ("empty batch", {"prompt": np.zeros((0, 1), dtype=np.object_)}, []),
    ("batch above the largest", {"prompt": text(*["a"] * 9)}, ["batch size"]),
    ("unknown input", {"cfg": column(F32, 7)}, ["cfg"]),
]

# `denoise` called directly, besides its embeddings.
DIRECT = [
    ("no negative embeddings", {"negative_prompt_embeds": None}, ["negative_prompt_embeds"]),
    ("embeddings with NaN", {"prompt_embeds": np.full((1, 16, 32), np.nan, F32)}, ["prompt_embeds", "NaN"]),
    ("embeddings without tokens", {"prompt_embeds": np.zeros((1, 0, 32), F32)}, ["prompt_embeds"]),
    ("embeddings of other lengths", {"negative_prompt_embeds": np.zeros((1, 8, 32), F32)}, ["negative_prompt_embeds"]),
    (
        "embeddings of another width",
        {"prompt_embeds": np.zeros((1, 16, 31), F32), "guidance_scale": column(F32, 1)},
        ["prompt_embeds", "31", "32"],
    ),
    ("steps beyond the noise levels", {"num_inference_steps": column(I32, 1001)}, ["num_inference_steps", "1001"]),
    ("resumed without latents", {"step_begin": column(I32, 2)}, ["latents", "step_begin"]),
    (
        "resumed without memory",
        {"step_begin": column(I32, 2), "latents": np.zeros((1, 4, 8, 8), F32)},
        ["solver_memory"],
    ),
    ("segment backwards", {"step_begin": column(I32, 5), "step_end": column(I32, 5)}, ["step_begin"]),
    ("segment beyond the end", {"step_end": column(I32, 99)}, ["step_end", "99"]),
    ("memory of wrong shape", {"solver_memory": np.zeros((1, 4, 4, 3, 3), F32)}, ["solver_memory"]),
]


def check(served: Served, model: str, inputs: dict[str, np.ndarray], output: str, words: list[str]) -> None:
    with pytest.raises(InferenceServerException) as caught:
        infer(served.grpc_url, model, inputs, [output])
    message = caught.value.message()
    assert "Traceback" not in message
    assert len(message) < 500
    for word in words:
        assert word in message


@pytest.mark.parametrize(("inputs", "words"), [case[1:] for case in PIPELINE], ids=[case[0] for case in PIPELINE])
def test_pipeline_refuses(served: Served, inputs: dict[str, np.ndarray], words: list[str]) -> None:
    given = {"prompt": text("a circle"), "num_inference_steps": column(I32, 2), **inputs}
    check(served, "text_to_image", {k: v for k, v in given.items() if v is not None}, "generated_image", words)


@pytest.mark.parametrize(("inputs", "words"), [case[1:] for case in DIRECT], ids=[case[0] for case in DIRECT])
def test_denoise_refuses(served: Served, inputs: dict[str, np.ndarray], words: list[str]) -> None:
    given = {**embeddings(served.grpc_url, "a circle"), "num_inference_steps": column(I32, 8), **inputs}
    check(served, "denoise", {k: v for k, v in given.items() if v is not None}, "latents", words)


def test_server_still_serves_after_all_of_them(served: Served) -> None:
    with Client(served.grpc_url) as client:
        assert client.generate_image("a circle", num_inference_steps=2).pixels.shape == (1, 32, 32, 3)


def test_one_bad_row_fails_only_its_own_request(served: Served) -> None:
    from concurrent.futures import ThreadPoolExecutor

    from nereid_client import InvalidRequestError

    with Client(served.grpc_url) as client, ThreadPoolExecutor(8) as pool:
        steps = [3, 0, 3, 999, 3, -1, 3, 3]
        jobs = [pool.submit(client.generate_image, "a box", num_inference_steps=count) for count in steps]
        outcomes = [job.exception() is None for job in jobs]
        assert outcomes == [count == 3 for count in steps]
        assert all(isinstance(job.exception(), InvalidRequestError) for job in jobs if job.exception())
