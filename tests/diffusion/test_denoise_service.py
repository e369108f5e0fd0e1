"""`denoise` below Triton: tickets, watches, cancellation by id, results kept for a replay, suspects."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nereid.diffusion import watching
from nereid.diffusion.feature_cache import FeatureCache
from nereid.diffusion.service import DenoiseService
from nereid.diffusion.settings import Limits
from nereid.diffusion.vae_tiles import BYTES_PER_PIXEL
from nereid.diffusion.watching import PreviewDecode
from nereid.engines.memory import RunMemory
from nereid.flow.errors import (
    CancelledError,
    DeadlineError,
    InvalidRequestError,
    PoisonousRequestError,
    QueueFullError,
    RequestError,
)
from nereid.flow.flight_record import FlightRecord
from nereid.flow.metrics import Recorder

from image_forms import Array, SteppedUnet, Unet, features, pipeline, request, text, whole
from waiting import until

IMAGE = np.zeros((1, 64, 64, 3), np.uint8)


@pytest.fixture(autouse=True)
def _watched_until_there_is_news(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "HOLD_SECONDS", 25.0)


class Answer:
    """One request's reply."""

    def __init__(self) -> None:
        self.came = threading.Event()
        self.outputs: Mapping[str, Array] | None = None
        self.error: RequestError | None = None

    def __call__(self, outputs: Mapping[str, Array] | None, error: RequestError | None) -> None:
        assert not self.came.is_set(), "a request was answered twice"
        self.outputs, self.error = outputs, error
        self.came.set()

    def wait(self) -> Answer:
        assert self.came.wait(30)
        return self

    @property
    def state(self) -> str:
        self.wait()
        assert self.error is None, self.error
        assert self.outputs is not None
        return str(self.outputs["run_state"].item().decode())


@contextmanager
def serving(
    unet: Any = None,
    encode: Any = None,
    record: FlightRecord | None = None,
    facts: Any = None,
    decoders: Callable[[], frozenset[int]] = frozenset,
    decode_preview: PreviewDecode | None = None,
    **limits: Any,
) -> Iterator[DenoiseService]:
    service = DenoiseService(
        pipeline=facts or pipeline(),
        limits=Limits(**limits),
        predict=unet or Unet(),
        encode=encode or (lambda images: (np.zeros((1, 4, 8, 8), np.float32), np.ones((1, 4, 8, 8), np.float32))),
        recorder=Recorder(lambda metric, value, labels: None),
        record=record,
        fingerprint="one",
        decoders=decoders,
        decode_preview=decode_preview,
    )
    try:
        yield service
    finally:
        if isinstance(unet, SteppedUnet):
            unet.allow(10_000)
        service.stop()


def ask(service: DenoiseService, cancelled: bool = False, **inputs: Array) -> Answer:
    answer = Answer()
    service.handle(inputs, answer, lambda: cancelled)
    return answer


@pytest.mark.parametrize(("shape", "field"), [((1, 0, 0, 3), "height"), ((1, 64, 0, 3), "width")])
def test_a_picture_without_pixels_is_refused_by_its_side(shape: tuple[int, ...], field: str) -> None:
    with serving() as service:
        answer = ask(service, **request(init_image=np.zeros(shape, np.uint8))).wait()
    assert isinstance(answer.error, InvalidRequestError)
    assert answer.error.field == field


def draw(service: DenoiseService, cancelled: bool = False, **inputs: Array) -> Answer:
    return ask(service, cancelled, **request(**inputs))


def watch(service: DenoiseService, run: str, after: int | None = None) -> Answer:
    extra = {} if after is None else {"after_step": whole(after)}
    return ask(service, watch=text(run), **extra)


def test_a_place_taken_in_advance_keeps_its_priority() -> None:
    """Everything that comes through the ensemble takes one."""
    unet, once = SteppedUnet(), {"num_inference_steps": whole(1)}
    with serving(unet, max_inflight=1) as service:
        first = draw(service, **once)
        asked = [{"ticket": text(name), "priority": whole(priority), **once} for name, priority in (("a", 5), ("b", 0))]
        for one in asked:
            ask(service, **one).wait()
        usual, urgent = (draw(service, **one) for one in asked)
        for answer in (first, urgent):
            assert not usual.came.is_set()
            unet.allow(1)
            assert answer.wait().error is None
        unet.allow(1)
        assert usual.wait().error is None


