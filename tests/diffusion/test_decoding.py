"""`image_output` below Triton: whole pictures at once, large ones by tiles until nobody waits, whatever else is decoded."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nereid.diffusion.decoding import DecodingService, DecodingSettings
from nereid.flow.errors import (
    CancelledError,
    DeadlineError,
    EngineError,
    InvalidRequestError,
    LostError,
    PoisonousRequestError,
    RequestError,
)

from image_forms import Array, text

LOST = LostError("vae_decoder: Stub process 'vae_decoder_0_0' is not healthy.")
SMALL, LARGE = (1, 4, 8, 8), (1, 4, 16, 16)
"""One call, and the sixteen of tiles of 64 pixels."""
CUT = {"tile_sample_min_size": np.array([[64]], np.int32), "tile_overlap_factor": np.array([[0.25]], np.float32)}


class Models:
    """A decoder that enlarges, a `denoise` that knows one run, and a clock; `before` is called before each decoder call."""

    def __init__(self) -> None:
        self.decoded: list[tuple[int, ...]] = []
        self.decoder = "the_decoder"
        self.asked = 0
        self.state = b"running"
        self.now = 0.0
        self.processes = {1, 2}
        self.before: Callable[[], None] = lambda: None
        self.denoise_error: RequestError | None = None

    def call(self, name: str, inputs: Mapping[str, Array], outputs: Sequence[str]) -> dict[str, Array]:
        assert (name, set(inputs), list(outputs)) == (self.decoder, {"latents"}, ["image"])
        self.before()
        self.decoded.append(inputs["latents"].shape)
        return {"image": inputs["latents"][:, :3].repeat(8, axis=2).repeat(8, axis=3)}

    def ask(self, name: str, inputs: Mapping[str, Array], outputs: Sequence[str]) -> dict[str, Array]:
        assert (name, list(inputs), list(outputs)) == ("the_denoise", ["decoding"], ["run_state"])
        assert inputs["decoding"].item() == b"run"
        self.asked += 1
        if self.denoise_error is not None:
            raise self.denoise_error
        return {"run_state": text(self.state.decode())}

    def service(self, call: Any = None, tiny_decoder: bool = False, **options: Any) -> DecodingService:
        given = {
            "vae_decoder_model": "the_decoder",
            "vae_decoder_tiny_model": "the_tiny_one",
            "denoise_model": "the_denoise",
            **options,
        }
        settings = DecodingSettings.from_parameters({name: str(value) for name, value in given.items()})
        return DecodingService(
            settings=settings,
            vae_scale_factor=8,
            call=call or self.call,
            ask=self.ask,
            decoders=lambda model: frozenset(self.processes),
            tiny_decoder=tiny_decoder,
            clock=lambda: self.now,
        )

    def decode(self, shape: tuple[int, ...], cancelled: Callable[[], bool] = lambda: False, **inputs: Array) -> Array:
        return self.service().decode({"latents": values(shape), **CUT, **inputs}, cancelled)["generated_image"]


def values(shape: tuple[int, ...], seed: int = 0) -> Array:
    return np.random.default_rng(seed).uniform(-1, 1, shape).astype(np.float32)


def left(seconds: float) -> Array:
    return np.array([[seconds]], np.float32)


@pytest.fixture(autouse=True)
def _quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nereid.diffusion.decoder.PAUSE_SECONDS", 0.0)


def test_a_small_picture_is_one_call_and_nobody_is_asked() -> None:
    models = Models()

    def never() -> bool:
        raise AssertionError("it takes one call, whatever the answer")

    pixels = models.decode((3, 4, 8, 8), never, run_id=text("run"), seconds_left=left(5))
    assert models.decoded == [(3, 4, 8, 8)]
    assert models.asked == 0
    assert pixels.shape == (3, 64, 64, 3)
    assert pixels.dtype == np.uint8


def test_a_large_picture_is_tiles_and_says_before_each_that_it_goes_on() -> None:
    models = Models()
    pixels = models.decode(LARGE, run_id=text("run"))
    assert models.decoded == [SMALL] * 16
    assert models.asked == 16
    expected = np.rint((values(LARGE)[0, :3] * 0.5 + 0.5) * 255).transpose(1, 2, 0).repeat(8, axis=0).repeat(8, axis=1)
    assert np.abs(pixels[0] - expected).max() <= 1
    assert models.decode((2, *LARGE[1:])).shape == (2, 128, 128, 3)  # a caller without a run
    assert models.asked == 16


def test_a_run_that_was_cancelled_ends_before_its_next_tile() -> None:
    for how in ("by its id", "by Triton"):
        models = Models()
        models.before = lambda models=models, how=how: setattr(models, "state", b"failed" if how == "by its id" else b"running")
        with pytest.raises(CancelledError):
            models.decode(LARGE, lambda models=models, how=how: how == "by Triton" and bool(models.decoded), run_id=text("run"))
        assert len(models.decoded) == 1


def test_a_deadline_counts_between_tiles_from_the_request_s_arrival() -> None:
    models = Models()

    def second() -> None:
        models.now += 1

    models.before = second
    with pytest.raises(DeadlineError, match="timeout_seconds: the time is up after 3 calls of the VAE decoder") as caught:
        models.decode(LARGE, seconds_left=left(2.5))
    assert caught.value.field == "timeout_seconds"
    models.now, models.decoded = 100.0, []
    with pytest.raises(DeadlineError, match="after 0 calls"):
        models.service().decode({"latents": values(SMALL), **CUT, "seconds_left": left(5)}, lambda: False, arrived=95.0)
    assert not models.decoded


def test_a_decoder_that_died_is_called_again_for_the_same_tile() -> None:
    models, answers = Models(), iter([True, False, False, False, *[True] * 15])

    def die() -> None:
        if not next(answers):
            raise LOST

    models.before = die
    undisturbed = Models().decode(LARGE)
    assert np.array_equal(models.decode(LARGE), undisturbed)
    assert models.decoded == [SMALL] * 16
    assert next(answers, None) is None


def test_a_decoder_that_stays_away_is_waited_for_until_the_deadline_however_late(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nereid.diffusion.decoder.MAX_SECONDS", -1.0)
    models = Models()

    def die() -> None:
        models.now += 1
        raise LOST

    models.before = die
    with pytest.raises(DeadlineError, match="after 0 calls of the VAE decoder"):
        models.decode(SMALL, seconds_left=left(300))
    assert models.now == 300


def test_who_has_no_deadline_waits_for_a_while_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nereid.diffusion.decoder.MAX_SECONDS", 0.05)
    models, called = Models(), [0]

    def die() -> None:
        called[0] += 1
        raise LOST

    models.before = die
    with pytest.raises(LostError, match="is not healthy"):
        models.decode(SMALL)
    assert called[0] > 1


def test_a_picture_that_kills_the_decoder_alone_twice_is_refused() -> None:
    models, deaths = Models(), itertools.count(10)

    def die() -> None:
        models.processes.pop()
        models.processes.add(next(deaths))  # the supervisor's work
        raise LOST

    models.before = die
    with pytest.raises(PoisonousRequestError):
        models.decode(SMALL)
    assert next(deaths) == 12


def test_to_meet_a_dead_process_is_to_have_killed_none() -> None:
    """Of two, one has died: calls go to the other, or fail at once, until it is replaced."""
    models, answers = Models(), iter([False, True, False, False, False, True])
    models.processes = {2}

    def meet() -> None:
        if not next(answers):
            raise LOST

    models.before = meet
    for _ in range(2):
        models.decode(SMALL)
    assert next(answers, None) is None


def test_those_inside_at_a_death_have_the_decoder_to_themselves_from_then_on() -> None:
    """Two at once: after a death with both inside, the one that does not kill is answered, and the other is refused."""
    models, deadly = Models(), values(SMALL, seed=1)
    inside: list[Array] = []
    most: list[int] = []
    both, lock, first, deaths = threading.Barrier(2), threading.Lock(), iter([True, True]), itertools.count(10)

    def call(name: str, inputs: Mapping[str, Array], outputs: Sequence[str]) -> dict[str, Array]:
        given = inputs["latents"]
        with lock:
            begins = next(first, False)
            inside.append(given)
            most.append(len(inside))
        if begins:
            both.wait(30)
        kills = begins or np.array_equal(given, deadly)
        with lock:
            if kills:
                models.processes = {next(deaths)}
        if begins:
            both.wait(30)
        else:
            time.sleep(0.1)  # long enough for another to come in
        with lock:
            inside.pop()
        if kills:
            raise LOST
        return Models().call(name, inputs, outputs)

    service = models.service(call)
    with ThreadPoolExecutor(2) as pool:
        jobs = [pool.submit(service.decode, {"latents": given}, lambda: False) for given in (values(SMALL), deadly)]
        assert jobs[0].result(30)["generated_image"].shape == (1, 64, 64, 3)
        assert isinstance(jobs[1].exception(30), PoisonousRequestError)
    assert most == [1, 2, 1, 1]


@pytest.mark.parametrize("error", [EngineError("vae_decoder: out of memory"), InvalidRequestError("latents: no", "latents")])
def test_the_decoders_own_errors_keep_their_type_and_words(error: RequestError) -> None:
    models = Models()

    def fail() -> None:
        raise error

    models.before = fail
    with pytest.raises(type(error)) as caught:
        models.decode(LARGE)
    assert caught.value is error


def test_a_denoise_that_died_does_not_end_what_it_has_made() -> None:
    models = Models()
    models.denoise_error = LostError("denoise: no answer within 10 s")
    assert models.decode(LARGE, run_id=text("run")).shape == (1, 128, 128, 3)


def test_a_caller_who_says_nothing_of_tiles_gets_the_whole_and_half_a_word_or_a_wrong_one_is_refused() -> None:
    models = Models()
    models.service().decode({"latents": values(LARGE)}, lambda: False)
    assert models.decoded == [LARGE]
    for name, wrong in (("tile_sample_min_size", 72), ("tile_overlap_factor", 0.5)):
        with pytest.raises(InvalidRequestError, match=f"{name}: {wrong} is not allowed") as caught:
            models.decode(LARGE, **{name: np.array([[wrong]], CUT[name].dtype)})
        assert caught.value.field == name
        given = {key: value for key, value in CUT.items() if key != name}
        with pytest.raises(InvalidRequestError, match=f"{name}: nothing is not allowed"):
            models.service().decode({"latents": values(LARGE), **given}, lambda: False)


def test_latents_without_places_are_refused() -> None:
    with pytest.raises(InvalidRequestError, match="shape of latents"):
        Models().decode((1, 4, 0, 8))


def test_pictures_of_a_request_are_sliced_where_the_config_says_so() -> None:
    models = Models()
    models.service(use_slicing="true").decode({"latents": values((3, 4, 8, 8)), **CUT}, lambda: False)
    assert models.decoded == [SMALL] * 3


def test_a_parameter_that_nobody_reads_is_refused() -> None:
    with pytest.raises(ValueError, match="parameter use_slices: not known; did you mean use_slicing"):
        DecodingSettings.from_parameters({"use_slices": "true"})


# --- with the engine ---


@pytest.fixture(scope="module")
def engine(checkpoints: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A tiny decoder with attention, as ONNX Runtime runs it; pixels are 4 a latent."""
    pytest.importorskip("torch")
    from nereid_export.checkpoint import Checkpoint
    from nereid_export.components import components_of
    from nereid_export.engines import BUILDERS, Engine
    from nereid_export.engines.base import Samples, Target
    from nereid_export.engines.precision import Precision
    from nereid_export.frame import Device

    component = next(part for part in components_of(Checkpoint.open(checkpoints["sd"])) if part.name == "vae_decoder")
    target = Target(precision=Precision.FP32, device=Device.CPU, max_batch_size=4, default_side=64, max_side=64, scale=4)
    folder, builder = tmp_path_factory.mktemp("decoder"), BUILDERS[Engine.ONNXRUNTIME]
    builder.build(component, component.load(), folder, target, Samples(()))
    return builder.load(component, folder, target)


