"""The newest tritonclient against Triton itself: pictures and masks over HTTP and gRPC, text streamed, embeddings."""

from __future__ import annotations

import json
import queue
from typing import Any

import numpy as np
import tritonclient.grpc as over_grpc
import tritonclient.grpc.aio as over_aio
import tritonclient.http as over_http

from told import IMAGES, LLM, TRITON_GRPC, TRITON_HTTP, Client, expect

client = Client("tritonclient", "tritonclient")


def inputs(module: Any, values: dict[str, Any]) -> list[Any]:
    names = {np.dtype(object): "BYTES", np.dtype(np.int32): "INT32", np.dtype(bool): "BOOL", np.dtype(np.uint8): "UINT8"}
    names[np.dtype(np.int64)] = "INT64"
    made = []
    for name, value in values.items():
        tensor = module.InferInput(name, list(value.shape), names[value.dtype])
        tensor.set_data_from_numpy(value)
        made.append(tensor)
    return made


def picture(module: Any, url: str, prompt: bytes = b"a red circle") -> Any:
    with module.InferenceServerClient(url) as api:
        expect(api.is_server_ready() and api.is_model_ready(IMAGES), "it is not ready")
        values = {"prompt": np.array([[prompt]], object), "num_inference_steps": np.array([[4]], np.int32)}
        values["seed"] = np.array([[1]], np.int64)
        return api.infer(IMAGES, inputs(module, values)).as_numpy("generated_image")


@client.capability("pictures over HTTP")
def http() -> None:
    expect(picture(over_http, TRITON_HTTP).dtype == np.uint8, "there are no pixels")


@client.capability("pictures over gRPC")
def grpc() -> None:
    expect(picture(over_grpc, TRITON_GRPC).dtype == np.uint8, "there are no pixels")


@client.capability("pictures with a mask")
def masks() -> None:
    before = picture(over_http, TRITON_HTTP, b"a red circle on a white background")
    before = before.reshape(before.shape[-3:])
    values: dict[str, Any] = {
        "prompt": np.array([[b"a blue square on a black background"]], object),
        "seed": np.array([[2]], np.int64),
        "init_image": before[None],
        "mask_image": np.full((1, *before.shape[:2]), 255, np.uint8),
    }
    values["mask_image"][:, :, before.shape[1] // 2 :] = 0
    for module, url in ((over_http, TRITON_HTTP), (over_grpc, TRITON_GRPC)):
        with module.InferenceServerClient(url) as api:
            after = api.infer(IMAGES, inputs(module, values)).as_numpy("generated_image").reshape(before.shape)
        changed = np.abs(after.astype(int) - before).mean(axis=(0, 2))
        quarter = len(changed) // 4
        left, right = changed[:quarter].mean(), changed[-quarter:].mean()
        expect(left > 4 * right, f"the left half differs by {left:.1f}, the right one, which stays, by {right:.1f}")


def prompt(stream: bool) -> dict[str, Any]:
    parameters = json.dumps({"max_tokens": 8, "temperature": 0}).encode()
    return {
        "text_input": np.array([b"<section"], object),
        "stream": np.array([stream]),
        "sampling_parameters": np.array([parameters], object),
    }


@client.capability("text streamed over gRPC")
def text() -> None:
    said: queue.Queue[Any] = queue.Queue()
    with over_grpc.InferenceServerClient(TRITON_GRPC) as api:
        api.start_stream(lambda result, error: said.put(error or result))
        api.async_stream_infer(LLM, inputs(over_grpc, prompt(True)), enable_empty_final_response=True)
        texts = []
        while True:
            result = said.get(timeout=60)
            expect(not isinstance(result, Exception), str(result))
            if result.get_response().parameters["triton_final_response"].bool_param:
                break
            texts.append(result.as_numpy("text_output")[0].decode())
        api.stop_stream()
    expect("".join(texts), "the answer is empty")


@client.capability("text over gRPC with asyncio")
async def aio() -> None:
    async with over_aio.InferenceServerClient(TRITON_GRPC) as api:

        async def asked() -> Any:
            yield {"model_name": LLM, "inputs": inputs(over_aio, prompt(False))}

        async for result, error in api.stream_infer(asked()):
            expect(error is None, str(error))
            expect(result.as_numpy("text_output")[0], "the answer is empty")
            return


@client.capability("embeddings over gRPC")
def embeddings() -> None:
    said: queue.Queue[Any] = queue.Queue()
    with over_grpc.InferenceServerClient(TRITON_GRPC) as api:
        api.start_stream(lambda result, error: said.put(error or result))
        values = {"text_input": np.array([b"a red circle"], object), "task": np.array([b"embed"], object)}
        api.async_stream_infer(LLM, inputs(over_grpc, values))
        result = said.get(timeout=60)
        expect(not isinstance(result, Exception), str(result))
        made = result.as_numpy("embedding")
        expect(made.dtype == np.float32 and made.size > 100 and np.isfinite(made).all(), f"it is {made!r}")
        api.stop_stream()


client.main()