def test_a_place_taken_in_advance_counts_and_is_used_by_the_request_that_names_it() -> None:
    with serving(max_inflight=1, max_queue=1, unet=SteppedUnet()) as service:
        draw(service)
        assert ask(service, ticket=text("t1"), run_id=text("run")).state == "waiting"
        refused = ask(service, ticket=text("t2")).wait()
        assert isinstance(refused.error, QueueFullError)
        late = draw(service, ticket=text("t1"), run_id=text("run"))
        service.predict.allow(100)
        assert late.wait().error is None


def test_bad_options_are_refused_before_anything_is_encoded() -> None:
    with serving() as service:
        refused = ask(service, ticket=text("t"), num_inference_steps=whole(10_000)).wait().error
        assert isinstance(refused, InvalidRequestError)
        assert refused.field == "num_inference_steps"
        assert isinstance(ask(service, ticket=text("no/id")).wait().error, InvalidRequestError)


def test_a_watched_run_tells_every_step_and_its_end() -> None:
    unet = SteppedUnet()
    with serving(unet=unet) as service:
        assert watch(service, "run").state == "unknown"
        ask(service, ticket=text("t"), run_id=text("run"), after_step=whole(-1)).wait()
        made = draw(service, ticket=text("t"), run_id=text("run"))
        unet.allow(5)
        made.wait()
        assert watch(service, "run").state == "done"
    unet = SteppedUnet()
    with serving(unet=unet) as service:
        ask(service, ticket=text("t"), run_id=text("run"), after_step=whole(-1)).wait()
        draw(service, ticket=text("t"), run_id=text("run"))
        unet.allow(4)
        seen = []
        for _ in range(4):
            found = watch(service, "run", seen[-1] if seen else 0).wait().outputs
            assert found is not None
            assert found["preview"].shape == (1, 8, 8, 3)
            assert found["num_inference_steps"].item() == 5
            seen.append(int(found["step"].item()))
        assert seen == [1, 2, 3, 4]


def test_a_run_is_cancelled_by_its_id() -> None:
    with serving(unet=SteppedUnet()) as service:
        made = draw(service, run_id=text("run"))
        until(lambda: watch(service, "run").state == "running")
        assert ask(service, cancel=text("run")).state == "running"
        assert isinstance(made.wait().error, CancelledError)
        assert watch(service, "run").state == "failed"
        assert ask(service, cancel=text("another")).state == "unknown"


def test_a_request_keeps_its_deadline_while_a_call_is_out() -> None:
    with serving(unet=SteppedUnet()) as service:
        made = draw(service, timeout_seconds=np.array([[0.1]], np.float32))
        assert isinstance(made.wait().error, DeadlineError)


def test_images_that_are_being_encoded_wait_in_the_queue_like_others() -> None:
    """The queue's limit, cancellation and deadline hold from arrival, not from when the picture is encoded."""
    gate = threading.Event()

    def encode(images: Array) -> tuple[Array, Array]:
        gate.wait(30)
        return np.zeros((1, 4, 8, 8), np.float32), np.ones((1, 4, 8, 8), np.float32)

    unet = Unet()
    with serving(unet=unet, encode=encode, max_inflight=1, max_queue=1) as service:
        answers, left = [Answer() for _ in range(40)], threading.Event()
        for answer in answers:
            service.handle(request(init_image=IMAGE), answer, left.is_set)
        left.set()  # all of them leave, once all have come
        outcomes = [type(answer.wait().error) for answer in answers]
        gate.set()
        assert outcomes.count(QueueFullError) == 38  # one has room, one waits
        assert outcomes.count(CancelledError) == 2
    assert not unet.calls


def test_a_replay_of_a_finished_run_gets_the_kept_latents_and_draws_nothing() -> None:
    unet = Unet()
    with serving(unet=unet) as service:
        first = draw(service, run_id=text("run")).wait().outputs
        calls = len(unet.calls)
        again = draw(service, run_id=text("run")).wait().outputs
        assert first is not None
        assert again is not None
        assert np.array_equal(first["latents"], again["latents"])
        assert len(unet.calls) == calls
        other = draw(service, run_id=text("run"), seed=np.array([[4]])).wait().outputs
        assert other is not None
        assert not np.array_equal(first["latents"], other["latents"])
        assert first["system_fingerprint"].item() == b"one"


