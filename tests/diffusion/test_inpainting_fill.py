"""What a part of a picture that is drawn anew begins as, with UNets whose answers are known."""

from __future__ import annotations

import numpy as np
import pytest

from nereid.diffusion.loop import DenoisingLoop
from nereid.diffusion.plan import OUT, commit, pack
from nereid.diffusion.requests import parse_image_request
from nereid.diffusion.settings import Limits
from nereid.flow.errors import InvalidRequestError
from nereid.flow.noise import Purpose, normal

from image_forms import Array, MortalUnet, Unet, begun, finish, pipeline, request, text, whole
from masked_pictures import DRAWN, PICTURE, POINT, answer, drawn, encode, latents, masked, sample

NOISE = normal(3, Purpose.INITIAL_LATENTS, (4, 8, 8))
FILLS = {"original": latents(), "latent_noise": NOISE, "latent_nothing": np.zeros_like(NOISE)}
MADE_FOR_IT = pipeline(inpainting=True)


def filled(fill: str, **inputs: Array) -> dict[str, Array]:
    return masked(**{"inpainting_fill": text(fill), "strength": POINT, **inputs})


@pytest.mark.parametrize("fill", FILLS)
@pytest.mark.parametrize("facts", [pipeline(), MADE_FOR_IT], ids=["any", "made for it"])
def test_a_part_begins_as_it_says_with_the_starts_noise_added_and_the_rest_as_the_picture(facts: object, fill: str) -> None:
    """As AUTOMATIC1111 has it: noise in the part is the very noise that the start adds."""
    task = begun(filled(fill), facts, encode=encode)
    signal, level = task.runs[0].row.table.levels[0]
    begins = np.where(DRAWN, FILLS[fill], latents())
    assert 0 < signal < 1
    assert np.allclose(sample(task), signal * begins + level * NOISE, atol=1e-6)


@pytest.mark.parametrize("fill", FILLS)
def test_whatever_it_begins_as_the_rest_ends_as_the_pictures_own_latents(fill: str) -> None:
    (task,) = drawn(filled(fill))
    assert np.array_equal(sample(task)[:, ~DRAWN], latents()[:, ~DRAWN])


def test_a_part_that_is_replaced_altogether_begins_so_too_and_by_default_as_noise_alone() -> None:
    whole_part = {"strength": np.array([[1.0]], np.float32)}
    alone = sample(begun(masked(), encode=encode))
    assert np.array_equal(sample(begun(filled("original", **whole_part), encode=encode)), alone)
    for fill in ("latent_noise", "latent_nothing"):
        task = begun(filled(fill, **whole_part), encode=encode)
        signal, level = task.runs[0].row.table.levels[0]
        assert task.runs[0].step == 0
        assert np.allclose(sample(task)[:, DRAWN], (signal * FILLS[fill] + level * NOISE)[:, DRAWN], atol=1e-6)


def test_the_given_starting_noise_is_what_fills_it() -> None:
    given = np.random.default_rng(4).standard_normal((1, 4, 8, 8)).astype(np.float32)
    task = begun(filled("latent_noise", latents=given), encode=encode)
    signal, level = task.runs[0].row.table.levels[0]
    assert np.allclose(sample(task)[:, DRAWN], ((signal + level) * given[0])[:, DRAWN], atol=1e-6)


def test_with_others_beside_it_and_after_a_death_a_filled_part_has_the_same_bytes() -> None:
    asked = [filled(fill, seed=np.array([[seed]])) for fill, seed in zip(FILLS, (3, 4, 5), strict=True)]
    alone = [sample(drawn(one)[0]) for one in asked]
    runs = [begun(one, encode=encode).runs[0] for one in asked]
    while going := [run for run in runs if not run.done]:
        call = pack(going)
        assert commit(going, call, {OUT: answer(call.inputs)}) == [None] * len(going)
    numbers = iter(range(100))
    again = [begun(one, encode=encode) for one in asked]
    finish(DenoisingLoop(MortalUnet(lambda _: next(numbers) == 1, answer=answer), 16), *again)
    for one, run, task in zip(alone, runs, again, strict=True):
        assert np.array_equal(one, run.state.sample)
        assert np.array_equal(one, sample(task))


def test_a_filled_run_in_segments_is_the_whole_run() -> None:
    asked = filled("latent_nothing", num_inference_steps=whole(8), scheduler=text("dpmpp_2m"))
    (first,) = drawn({**asked, "step_end": whole(6)})
    state = first.runs[0].state
    (second,) = drawn({**asked, "step_begin": whole(6), "latents": state.sample[None], "solver_memory": state.memory[None]})
    assert np.array_equal(sample(second), sample(drawn(asked)[0]))


@pytest.mark.parametrize(
    ("inputs", "sentence"),
    [
        (
            filled("latent noise"),
            "inpainting_fill: 'latent noise' is not allowed; it must be original, latent_noise, latent_nothing",
        ),
        (
            request(init_image=PICTURE, inpainting_fill=text("latent_noise")),
            "inpainting_fill: it has no meaning without mask_image",
        ),
    ],
)
def test_what_a_part_cannot_begin_as_is_refused_in_one_sentence(inputs: dict[str, Array], sentence: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        parse_image_request(inputs, pipeline(), Limits())
    assert (str(caught.value), caught.value.field) == (sentence, "inpainting_fill")


def test_what_a_part_begins_as_anyway_may_be_said_without_one() -> None:
    finish(DenoisingLoop(Unet(answer), 16), begun(request(init_image=PICTURE, inpainting_fill=text("original")), encode=encode))
