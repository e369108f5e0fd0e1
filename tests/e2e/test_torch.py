"""AOTInductor packages behind a real Triton: what diffusers draws, the same bytes in any company, refusals by name."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from nereid_client import Client

from conftest import Served, export, in_company, serving

torch = pytest.importorskip("torch")
import diffusers
from tritonclient import grpc
from tritonclient.utils import InferenceServerException

from nereid_export.drawing import psnr
from nereid_export.engines import Engine

from checkpoints import make_smallest_sdxl

# Five components are compiled.
pytestmark = [pytest.mark.triton, pytest.mark.torch, pytest.mark.timeout(1800)]

REQUEST = {"seed": 41, "num_inference_steps": 9, "scheduler": "euler_a"}


@pytest.fixture(scope="module")
def on_torch(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("torch")
    checkpoint = make_smallest_sdxl(folder / "checkpoint")
    with torch._inductor.config.patch({"aot_inductor.compile_wrapper_opt_level": "O0"}):  # it compiles sooner
        export(checkpoint, folder / "repository", engine=Engine.TORCH)
    yield from serving(folder / "repository", folder, {"sdxl": checkpoint})


@pytest.mark.parametrize("guidance_scale", [1.0, 5.0])
def test_a_served_pipeline_equals_diffusers(on_torch: Served, guidance_scale: float) -> None:
    pipeline = diffusers.StableDiffusionXLPipeline.from_pretrained(on_torch.checkpoints["sdxl"], torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = diffusers.DDIMScheduler.from_config(pipeline.scheduler.config, clip_sample=False)
    latents = np.random.default_rng(3).standard_normal((4, 8, 12)).astype(np.float32)
    options = {"num_inference_steps": 10, "guidance_scale": guidance_scale, "width": 24, "height": 16}
    theirs = pipeline("a red circle", latents=torch.from_numpy(latents[None]), output_type="np", **options).images
    with Client(on_torch.grpc_url, timeout=120) as client:
        ours = client.generate_image("a red circle", scheduler="ddim", latents=latents, **options)
    assert psnr(ours.pixels, np.rint(theirs * 255).astype(np.uint8)) >= 45


def test_the_same_bytes_alone_and_in_company(on_torch: Served) -> None:
    with Client(on_torch.grpc_url, timeout=120) as client:
        alone = client.generate_image("a red circle", **REQUEST)
        assert np.array_equal(alone.pixels, in_company(client, "a red circle", **REQUEST).pixels)


def test_a_stream_and_an_image_to_start_from_call_engines_by_their_own_names(on_torch: Served) -> None:
    start = np.random.default_rng(1).integers(0, 255, (32, 32, 3), np.uint8)
    with Client(on_torch.grpc_url, timeout=120) as client:
        made = client.generate_image("a box", init_image=start, strength=0.6, **REQUEST)
        *previews, last = client.stream_image("a box", init_image=start, strength=0.6, **REQUEST)
    assert previews
    assert np.array_equal(last.pixels, made.pixels)


def test_direct_callers_get_shapes_refused_and_the_model_keeps_serving(on_torch: Served) -> None:
    def tensor(name: str, *shape: int) -> grpc.InferInput:
        made = grpc.InferInput(name, list(shape), "FP32")
        made.set_data_from_numpy(np.zeros(shape, np.float32))
        return made

    with grpc.InferenceServerClient(on_torch.grpc_url) as client:
        config = client.get_model_config("unet").config
        widths = [tensor.dims[-1] for tensor in config.input]
        good = [tensor("INPUT__0", 3, 4, 8, 8), tensor("INPUT__1", 3, 1), tensor("INPUT__2", 3, 7, widths[2])]
        good += [tensor("INPUT__3", 3, widths[3]), tensor("INPUT__4", 3, widths[4])]
        with pytest.raises(InferenceServerException, match=r"INPUT__1 \(timestep\): batch 2 is not allowed; it must be 3"):
            client.infer("unet", [good[0], tensor("INPUT__1", 2, 1), *good[2:]])
        result = client.infer("unet", good).as_numpy("OUTPUT__0")
        assert result is not None
        assert result.shape == (3, 4, 8, 8)