def test_a_place_for_a_run_whose_latents_are_kept_is_free_at_once() -> None:
    with serving(max_inflight=1, max_queue=0) as service:
        draw(service, run_id=text("run")).wait()
        assert ask(service, ticket=text("t1"), run_id=text("run")).state == "waiting"
        assert draw(service, ticket=text("t1"), run_id=text("run")).wait().error is None
        assert ask(service, ticket=text("t2"), run_id=text("other")).state == "waiting"


def test_places_that_were_never_used_are_forgotten() -> None:
    with serving() as service:
        for number in range(3):
            assert ask(service, ticket=text(f"t{number}"), run_id=text("run")).state == "waiting"  # ends the one before
        assert len(service._reserved) == 1


def test_one_that_was_alone_inside_at_two_deaths_of_this_process_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "denoise.flight"
    for _ in range(2):
        unet = SteppedUnet()
        with serving(unet=unet, record=FlightRecord.at(file)) as service:
            draw(service)
            until(partial(len, unet.calls))
            (tmp_path / "as it stood").write_bytes(file.read_bytes())  # what a kill -9 in this moment leaves
        file.write_bytes((tmp_path / "as it stood").read_bytes())
    with serving(record=FlightRecord.at(file)) as service:
        assert isinstance(draw(service).wait().error, PoisonousRequestError)
        assert draw(service, seed=np.array([[4]])).wait().error is None


def test_more_images_than_the_models_after_it_take_are_refused_before_anything_is_drawn() -> None:
    with serving(max_images_per_request=3) as service:
        for asked in ({"ticket": text("t"), "num_images_per_prompt": whole(4)}, request(num_images_per_prompt=whole(4))):
            refused = ask(service, **asked).wait().error
            assert isinstance(refused, InvalidRequestError)
            assert (str(refused), refused.field) == (
                "num_images_per_prompt: 4 is not allowed; it must be 1 to 3",
                "num_images_per_prompt",
            )
        two = {"num_images_per_prompt": np.array([[2], [2]], np.int32), "ticket": np.array([[b"t"], [b"t"]], object)}
        refused = ask(service, **two).wait().error
        assert isinstance(refused, InvalidRequestError)
        assert "2 for each of 2 prompts is not allowed; one request may have 3 images at most" in str(refused)
        assert draw(service, num_images_per_prompt=whole(3)).wait().error is None


def test_what_features_may_take_of_shared_memory_is_looked_at_once_all_models_have_loaded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cut = pipeline(cache=FeatureCache(branch=0, channels=2))
    free = 10**9
    monkeypatch.setattr("nereid.diffusion.service.shared_bytes", lambda: free)
    with serving(facts=cut, unet=Unet(features=features)) as service:
        free = 16 * 2**20 + 1000  # an image has 1024 there and back for each half
        assert draw(service).wait().error is None
        assert service.limits.features_shared_bytes == 8 * 10**8
        refused = draw(service, cache_interval=whole(2)).wait().error
        assert isinstance(refused, InvalidRequestError)
        assert refused.field == "cache"
    with serving(facts=cut, unet=Unet(features=features), features_shared_bytes=2048) as service:
        assert draw(service, cache_interval=whole(2)).wait().error is None


@pytest.mark.parametrize("cancelled", [False, True])
def test_one_that_waited_for_its_first_step_is_not_inside_when_answered(tmp_path: Path, cancelled: bool) -> None:
    """Another size has the engine meanwhile. Who stayed inside would be blamed for the next death, long after its end."""
    file = tmp_path / "denoise.flight"

    def suspects_meanwhile() -> int:
        (tmp_path / "meanwhile.flight").write_bytes(file.read_bytes())
        return len(FlightRecord.at(tmp_path / "meanwhile.flight").suspects)

    unet = SteppedUnet()
    with serving(unet=unet, record=FlightRecord.at(file)) as service:
        first = draw(service)
        until(lambda: unet.calls)
        gone = threading.Event()
        behind = Answer()
        service.handle(request(seed=np.array([[4]]), height=whole(128), width=whole(128)), behind, gone.is_set)
        until(lambda: suspects_meanwhile() == 2)  # ticks of a quarter of a second
        if cancelled:
            gone.set()
            assert behind.wait().error is not None
        unet.allow(1000)
        assert first.wait().error is None
        assert (behind.wait().error is None) is not cancelled
        assert not FlightRecord.at(file).suspects


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e38])
def test_latents_that_no_run_can_start_from_are_refused(value: float) -> None:
    with serving() as service:
        latents = np.zeros((1, 4, 8, 8), np.float32)
        latents[0, 0, 0, 0] = value
        refused = draw(service, latents=latents).wait().error
        assert isinstance(refused, InvalidRequestError)
        assert refused.field == "latents"


