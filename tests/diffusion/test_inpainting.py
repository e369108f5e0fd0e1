"""Pictures of which a part is drawn anew, with UNets whose answers are known."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest

from nereid.diffusion.inpainting import mask_of, what_stays
from nereid.diffusion.loop import DenoisingLoop
from nereid.diffusion.plan import OUT, commit, pack
from nereid.diffusion.requests import parse_image_request
from nereid.diffusion.settings import Limits
from nereid.flow.errors import InvalidRequestError
from nereid.flow.fields import FieldReader
from nereid.flow.noise import Purpose, normal

from image_forms import Array, MortalUnet, Unet, begun, finish, pipeline, request, text, whole
from masked_pictures import DRAWN, MASK, PICTURE, POINT, answer, drawn, encode, latents, masked, sample


def refused(**inputs: Array) -> InvalidRequestError:
    with pytest.raises(InvalidRequestError) as caught:
        parse_image_request(inputs, pipeline(), Limits())
    return caught.value


def test_what_is_not_drawn_anew_ends_as_the_pictures_own_latents() -> None:
    (task,) = drawn(masked(strength=POINT))
    assert np.array_equal(sample(task)[:, ~DRAWN], latents()[:, ~DRAWN])
    assert np.abs(sample(task)[:, DRAWN] - latents()[:, DRAWN]).min() > 0


def test_on_its_way_it_is_as_noisy_as_the_step_expects() -> None:
    task = begun(masked(), encode=encode)
    loop = DenoisingLoop(Unet(answer), 16)
    for _ in range(2):
        loop.advance([task])
    run = task.runs[0]
    noise = normal(3, Purpose.INITIAL_LATENTS, (4, 8, 8))
    signal, level = run.row.table.levels[run.step]
    assert 0 < run.step < 5
    assert np.array_equal(run.state.sample[:, ~DRAWN], (signal * latents() + level * noise)[:, ~DRAWN])


def test_a_whole_part_is_replaced_where_nothing_is_said_and_the_run_starts_from_noise_alone() -> None:
    task = begun(masked(), encode=encode)
    assert task.request.rows[0].origin == 0
    noise = normal(3, Purpose.INITIAL_LATENTS, (4, 8, 8))
    assert np.array_equal(sample(task), noise * np.float32(task.request.rows[0].table.initial_scale))
    started = begun(masked(strength=POINT), encode=encode)
    row = started.request.rows[0]
    assert row.origin == 3
    assert np.array_equal(sample(started), row.table.mixed(0, latents(), noise))


@pytest.mark.parametrize("scheduler", ["dpmpp_2m", "ddpm"])
def test_with_others_beside_it_a_picture_has_the_same_bytes(scheduler: str) -> None:
    name = text(scheduler)
    other = np.roll(MASK, 24, axis=1)
    asked = [
        masked(scheduler=name),
        request(seed=np.array([[4]]), scheduler=name),
        masked(mask_image=other, seed=np.array([[5]]), strength=POINT, scheduler=text("unipc")),
        request(init_image=PICTURE, strength=POINT, seed=np.array([[6]])),
    ]
    alone = [sample(drawn(one)[0]) for one in asked]
    runs = [begun(one, encode=encode).runs[0] for one in asked]
    while going := [run for run in runs if not run.done]:  # whatever calls cost, all that are left are in one
        call = pack(going)
        assert commit(going, call, {OUT: answer(call.inputs)}) == [None] * len(going)
    for one, run in zip(alone, runs, strict=True):
        assert np.array_equal(one, run.state.sample)


def test_a_row_has_its_own_mask_and_every_picture_of_a_prompt_the_same() -> None:
    both = {name: np.concatenate([value, value]) for name, value in masked().items()}
    both["mask_image"] = np.concatenate([MASK, 255 - MASK])
    (task,) = drawn({**both, "num_images_per_prompt": np.array([[2], [2]], np.int32)})
    places = [DRAWN, DRAWN, ~DRAWN, ~DRAWN]
    for run, place in zip(task.runs, places, strict=True):
        assert np.array_equal(run.state.sample[:, ~place], latents(run.row.seed)[:, ~place])


def test_an_engine_that_dies_on_the_way_changes_nothing() -> None:
    numbers = iter(range(100))
    dying = MortalUnet(lambda _: next(numbers) == 2, answer=answer)
    (again,) = drawn(masked(), unet=dying)
    assert dying.deaths == 1
    assert np.array_equal(sample(again), sample(drawn(masked())[0]))


@pytest.mark.parametrize("scheduler", ["dpmpp_3m", "unipc", "dpmpp_2s"])
def test_a_run_in_segments_is_the_whole_run(scheduler: str) -> None:
    asked = masked(scheduler=text(scheduler), num_inference_steps=whole(8))
    (first,) = drawn({**asked, "step_end": whole(5)})
    state = first.runs[0].state
    (second,) = drawn({**asked, "step_begin": whole(5), "latents": state.sample[None], "solver_memory": state.memory[None]})
    assert np.array_equal(sample(second), sample(drawn(asked)[0]))


def test_a_mask_does_not_change_what_an_engine_is_told() -> None:
    assert set(pack(begun(masked(), encode=encode).runs).inputs) == set(pack(begun(request()).runs).inputs)


# --- checkpoints made for it ---

MADE_FOR_IT = pipeline(inpainting=True)


def test_a_unet_made_for_it_is_told_the_mask_and_the_rest_of_the_picture() -> None:
    task = begun(masked(), MADE_FOR_IT, encode=encode)
    inputs = pack(task.runs).inputs
    assert inputs["sample"].shape == (2, 4, 8, 8)
    assert np.array_equal(inputs["mask"], np.stack([DRAWN[None].astype(np.float32)] * 2))
    rest, deviation = encode(np.where(MASK[0] > 0, 0, PICTURE.transpose(0, 3, 1, 2) / np.float32(127.5) - np.float32(1)))
    expected = rest[0] + deviation[0] * normal(3, Purpose.MASKED_IMAGE_POSTERIOR, (4, 8, 8))
    assert np.allclose(inputs["masked_image_latents"], np.stack([expected] * 2), atol=1e-6)
    assert inputs["mask"].dtype == inputs["masked_image_latents"].dtype == np.float32


def test_its_sample_is_left_alone() -> None:
    tasks = [begun(masked(strength=POINT), facts, encode=encode) for facts in (MADE_FOR_IT, pipeline())]
    finish(DenoisingLoop(Unet(answer), 16), tasks[0])
    finish(DenoisingLoop(Unet(answer), 16), tasks[1])
    assert np.abs(sample(tasks[0])[:, ~DRAWN] - latents()[:, ~DRAWN]).min() > 0
    assert np.array_equal(sample(tasks[1])[:, ~DRAWN], latents()[:, ~DRAWN])


def test_what_it_is_told_differs_from_row_to_row_and_after_a_death_it_is_told_the_same() -> None:
    def told(inputs: Mapping[str, Array]) -> Array:
        return answer(inputs) + inputs["mask"] * np.float32(0.1) + inputs["masked_image_latents"] * np.float32(0.2)

    asked = [masked(), masked(mask_image=255 - MASK, seed=np.array([[4]])), masked(init_image=255 - PICTURE)]
    tasks = [begun(inputs, MADE_FOR_IT, encode=encode) for inputs in asked]
    numbers = iter(range(100))
    finish(DenoisingLoop(MortalUnet(lambda _: next(numbers) == 3, answer=told), 16), *tasks)
    for inputs, together in zip(asked, tasks, strict=True):
        alone = begun(inputs, MADE_FOR_IT, encode=encode)
        finish(DenoisingLoop(Unet(told), 16), alone)
        assert np.array_equal(sample(together), sample(alone))


def test_a_resumed_run_tells_it_the_same() -> None:
    asked = masked(num_inference_steps=whole(8))
    first = begun({**asked, "step_end": whole(5)}, MADE_FOR_IT, encode=encode)
    state = {"latents": np.zeros((1, 4, 8, 8), np.float32), "solver_memory": np.zeros((1, 4, 4, 8, 8), np.float32)}
    second = begun({**asked, "step_begin": whole(5), **state}, MADE_FOR_IT, encode=encode)
    for name, value in first.runs[0].told.items():
        assert np.array_equal(value, second.runs[0].told[name])


def test_such_a_model_draws_nothing_without_a_mask() -> None:
    for inputs in (request(), request(init_image=PICTURE)):
        with pytest.raises(InvalidRequestError, match="mask_image: nothing is not allowed; this model draws parts of pictures"):
            parse_image_request(inputs, MADE_FOR_IT, Limits())


# --- refusals and warnings ---


HALF = MASK // 2


@pytest.mark.parametrize(
    ("inputs", "field", "words"),
    [
        (request(mask_image=MASK), "mask_image", "mask_image: it has no meaning without init_image"),
        (masked(mask_image=MASK[:, :32]), "mask_image", "shape of mask_image: (32, 64) is not allowed; it must be (64, 64), as"),
        (masked(mask_image=MASK[0]), "mask_image", "type of mask_image: 'uint8 of rank 2' is not allowed"),
        (masked(mask_image=MASK.astype(np.float32)), "mask_image", "it must be uint8 of rank 3"),
        (
            masked(mask_image=MASK // 255),
            "mask_image",
            "largest value of mask_image: 1 is not allowed; it must be 128 to 255 where the picture is drawn anew, or 0 ",
        ),
        (masked(mask_image=HALF), "mask_image", "largest value of mask_image: 127 is not allowed"),
        (
            masked(latents=np.zeros((1, 4, 8, 8), np.float32), step_end=whole(2)),
            "latents",
            "latents: they are not allowed with mask_image and step_end",
        ),
    ],
)
def test_masks_that_say_nothing_clear_are_refused_in_one_sentence(inputs: dict[str, Array], field: str, words: str) -> None:
    error = refused(**inputs)
    assert error.field == field
    assert words in str(error)


def test_a_resumed_run_needs_its_seed() -> None:
    state = {"latents": np.zeros((1, 4, 8, 8), np.float32), "solver_memory": np.zeros((1, 4, 4, 8, 8), np.float32)}
    asked = masked(step_begin=whole(2), **state)
    del asked["seed"]
    assert "seed: nothing is not allowed; a run with mask_image that is resumed at" in str(refused(**asked))


def test_a_mask_that_changes_nothing_warns() -> None:
    between = np.zeros_like(MASK)
    between[:, 1:8, 1:8] = 255  # no latent's own pixel
    for mask in (np.zeros_like(MASK), between):
        (task,) = drawn(masked(mask_image=mask))
        assert task.request.warnings == (
            "mask_image: none of its points at the latents' size, 8 x 8, is 128 or more; nothing is drawn",
        )
        assert np.array_equal(sample(task), latents())
    assert drawn(masked())[0].request.warnings == ()


def test_masks_are_read_as_diffusers_reads_them() -> None:
    """Binarised at one half, and brought to the latents' size by the nearest pixel."""
    torch = pytest.importorskip("torch")
    from diffusers.image_processor import VaeImageProcessor
    from PIL import Image

    greys = np.random.default_rng(2).integers(0, 256, (64, 48), np.uint8)
    processor = VaeImageProcessor(8, do_normalize=False, do_binarize=True, do_convert_grayscale=True)
    theirs = processor.preprocess(Image.fromarray(greys), height=64, width=48)
    fields = FieldReader({"mask_image": greys[None], "init_image": np.zeros((1, 64, 48, 3), np.uint8)}, 1)
    mask = mask_of(fields, 0, (64, 48))
    assert mask is not None
    assert np.array_equal(mask, theirs[0, 0].numpy() == 1)
    assert what_stays(mask, (8, 6)) == []
    task = begun(
        request(init_image=np.zeros((1, 64, 48, 3), np.uint8), mask_image=greys[None]),
        encode=lambda images: (np.zeros((1, 4, 8, 6), np.float32),) * 2,
    )
    source = task.runs[0].source
    assert source is not None
    assert np.array_equal(source.drawn, torch.nn.functional.interpolate(theirs, size=(8, 6))[0, 0].numpy() == 1)
