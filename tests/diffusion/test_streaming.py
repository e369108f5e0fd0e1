"""A stream is one whole run that is watched: every preview comes, the picture is the request's, and ends are noticed."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from nereid.diffusion.service import DenoiseService
from nereid.diffusion.settings import Limits
from nereid.diffusion.streaming import ImageStream, Siblings
from nereid.flow.errors import CancelledError, InvalidRequestError, LostError, QueueFullError, RequestError
from nereid.flow.metrics import Recorder

from image_forms import Array, SteppedUnet, Unet, pipeline, text

SIBLINGS = Siblings(tokenizer="tokenizer", text_encoder="text_encoder", denoise="denoise", image_output="image")


class Models:
    """The sibling models: a real `denoise` service, and others whose answers are known."""

    def __init__(self, unet: Any, **limits: Any) -> None:
        self.service = DenoiseService(
            pipeline(),
            Limits(**limits),
            unet,
            lambda pixels: (np.zeros((1, 4, 8, 8), np.float32), np.ones((1, 4, 8, 8), np.float32)),
            Recorder(lambda metric, value, labels: None),
        )
        self.pool = ThreadPoolExecutor(16)
        self.called: list[str] = []
        self.asked: dict[str, dict[str, Array]] = {}
        self.dead: set[str] = set()
        self.lost = 0
        self.decode: Callable[[Mapping[str, Array]], None] | None = None

    def submit(self, name: str, inputs: Mapping[str, Array], outputs: Sequence[str]) -> Future[dict[str, Array]]:
        return self.pool.submit(self._answer, name, inputs)

    def call(
        self, name: str, inputs: Mapping[str, Array], outputs: Sequence[str], timeout: float | None = None
    ) -> dict[str, Array]:
        if name in self.dead:
            raise LostError(f"{name}: no answer")
        return self.submit(name, inputs, outputs).result(30)

    def _answer(self, name: str, inputs: Mapping[str, Array]) -> dict[str, Array]:
        self.called.append(name)
        self.asked[name] = dict(inputs)
        if name == "image" and self.decode is not None:
            self.decode(inputs)
        if name == "image" and self.lost:
            self.lost -= 1
            raise LostError("image: Stub process is not healthy")
        if name == "denoise":
            return self._denoise(inputs)
        ids = np.zeros((1, 3), np.int32)
        return {
            "tokenizer": {"input_ids": ids, "negative_input_ids": ids, "tokenizer_warnings": text("cut")},
            "text_encoder": {"prompt_embeds": np.ones((1, 3, 2), np.float32)},
            "image": {"generated_image": inputs.get("latents", ids)},
        }[name]

    def _denoise(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        came: Future[dict[str, Array]] = Future()

        def reply(outputs: Mapping[str, Array] | None, error: RequestError | None) -> None:
            if error is None:
                came.set_result(dict(outputs or {}))
            else:
                came.set_exception(error)

        self.service.handle(inputs, reply, lambda: False)
        return came.result(30)


@pytest.fixture
def models() -> Iterator[Any]:
    made: list[Models] = []

    def make(unet: Any = None, **limits: Any) -> Models:
        made.append(Models(unet or Unet(), **limits))
        return made[-1]

    yield make
    for one in made:
        if isinstance(one.service.predict, SteppedUnet):
            one.service.predict.allow(10_000)
        one.service.stop()


def stream(models: Models, cancelled: Any = lambda: False, send: Any = None, **inputs: Array) -> list[Mapping[str, Array]]:
    sent: list[Mapping[str, Array]] = []
    given = {"prompt": np.array([b"a box"], np.object_), "seed": np.array([3]), **inputs}
    ImageStream(pipeline(), SIBLINGS, models).run(given, send or sent.append, cancelled)
    return sent


def test_the_tokenizer_is_told_the_guidance_without_which_a_negative_prompt_has_no_effect(models: Any) -> None:
    made = models()
    stream(made, negative_prompt=np.array([b"rain"], np.object_), guidance_scale=np.array([3], np.float32))
    assert made.asked["tokenizer"].keys() == {"prompt", "negative_prompt", "guidance_scale"}


@pytest.mark.parametrize(("interval", "steps"), [(1, [1, 2, 3, 4]), (2, [2, 4]), (4, [4]), (9, [])])
def test_every_preview_comes_however_fast_the_run_is(models: Any, interval: int, steps: list[int]) -> None:
    sent = stream(models(), preview_interval=np.array([interval], np.int32))
    assert [int(answer["step"][0]) for answer in sent[:-1]] == steps
    assert all(answer["preview"].shape == (8, 8, 3) for answer in sent[:-1])
    assert all(answer["preview_scale"].tolist() == [8] for answer in sent[:-1])
    assert int(sent[-1]["step"][0]) == 5
    assert sent[-1]["warnings"].item() == b"cut"


def test_a_stream_of_an_image_begins_where_its_strength_says(models: Any) -> None:
    picture = np.zeros((64, 64, 3), np.uint8)
    sent = stream(models(), init_image=picture, strength=np.array([0.6], np.float32))
    assert [int(answer["step"][0]) for answer in sent] == [3, 4, 5]


def test_the_run_is_started_once_and_its_picture_is_that_of_the_request(models: Any) -> None:
    made = models()
    sent = stream(made)
    whole_run = made._denoise(
        {
            "prompt_embeds": np.ones((1, 3, 2), np.float32),
            "negative_prompt_embeds": np.ones((1, 3, 2), np.float32),
            "seed": np.array([[3]]),
        }
    )
    assert np.array_equal(sent[-1]["generated_image"], whole_run["latents"][0])


def test_a_stream_keeps_the_requests_deadline_whole(models: Any) -> None:
    with pytest.raises(RequestError, match="timeout_seconds"):
        stream(models(SteppedUnet()), timeout_seconds=np.array([0.2], np.float32))


def test_a_full_queue_refuses_a_stream_before_anything_is_encoded(models: Any) -> None:
    made = models(SteppedUnet(), max_inflight=1, max_queue=1)
    for name in ("one", "two"):
        made.pool.submit(made._denoise, {"ticket": text(name)}).result(30)
    with pytest.raises(QueueFullError):
        stream(made)
    assert "text_encoder" not in made.called


def test_bad_options_refuse_a_stream_before_anything_is_encoded(models: Any) -> None:
    made = models()
    for inputs in ({"num_inference_steps": np.array([0], np.int32)}, {"preview_interval": np.array([0], np.int32)}):
        with pytest.raises(InvalidRequestError):
            stream(made, **inputs)
    assert "text_encoder" not in made.called


def test_leaving_a_stream_cancels_its_run(models: Any) -> None:
    unet = SteppedUnet()
    made = models(unet)
    gone = threading.Event()

    def send(answer: Mapping[str, Array]) -> None:
        gone.set()

    unet.allow(1)
    with pytest.raises(CancelledError):
        stream(made, gone.is_set, send, run_id=np.array([b"run"], np.object_))
    assert made._denoise({"watch": text("run")})["run_state"].item() == b"failed"


def test_leaving_while_the_picture_is_decoded_cancels_the_run(models: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nereid.diffusion.streaming._LOOK_SECONDS", 0.01)
    made = models()
    inside, left = threading.Event(), threading.Event()

    def decode(inputs: Mapping[str, Array]) -> None:
        assert inputs["run_id"].item() == b"run"
        assert 0 < inputs["seconds_left"].item() <= 600
        made._denoise({"decoding": text("run")})
        inside.set()
        assert left.wait(30)

    made.decode = decode
    with pytest.raises(CancelledError):
        stream(made, inside.is_set, run_id=np.array([b"run"], np.object_))
    assert made._denoise({"decoding": text("run")})["run_state"].item() == b"failed"
    left.set()


def test_a_picture_whose_decoding_died_without_an_answer_is_decoded_again(models: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nereid.diffusion.streaming._LOOK_SECONDS", 0.01)
    lives, late = {1}, threading.Event()
    made = models()
    made.service._decoded.decoders = lambda: frozenset(lives)
    times: list[float] = []

    def decode(inputs: Mapping[str, Array]) -> None:
        times.append(inputs["seconds_left"].item())
        assert inputs["tile_sample_min_size"].item() == 1024
        assert inputs["tile_overlap_factor"].item() == 0.25
        if len(times) == 1:
            lives.clear()
            lives.add(2)
            assert late.wait(30)

    made.decode = decode
    assert int(stream(made, run_id=np.array([b"run"], np.object_))[-1]["step"][0]) == 5
    late.set()
    assert made.called.count("image") == 2
    assert times[1] < times[0]  # the time goes on


def test_a_later_step_that_died_is_called_again_and_the_run_is_not(models: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nereid.flow.retry.PAUSE_SECONDS", 0.001)
    made = models()
    made.lost = 1
    sent = stream(made)
    assert int(sent[-1]["step"][0]) == 5
    assert made.called.count("image") == 2


def test_a_denoise_that_died_ends_the_stream_as_lost(models: Any) -> None:
    unet = SteppedUnet()
    made = models(unet)
    unet.allow(1)

    def send(answer: Mapping[str, Array]) -> None:
        made.dead.add("denoise")

    with pytest.raises(LostError):
        stream(made, send=send)