MEASURED = {
    "unet": RunMemory(base_bytes=0, bytes_per_row_pixel=1.0),
    "vae_decoder": RunMemory(base_bytes=0, bytes_per_row_pixel=1.5),
}
"""A guided image of 64 x 64 needs 8192 bytes (two rows of the UNet), one without guidance 6144 (the decoder's)."""


def test_images_in_flight_share_a_budget_of_memory() -> None:
    unet = SteppedUnet()
    with serving(unet=unet, facts=pipeline(memory=MEASURED), memory_budget_bytes=16_384, max_queue=1) as service:
        for name in ("a", "b"):
            draw(service, run_id=text(name))
        waits = draw(service, run_id=text("c"))
        assert watch(service, "c").state == "waiting"
        assert isinstance(ask(service, ticket=text("t")).wait().error, QueueFullError)
        unet.allow(100)
        assert waits.wait().error is None


def test_what_an_image_needs_is_that_of_its_largest_engine() -> None:
    with serving(facts=pipeline(memory=MEASURED), memory_budget_bytes=6144) as service:
        assert draw(service, guidance_scale=np.array([[1.0]], np.float32)).wait().error is None
        refused = ask(service, ticket=text("t")).wait().error
        assert isinstance(refused, InvalidRequestError)
        assert str(refused).startswith("width x height: at 64 x 64, 1 image needs")
        assert "memory_budget_bytes" in str(refused)
        assert isinstance(draw(service).wait().error, InvalidRequestError)


def test_of_a_large_picture_the_vae_needs_no_more_than_a_tile_and_the_picture_itself() -> None:
    size = {"width": whole(1024), "height": whole(64)}
    vae = RunMemory(base_bytes=0, bytes_per_row_pixel=100.0)
    facts = pipeline(memory={"vae_decoder": vae, "vae_encoder": vae})
    budget = 100 * 64**2 + BYTES_PER_PIXEL * 1024 * 64
    with serving(facts=facts, memory_budget_bytes=budget - 1, tile_sample_min_size=64) as service:
        assert isinstance(ask(service, ticket=text("t"), **size).wait().error, InvalidRequestError)
    for tile, refused in ((64, False), (256, True)):
        with serving(facts=facts, memory_budget_bytes=budget, tile_sample_min_size=tile) as service:
            answer = ask(service, ticket=text("t"), **size).wait()
            assert isinstance(answer.error, InvalidRequestError) is refused
            wide = np.zeros((1, 64, 1024, 3), np.uint8)
            assert isinstance(ask(service, ticket=text("t"), init_image=wide).wait().error, InvalidRequestError) is refused
            own = {"tile_sample_min_size": whole(320 - tile)}  # the other one
            answer = ask(service, ticket=text("t"), **size, **own).wait()
            assert isinstance(answer.error, InvalidRequestError) is not refused
    with serving(facts=pipeline(memory=MEASURED), memory_budget_bytes=8192, tile_sample_min_size=64) as service:
        assert isinstance(ask(service, ticket=text("t"), **size).wait().error, InvalidRequestError)  # the UNet sees it whole


