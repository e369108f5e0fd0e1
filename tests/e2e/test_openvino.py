"""Models on OpenVINO behind a real Triton: what diffusers and transformers make, the same in any company, refusals by name."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psutil
import pytest

from nereid_client import Client
from nereid_zoo.sections.chat import conversation
from nereid_zoo.sections.score import CHECKPOINT as SECTIONS
from nereid_zoo.sections.score import held_out_briefs

from conftest import Served, export, export_llm, in_company, serving, stub_of

torch = pytest.importorskip("torch")
pytest.importorskip("openvino")
import diffusers
from tritonclient import grpc
from tritonclient.utils import InferenceServerException

from nereid_export.drawing import psnr
from nereid_export.engines import Engine
from nereid_export.llm_options import LlmEngine

pytestmark = [pytest.mark.triton, pytest.mark.torch]

PIPELINES = {"": "sd", "xl": "sdxl"}
REQUEST = {"seed": 41, "num_inference_steps": 9, "scheduler": "euler_a"}


@pytest.fixture(scope="module")
def on_openvino(checkpoints: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("openvino")
    for name, family in PIPELINES.items():
        export(checkpoints[family], folder / "repository", name=name, engine=Engine.OPENVINO)
    export_llm(SECTIONS, folder / "repository", precision="fp32", engine=LlmEngine.OPENVINO)
    yield from serving(folder / "repository", folder, checkpoints)


@pytest.mark.parametrize("guidance_scale", [1.0, 5.0])
@pytest.mark.parametrize("name", PIPELINES)
def test_served_pipelines_equal_diffusers(on_openvino: Served, name: str, guidance_scale: float) -> None:
    kind = diffusers.StableDiffusionXLPipeline if name else diffusers.StableDiffusionPipeline
    pipeline = kind.from_pretrained(on_openvino.checkpoints[PIPELINES[name]], torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = diffusers.DDIMScheduler.from_config(pipeline.scheduler.config, clip_sample=False)
    latents = np.random.default_rng(3).standard_normal((4, 8, 8)).astype(np.float32)
    options = {"num_inference_steps": 10, "guidance_scale": guidance_scale, "width": 32, "height": 32}
    theirs = pipeline("a red circle", latents=torch.from_numpy(latents[None]), output_type="np", **options).images
    with Client(on_openvino.grpc_url, name=name, timeout=120) as client:
        ours = client.generate_image("a red circle", scheduler="ddim", latents=latents, **options)
    assert psnr(ours.pixels, np.rint(theirs * 255).astype(np.uint8)) >= 45


@pytest.mark.parametrize("guidance_scale", [1.0, 6.0])
def test_the_same_bytes_alone_in_company_and_as_one_of_several(on_openvino: Served, guidance_scale: float) -> None:
    """Guidance 1 takes one row a step: alone it would be computed by another kernel."""
    request = {**REQUEST, "guidance_scale": guidance_scale}
    with Client(on_openvino.grpc_url, timeout=120) as client:
        alone = client.generate_image("a red circle", **request)
        assert np.array_equal(alone.pixels, in_company(client, "a red circle", **request).pixels)
        several = client.generate_image("a red circle", **request, num_images_per_prompt=3)
        for pixels, seed in zip(several.pixels, several.seeds, strict=True):
            again = client.generate_image("a red circle", **{**request, "seed": seed})
            assert np.array_equal(again.pixels[0], pixels)


def test_an_image_to_start_from_is_encoded(on_openvino: Served) -> None:
    start = np.random.default_rng(1).integers(0, 255, (32, 32, 3), np.uint8)
    with Client(on_openvino.grpc_url, timeout=120) as client:
        made = [client.generate_image("a box", init_image=start, strength=s, **REQUEST).pixels for s in (0.4, 0.4, 0.9)]
    assert np.array_equal(made[0], made[1])
    assert not np.array_equal(made[0], made[2])


def test_direct_callers_get_shapes_refused_and_the_model_keeps_serving(on_openvino: Served) -> None:
    def tensor(name: str, *shape: int) -> grpc.InferInput:
        made = grpc.InferInput(name, list(shape), "FP32")
        made.set_data_from_numpy(np.zeros(shape, np.float32))
        return made

    with grpc.InferenceServerClient(on_openvino.grpc_url) as client:
        states = client.get_model_config("unet").config.input[2].dims[-1]
        good = [tensor("sample", 3, 4, 8, 8), tensor("timestep", 3, 1), tensor("encoder_hidden_states", 3, 7, states)]
        bad = [good[0], tensor("timestep", 2, 1), good[2]]
        with pytest.raises(InferenceServerException) as caught:
            client.infer("unet", bad)
        assert "\n" not in str(caught.value)
        result = client.infer("unet", good).as_numpy("out_sample")
        assert result is not None
        assert result.shape == (3, 4, 8, 8)


def test_greedy_tokens_are_transformers_own_alone_in_company_and_after_the_workers_death(on_openvino: Served) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(SECTIONS)
    model = AutoModelForCausalLM.from_pretrained(SECTIONS, dtype=torch.float32).eval()
    prompts = [conversation(brief.text) for brief in held_out_briefs(4, seed=3)]
    expected = []
    for prompt in prompts:
        given = tokenizer(prompt, return_tensors="pt")
        made = model.generate(**given, do_sample=False, max_new_tokens=60)
        expected.append(made[0, given.input_ids.shape[1] :].tolist())
    with Client(on_openvino.grpc_url, timeout=120) as client:

        def tokens(prompt: str) -> list[int]:
            return list(client.generate_text(prompt, temperature=0, max_tokens=60).choices[0].token_ids)

        assert [tokens(prompt) for prompt in prompts] == expected
        (worker,) = stub_of(on_openvino, "llm").children()
        with ThreadPoolExecutor(4) as pool:
            company = [pool.submit(tokens, prompt) for prompt in prompts]
            psutil.Process(worker.pid).kill()
            assert [made.result() for made in company] == expected
