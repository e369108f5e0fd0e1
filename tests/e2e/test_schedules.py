"""What a request chooses of its schedule, on its way through a real server: a run said in another way is the same picture."""

from __future__ import annotations

import base64
import io
import json
import urllib.request

import numpy as np
import pytest
from PIL import Image

from nereid_client import Client, InvalidRequestError
from nereid_client.images import ImageResult

from conftest import Served

pytestmark = pytest.mark.triton

NAMED = {"seed": 4, "scheduler": "lcm", "num_inference_steps": 2}
GIVEN = {"seed": 4, "scheduler": "lcm", "timesteps": [999, 499]}
"""Of 50 timesteps that LCM takes, the first and the one in the middle."""


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_given_timesteps_are_those_of_a_run_of_as_many_steps(served: Served, protocol: str) -> None:
    url = served.grpc_url if protocol == "grpc" else served.http_url
    with Client(url, protocol=protocol) as client:
        expected = client.generate_image("a box", **NAMED)
        assert np.array_equal(client.generate_image("a box", **GIVEN).pixels, expected.pixels)
        other = client.generate_image("a box", **{**GIVEN, "timesteps": [999, 199]})
        assert not np.array_equal(other.pixels, expected.pixels)


def test_a_stream_counts_the_steps_that_are_given(served: Served) -> None:
    with Client(served.grpc_url) as client:
        told = list(client.stream_image("a box", **{**GIVEN, "timesteps": [999, 599, 199]}))
    assert [(item.step, item.num_inference_steps) for item in told[:-1]] == [(1, 3), (2, 3)]  # type: ignore[union-attr]
    assert isinstance(told[-1], ImageResult)


def test_the_json_form_takes_lists(served: Served) -> None:
    def ask(body: dict[str, object]) -> np.ndarray:
        url = f"http://{served.http_url}/v2/models/text_to_image_json/generate"
        request = urllib.request.Request(url, json.dumps({"prompt": "a box", **body}).encode())
        with urllib.request.urlopen(request, timeout=60) as answer:
            made = json.load(answer)["generated_image"]
        return np.asarray(Image.open(io.BytesIO(base64.b64decode(made))))

    assert np.array_equal(ask(GIVEN), ask(NAMED))


def test_sigmas_spacing_and_eta_reach_the_run_or_are_refused(served: Served) -> None:
    with Client(served.grpc_url) as client:

        def draw(**options: object) -> bytes:
            return client.generate_image("a box", seed=4, **options).pixels.tobytes()

        few = {"scheduler": "ddim", "num_inference_steps": 3}
        made = [draw(**few, **more) for more in ({}, {"timestep_spacing": "trailing"}, {"eta": 0.5})]
        made += [draw(scheduler="euler", sigmas=[14.6, 2.0, 0.5, 0.0])]
        assert len(set(made)) == 4
        with pytest.raises(InvalidRequestError, match="these take it: ddim, dpmpp_sde, ") as raised:
            draw(scheduler="euler", eta=0.5)
    assert raised.value.field == "eta"