def test_a_large_picture_is_encoded_by_tiles_of_one_shape() -> None:
    shapes: list[tuple[int, ...]] = []

    def encode(images: Array) -> tuple[Array, Array]:
        shapes.append(images.shape)
        moments = np.zeros((1, 4, images.shape[2] // 8, images.shape[3] // 8), np.float32)
        return moments + 1, moments

    with serving(encode=encode, tile_sample_min_size=64) as service:
        made = draw(service, init_image=np.zeros((1, 64, 160, 3), np.uint8), strength=np.array([[0.5]], np.float32)).wait()
    assert made.error is None
    assert set(shapes) == {(1, 3, 64, 64)}
    assert len(shapes) == 5


def test_a_request_says_how_large_its_tiles_are_where_it_likes() -> None:
    with serving(tile_sample_min_size=128, tile_overlap_factor=0.125) as service:
        for given, side in (({}, 128), ({"tile_sample_min_size": whole(64)}, 64)):
            made = draw(service, **given).wait().outputs
            assert made is not None
            assert made["tile_sample_min_size"].tolist() == [[side]]
            assert made["tile_overlap_factor"].tolist() == [[0.125]]
        refused = draw(service, tile_sample_min_size=whole(72)).wait().error
        assert isinstance(refused, InvalidRequestError)
        assert str(refused) == "tile_sample_min_size: 72 is not allowed; it must be a multiple of 16"
        assert isinstance(draw(service, tile_sample_min_size=whole(48)).wait().error, InvalidRequestError)


def test_which_decoder_makes_the_picture_is_said_by_the_request_and_handed_on() -> None:
    with serving(facts=pipeline(tiny_decoder=True)) as service:
        for given, decoder in (({}, b"full"), ({"decoder": text("full")}, b"full"), ({"decoder": text("tiny")}, b"tiny")):
            made = draw(service, run_id=text("run"), **given).wait().outputs
            assert made is not None
            assert made["decoder"].tolist() == [[decoder]]
        assert isinstance(ask(service, ticket=text("t"), decoder=text("huge")).wait().error, InvalidRequestError)
    with serving() as service:
        refused = ask(service, ticket=text("t"), decoder=text("tiny")).wait().error
        assert isinstance(refused, InvalidRequestError)
        assert refused.field == "decoder"
        assert isinstance(draw(service, decoder=text("tiny")).wait().error, InvalidRequestError)


def test_an_image_needs_what_its_own_decoder_does_and_a_watched_one_its_previews_too() -> None:
    tiny = RunMemory(base_bytes=0, bytes_per_row_pixel=0.5)
    facts = pipeline(memory={**MEASURED, "vae_decoder_tiny": tiny}, tiny_decoder=True)
    unguided = {"guidance_scale": np.array([[1.0]], np.float32)}
    by_tiny = {**unguided, "decoder": text("tiny")}
    with serving(facts=facts, memory_budget_bytes=4096) as service:  # one row of the UNet
        assert isinstance(draw(service, **unguided).wait().error, InvalidRequestError)
        assert draw(service, **by_tiny).wait().error is None
        assert isinstance(ask(service, ticket=text("t"), after_step=whole(-1), **by_tiny).wait().error, InvalidRequestError)
    with serving(facts=facts, memory_budget_bytes=6144, unet=(unet := SteppedUnet())) as service:
        ask(service, ticket=text("t"), run_id=text("run"), after_step=whole(-1), **by_tiny).wait()
        draw(service, ticket=text("t"), run_id=text("run"), **by_tiny)
        until(lambda: watch(service, "run").state == "running")
        assert service._batcher.find("run").weight == 6144
        unet.allow(100)


def test_a_run_whose_decoder_died_with_its_picture_is_unknown_until_it_is_asked_for_again() -> None:
    lives = {1}
    with serving(decoders=lambda: frozenset(lives)) as service:
        draw(service, run_id=text("run")).wait()
        assert ask(service, decoding=text("run")).state == "running"
        lives.clear()
        assert watch(service, "run").state == "unknown"
        lives.add(2)
        assert draw(service, run_id=text("run")).wait().error is None
        assert watch(service, "run").state == "done"
        lives.clear()
        assert watch(service, "run").state == "unknown"  # nor was the second one answered


def test_an_answer_tells_the_decoder_whose_it_is_and_what_time_is_left() -> None:
    with serving() as service:
        first = draw(service, run_id=text("run"), timeout_seconds=np.array([[50.0]], np.float32)).wait().outputs
        again = draw(service, run_id=text("run"), timeout_seconds=np.array([[20.0]], np.float32)).wait().outputs
        assert first is not None
        assert again is not None
        assert first["run_id"].item() == b"run"
        assert 49 < first["seconds_left"].item() < 50
        assert again["seconds_left"].item() == 20  # kept latents, and the time of who asks for them now


def test_a_run_whose_picture_is_being_decoded_is_running_and_can_be_cancelled() -> None:
    with serving() as service:
        draw(service, run_id=text("run")).wait()
        until(lambda: watch(service, "run").state == "done")
        assert ask(service, decoding=text("run")).state == "running"
        assert watch(service, "run").state == "running"
        assert ask(service, cancel=text("run")).state == "running"
        assert ask(service, decoding=text("run")).state == "failed"
        assert watch(service, "run").state == "failed"
        assert draw(service, run_id=text("run")).wait().error is None  # once more, by the same name
        assert ask(service, decoding=text("run")).state == "running"
        assert ask(service, decoding=text("nobody")).state == "unknown"


def test_without_a_budget_half_of_what_is_left_counts_and_what_is_not_measured_needs_nothing() -> None:
    with serving() as service:
        assert 0 < service.limits.memory_budget_bytes < 2**45
        assert draw(service).wait().error is None
