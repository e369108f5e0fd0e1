"""AUTOMATIC1111's samplers and schedules by the names of solvers here."""

from __future__ import annotations

import httpx
import pytest

from nereid.diffusion.solvers import SCHEDULERS, SchedulerName
from nereid.serving.gateway.a1111.samplers import SAMPLERS, Chosen, chosen
from nereid.serving.gateway.errors import ApiError

from webui_forms import DRAW


@pytest.mark.parametrize(
    ("name", "schedule", "eta", "expected"),
    [
        ("Euler", None, None, Chosen("euler", label="Euler")),
        ("Euler a", "Automatic", 1.0, Chosen("euler_a", label="Euler a")),
        ("Euler a", None, 0.0, Chosen("euler", label="Euler a")),
        ("DPM++ 2M SDE", "Automatic", 0.0, Chosen("dpmpp_2m_karras", label="DPM++ 2M SDE Karras")),
        ("k_euler_ancestral", None, None, Chosen("euler_a", label="Euler a")),
        ("DPM++ 2M", None, None, Chosen("dpmpp_2m_karras", label="DPM++ 2M Karras")),
        ("DPM++ 2M", "Automatic", None, Chosen("dpmpp_2m_karras", label="DPM++ 2M Karras")),
        ("DPM++ 2M", "Uniform", 0.5, Chosen("dpmpp_2m", "linspace", label="DPM++ 2M Uniform")),
        ("dpm++ 2m sde karras", "automatic", None, Chosen("dpmpp_2m_sde_karras", label="DPM++ 2M SDE Karras")),
        ("DPM++ SDE", None, None, Chosen("dpmpp_sde_karras", label="DPM++ SDE Karras")),
        ("DPM++ SDE Karras", "Automatic", 1.0, Chosen("dpmpp_sde_karras", eta=1.0, label="DPM++ SDE Karras")),
        ("k_dpmpp_sde_ka", None, None, Chosen("dpmpp_sde_karras", label="DPM++ SDE Karras")),
        ("DPM++ SDE", "Uniform", 0.0, Chosen("dpmpp_sde", "linspace", 0.0, label="DPM++ SDE Uniform")),
        ("Euler Karras", "Automatic", None, Chosen("euler_karras", label="Euler Karras")),
        ("k_dpmpp_2m_ka", None, None, Chosen("dpmpp_2m_karras", label="DPM++ 2M Karras")),
        ("Euler", "karras", None, Chosen("euler_karras", label="Euler Karras")),
        ("Euler", "SGM Uniform", None, Chosen("euler", "trailing", label="Euler SGM Uniform")),
        ("DDIM", "DDIM", 0.5, Chosen("ddim", "leading", 0.5, label="DDIM DDIM")),
        ("unipc_karras", None, None, Chosen("unipc_karras", label="UniPC Karras")),
        ("LCM", None, None, Chosen("lcm", label="LCM")),
        (None, None, None, Chosen()),
        (None, "Automatic", None, Chosen()),
    ],
)
def test_a_sampler_and_a_schedule_are_a_scheduler_here(
    name: str | None, schedule: str | None, eta: float | None, expected: Chosen
) -> None:
    assert chosen(name, schedule, eta, flow=False) == expected


@pytest.mark.parametrize(
    ("name", "schedule", "eta", "field"),
    [
        ("Heun", None, None, "sampler_name"),
        ("DPM++ 2S a", None, None, "sampler_name"),
        ("Euler", "Beta", None, "scheduler"),
        ("DDIM", "Karras", None, "scheduler"),
        ("DDIM Karras", None, None, "scheduler"),
        ("LCM", "Uniform", None, "scheduler"),
        ("Euler a", None, 0.5, "eta"),
        (None, "Karras", None, "scheduler"),
    ],
)
def test_what_is_not_the_same_here_is_refused(name: str | None, schedule: str | None, eta: float | None, field: str) -> None:
    with pytest.raises(ApiError, match=f"^400|{field}") as caught:
        chosen(name, schedule, eta, flow=False)
    assert caught.value.param == field
    assert caught.value.message.startswith(f"{field}: ")


def test_less_fresh_noise_is_refused_only_where_there_is_some() -> None:
    for name in ("Euler", "Euler a", "DPM++ 2M", "DDIM"):
        assert chosen(name, None, None, 0.0, flow=False) == chosen(name, None, None, flow=False)
    assert chosen("DPM++ 2M SDE", None, 0.0, 0.5, flow=False).scheduler == "dpmpp_2m_karras"
    assert chosen("DPM++ SDE", None, 0.0, 0.5, flow=False).eta == 0
    for name in ("DPM++ 2M SDE", "DPM++ SDE"):
        with pytest.raises(ApiError, match=r"s_noise: 0\.5 is not allowed with DPM"):
            chosen(name, None, None, 0.5, flow=False)


@pytest.mark.parametrize("own", SCHEDULERS)
def test_every_checkpoints_own_solver_has_a_name(own: SchedulerName) -> None:
    found = chosen(None, None, None, flow=False, own=own)
    assert (found.scheduler, found.timestep_spacing) == (None, None)
    assert found.label.endswith(" Karras") == own.karras


def test_a_rectified_flow_has_no_karras_by_itself() -> None:
    assert chosen("DPM++ 2M", None, None, flow=True).scheduler == "dpmpp_2m"


def test_every_solver_stands_among_the_samplers(api: httpx.Client) -> None:
    told = api.get("/sdapi/v1/samplers").json()
    assert {"name": "Euler a", "aliases": ["k_euler_a", "k_euler_ancestral", "euler_a"], "options": {}} in told
    assert {name.family for name in SCHEDULERS} == {item.scheduler for item in SAMPLERS}
    schedules = api.get("/sdapi/v1/schedulers").json()
    for item in told:
        for schedule in schedules:
            answer = api.post(DRAW, json={"sampler_name": item["name"], "scheduler": schedule["name"]})
            assert answer.status_code in (200, 400), answer.text
            if schedule["name"] == "automatic":
                assert answer.status_code == 200, answer.text