@pytest.mark.torch
def test_a_tiled_picture_has_the_same_bytes_alone_and_with_tiles_of_others_in_its_calls(engine: Any) -> None:
    settings = DecodingSettings()
    mates = values((2, 4, 16, 16), seed=9)

    def alone(name: str, inputs: Mapping[str, Array], outputs: Sequence[str]) -> dict[str, Array]:
        return dict(engine(inputs, outputs))

    def in_company(name: str, inputs: Mapping[str, Array], outputs: Sequence[str]) -> dict[str, Array]:
        assert inputs["latents"].shape == (1, 4, 16, 16)
        row = len(calls) % 3
        calls.append(row)
        together = np.insert(mates, row, inputs["latents"], axis=0)
        return {"image": engine({"latents": together}, outputs)["image"][row : row + 1]}

    calls: list[int] = []
    given = {"latents": values((1, 4, 24, 40)), **CUT}
    made = [
        DecodingService(settings=settings, vae_scale_factor=4, call=call, ask=call).decode(given, lambda: False)
        for call in (alone, in_company)
    ]
    assert len(calls) == 8
    assert made[0]["generated_image"].shape == (1, 96, 160, 3)
    assert np.array_equal(made[0]["generated_image"], made[1]["generated_image"])


def test_a_request_for_the_tiny_decoder_is_decoded_by_it_whole_and_by_tiles() -> None:
    models = Models()
    models.decoder = "the_tiny_one"
    service = models.service(tiny_decoder=True)
    service.decode({"latents": values(SMALL), **CUT, "decoder": text("tiny")}, lambda: False)
    service.decode({"latents": values(LARGE), **CUT, "decoder": text("tiny")}, lambda: False)
    assert models.decoded == [SMALL] * 17
    models.decoder = "the_decoder"
    service.decode({"latents": values(SMALL), **CUT, "decoder": text("full")}, lambda: False)


def test_the_deaths_of_one_decoder_do_not_count_for_the_other() -> None:
    models, asked = Models(), set()

    def decoders(model: str) -> frozenset[int]:
        asked.add(model)
        return frozenset(models.processes)

    service = replace(models.service(tiny_decoder=True), decoders=decoders)
    for models.decoder, name in (("the_tiny_one", "tiny"), ("the_decoder", "full")):
        asked.clear()
        service.decode({"latents": values(SMALL), "decoder": text(name)}, lambda: False)
        assert asked == {models.decoder}


@pytest.mark.parametrize(
    ("name", "tiny", "said"),
    [
        ("tiny", False, "it must be full: the pipeline was exported without a tiny one (--tiny-vae)"),
        ("huge", True, "it must be full or tiny"),
        ("huge", False, "it must be full"),
    ],
)
def test_a_decoder_that_is_not_there_is_refused_by_name(name: str, tiny: bool, said: str) -> None:
    with pytest.raises(InvalidRequestError) as refused:
        Models().service(tiny_decoder=tiny).decode({"latents": values(SMALL), "decoder": text(name)}, lambda: False)
    assert refused.value.field == "decoder"
    assert str(refused.value) == f"decoder: {name!r} is not allowed; {said}"
