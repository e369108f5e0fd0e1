"""Previews of watched runs by the tiny decoder: of what is predicted, in time or of the latents alone, the run none the later."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping

import numpy as np
import pytest
from test_denoise_service import ask, draw, serving, watch

from nereid.diffusion import watching
from nereid.diffusion.service import DenoiseService
from nereid.diffusion.solvers import LATEST_CLEAN
from nereid.flow.errors import LostError

from image_forms import Array, SteppedUnet, pipeline, text, whole


@pytest.fixture(autouse=True)
def _in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """However long the machine stands still, no limit passes that a test does not set."""
    for limit in ("HOLD_SECONDS", "PREVIEW_SECONDS", "PAUSE_SECONDS"):
        monkeypatch.setattr(watching, limit, 25.0)


def decoded(latents: Array) -> Array:
    return latents[:, :3].repeat(8, axis=2).repeat(8, axis=3)


def previews(service: DenoiseService, unet: SteppedUnet, steps: int = 5) -> list[Mapping[str, Array]]:
    """Of all steps but the last, each asked for before the next is taken."""
    ask(service, ticket=text("t"), run_id=text("run"), after_step=whole(-1)).wait()
    draw(service, ticket=text("t"), run_id=text("run"))
    seen: list[Mapping[str, Array]] = []
    for step in range(steps - 1):
        unet.allow(1)
        found = watch(service, "run", step).wait().outputs
        assert found is not None
        seen.append(found)
    return seen


def test_previews_are_whole_pictures_of_what_is_predicted_where_there_is_a_tiny_decoder() -> None:
    unet, given = SteppedUnet(), []

    def decode(latents: Array, seconds: float) -> Array:
        assert 0 < seconds <= watching.PREVIEW_SECONDS
        given.append(latents)
        return decoded(latents)

    with serving(unet=unet, facts=pipeline(tiny_decoder=True), decode_preview=decode) as service:
        made = previews(service, unet)
        run = service._find("run").runs[0]  # type: ignore[union-attr]
        assert np.array_equal(given[-1][0], run.state.memory[LATEST_CLEAN])
        assert all(found["preview"].shape == (1, 64, 64, 3) for found in made)
        assert all(found["preview_scale"].item() == 1 for found in made)
        unet.allow(1)
        last = watch(service, "run", 4).wait().outputs
        assert last is not None
        assert last["preview"].shape == (1, 8, 8, 3), "who waits for the picture waited for a preview"
    with serving(unet=(unet := SteppedUnet()), decode_preview=decode) as service:
        (found, *_) = previews(service, unet)
        assert found["preview"].shape == (1, 8, 8, 3)
        assert found["preview_scale"].item() == 8


@pytest.mark.parametrize("error", [LostError("vae_decoder_tiny: not healthy"), ValueError("a bug")])
def test_a_preview_that_cannot_be_decoded_is_made_of_its_latents(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "PAUSE_SECONDS", 0.0)
    unet, calls = SteppedUnet(), []

    def decode(latents: Array, seconds: float) -> Array:
        calls.append(seconds)
        if len(calls) == 1:
            raise error
        return decoded(latents)

    with serving(unet=unet, facts=pipeline(tiny_decoder=True), decode_preview=decode) as service:
        assert [found["preview_scale"].item() for found in previews(service, unet)] == [8, 1, 1, 1]


def test_a_decoder_that_failed_is_left_alone_for_a_while() -> None:
    unet, calls = SteppedUnet(), []

    def decode(latents: Array, seconds: float) -> Array:
        calls.append(seconds)
        raise LostError("vae_decoder_tiny: no answer within 1 s")

    with serving(unet=unet, facts=pipeline(tiny_decoder=True), decode_preview=decode) as service:
        assert [found["preview_scale"].item() for found in previews(service, unet)] == [8] * 4
    assert len(calls) == 1


def test_a_preview_that_waited_too_long_is_made_of_its_latents_and_nobody_else_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    unet, begun, busy = SteppedUnet(), threading.Event(), threading.Event()

    def decode(latents: Array, seconds: float) -> Array:
        begun.set()
        assert busy.wait(30)
        return decoded(latents)

    with serving(unet=unet, facts=pipeline(tiny_decoder=True), decode_preview=decode) as service:
        ask(service, ticket=text("t"), run_id=text("run"), after_step=whole(-1)).wait()
        made = draw(service, ticket=text("t"), run_id=text("run"))
        unet.allow(2)
        first = watch(service, "run", 0)
        assert begun.wait(30)
        monkeypatch.setattr(watching, "PREVIEW_SECONDS", 0.0)  # any waiting is too long
        second = watch(service, "run", 1)
        unet.allow(3)
        assert made.wait().error is None  # the run goes on meanwhile
        assert watch(service, "run").state == "done"
        busy.set()
        assert first.wait().outputs["preview_scale"].item() == 1  # type: ignore[index]
        assert second.wait().outputs["preview_scale"].item() == 8  # type: ignore[index]


def test_a_decoder_that_is_always_too_slow_is_asked_ever_less_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a call began goes on in the engine, and pictures wait for it there."""
    monkeypatch.setattr(watching, "PAUSE_SECONDS", 0.02)
    asked: list[float] = []

    def decode(latents: Array, seconds: float) -> Array:
        asked.append(time.monotonic())
        raise LostError("vae_decoder_tiny: no answer within 1 s")

    unet = SteppedUnet()
    with serving(unet=unet, facts=pipeline(tiny_decoder=True, default_steps=60), decode_preview=decode) as service:
        ask(service, ticket=text("t"), run_id=text("run"), after_step=whole(-1)).wait()
        draw(service, ticket=text("t"), run_id=text("run"))
        for step in range(50):
            unet.allow(1)
            watch(service, "run", step).wait()
            time.sleep(0.01)
    pauses = np.diff(asked)
    assert len(pauses) >= 2
    assert all(pause >= 0.02 * 2**turn for turn, pause in enumerate(pauses)), pauses
