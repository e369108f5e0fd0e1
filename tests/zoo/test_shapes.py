"""The shapes checkpoint: its data, its analyser, and the shipped weights."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from random import Random

import numpy as np
import pytest

from nereid_client import Client
from nereid_zoo.shapes.analyse import analyse, mistakes
from nereid_zoo.shapes.captions import write_caption
from nereid_zoo.shapes.scenes import Layout, Scene, SceneObject, Shape, Size, render, sample_scene
from nereid_zoo.shapes.score import CHECKPOINT, STUDENTS, held_out_captions, score, scorer_for, served_drawer, torch_drawer

from conftest import Served, export, serving


def test_analyser_finds_every_rendered_scene_right() -> None:
    rng = Random(1)
    for _ in range(150):
        scene = sample_scene(rng, held_out=rng.random() < 0.5)
        caption = write_caption(scene, rng)
        assert mistakes(analyse(render(scene)), caption.demand) == [], caption.text


def test_analyser_sees_each_kind_of_mistake() -> None:
    def scene(color: str = "red", shape: Shape = Shape.CIRCLE, x: float = 34.0, background: str = "white") -> Scene:
        item = SceneObject(color=color, shape=shape, size=Size.LARGE, x=x, y=34.0, radius=23.0)
        return Scene(objects=(item,), background=background, layout=Layout.SINGLE)

    rng = Random(0)
    while True:
        caption = write_caption(scene(), rng)
        wanted = caption.demand.objects[0]
        if wanted.position and wanted.size and caption.demand.background:
            break
    for wrong, words in (
        (scene(color="blue"), "color blue"),
        (scene(shape=Shape.SQUARE), "shape square"),
        (scene(x=94.0), "position top right"),
        (scene(background="black"), "background black"),
    ):
        assert any(words in found for found in mistakes(analyse(render(wrong)), caption.demand))
    noise = np.random.default_rng(0).integers(0, 256, (128, 128, 3), dtype=np.uint8)
    assert mistakes(analyse(noise), caption.demand)
    assert mistakes(analyse(np.full((128, 128, 3), 250, np.uint8)), caption.demand) == ["0 objects instead of 1"]


def test_held_out_combinations_are_never_trained_on() -> None:
    rng = Random(2)
    trained = {sample_scene(rng).combination for _ in range(3000)}
    held_out = {sample_scene(rng, held_out=True).combination for _ in range(500)}
    assert not trained & held_out


@pytest.mark.parametrize("folder", [CHECKPOINT, *STUDENTS.values()])
def test_a_shipped_checkpoint_is_small_safe_and_an_ordinary_diffusers_folder(folder: Path) -> None:
    files = [file for file in folder.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) < 40 * 2**20
    assert {file.suffix for file in files} <= {".json", ".safetensors", ".txt"}
    assert json.loads((folder / "model_index.json").read_text())["_class_name"] == "StableDiffusionPipeline"
    assert scorer_for(folder) is not None


@pytest.mark.parametrize(("student", "steps"), [(4, 4), (2, 2), (2, 1)])
def test_a_student_draws_right_in_its_steps_without_guidance(student: int, steps: int) -> None:
    """A sample of what `nereid zoo score shapes --path zoo/shapes/student-2step --steps 2` measures in full."""
    captions = held_out_captions(24, seed=5)
    assert score(torch_drawer(STUDENTS[student], steps=steps, guidance=1.0), captions).percent >= 75


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("shapes")
    export(CHECKPOINT, folder / "repository")
    yield from serving(folder / "repository", folder, {})


@pytest.mark.triton
def test_served_pictures_show_what_captions_say_and_equal_pytorchs(shapes: Served) -> None:
    """A sample of what `nereid zoo score shapes` measures in full; random pictures score 0."""
    captions = held_out_captions(24, seed=5)
    with Client(shapes.grpc_url, timeout=300) as client:
        served = score(served_drawer(client, steps=20, guidance=5.0), captions)
    plain = score(torch_drawer(CHECKPOINT, steps=20, guidance=5.0), captions)
    assert served.percent >= 75
    assert abs(served.right - plain.right) <= 1


@pytest.mark.triton
def test_image_to_image_keeps_the_scene_at_low_strength(shapes: Served) -> None:
    scene = sample_scene(Random(8))
    picture = render(scene)
    with Client(shapes.grpc_url, timeout=300) as client:
        near = client.generate_image("a red circle", init_image=picture, strength=0.1, seed=1, guidance_scale=1.0)
        far = client.generate_image("a red circle", init_image=picture, strength=1.0, seed=1, guidance_scale=1.0)

    def distance(result: np.ndarray) -> float:
        return float(np.abs(result.astype(float) - picture).mean())

    assert distance(near.pixels[0]) < 0.5 * distance(far.pixels[0])


@pytest.mark.triton
def test_previews_show_the_picture_small(shapes: Served) -> None:
    from nereid_client import ImageProgress, ImageResult

    with Client(shapes.grpc_url, timeout=300) as client:
        answers = list(client.stream_image("a large red circle on a white background", seed=1, num_inference_steps=10))
    last, result = answers[-2], answers[-1]
    assert isinstance(last, ImageProgress)
    assert isinstance(result, ImageResult)
    small = np.asarray(result.image.resize((16, 16)), dtype=float)
    assert (
        np.corrcoef(small.ravel(), last.preview.astype(float).ravel())[0, 1] > 0.4
    )  # the best linear map of these latents reaches 0.75
