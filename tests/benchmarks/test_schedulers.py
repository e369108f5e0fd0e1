"""`nereid bench schedulers`: what is measured, what is kept, which settings are worth their time, what is refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

pytest.importorskip("torch")
from nereid.diffusion.solvers import SCHEDULERS, PredictionType, SchedulerConfig, SchedulerName, Spacing, build_table
from nereid.serving.errors import ServingError
from nereid_bench import schedulers_cli
from nereid_bench.cli import app
from nereid_bench.scheduler_choice import PSNR, SCORE, Measured, best, cheapest, pareto_front
from nereid_bench.scheduler_pictures import Asked, Draw, Drawn, KeptPictures, asked_for, draw_missing
from nereid_bench.scheduler_settings import VARIATIONS, Setting, exponential_sigmas, reference_of, settings_of
from nereid_bench.schedulers import Schedulers, SchedulersPlan
from nereid_client.images import ImageRequest
from nereid_client.main import app as nereid
from nereid_zoo.shapes.score import CHECKPOINT, scorer_for

from conftest import export

pytestmark = pytest.mark.torch

CONFIG = SchedulerConfig(
    beta_start=0.00085,
    beta_end=0.012,
    beta_schedule="scaled_linear",
    steps_offset=1,
    timestep_spacing=Spacing.LEADING,
    prediction_type=PredictionType.EPSILON,
)
NAMES = tuple(map(str, SCHEDULERS))


def measured(label: str, seconds: float, psnr: float, score: float | None = None, calls: int = 10) -> Measured:
    return Measured(label=label, calls=calls, seconds=seconds, psnr=psnr, score=score)


def labels(found: list[Measured]) -> list[str]:
    return [one.label for one in found]


# --- what is measured ---


def test_every_scheduler_is_measured_and_nothing_twice() -> None:
    said: list[str] = []
    found = settings_of(CONFIG, NAMES, (5, 20), VARIATIONS, said.append)
    assert {one.scheduler for one in found} == set(NAMES)
    assert {one.variation for one in found} == {"own", "linspace", "trailing", "exponential", "eta=0", "eta=1"}
    assert len({json.dumps(one.fields) for one in found}) == len(found)
    assert "ddim leading is left out: it draws what ddim draws (5, 20 steps)" in said
    assert all("leading" in sentence for sentence in said)


def test_step_counts_that_a_scheduler_cannot_take_are_left_out_by_name() -> None:
    said: list[str] = []
    found = settings_of(CONFIG, ("lcm", "ddim"), (10, 60), ("own",), said.append)
    assert [one.label for one in found] == ["lcm 10", "ddim 10", "ddim 60"]
    assert said == ["lcm is left out: num_inference_steps: 60 is not allowed; lcm takes 1 to 50 (60 steps)"]


def test_settings_say_whether_their_steps_take_fresh_noise() -> None:
    found = {one.label: one.noise for one in settings_of(CONFIG, NAMES, (8,), ("own", "eta"), lambda _: None)}
    noisy = {label for label, noise in found.items() if noise}
    assert noisy == {
        f"{name} 8"
        for name in (
            *("ddpm", "ddim eta=1", "euler_a", "dpmpp_2m_sde", "dpmpp_2m_sde_karras", "dpmpp_sde", "dpmpp_sde_karras", "lcm"),
            "tcd",
        )
    }


def test_what_a_setting_costs_is_how_often_the_network_is_called() -> None:
    found = {one.label: one.calls for one in settings_of(CONFIG, ("ddim", "dpmpp_sde"), (2, 8), ("own",), lambda _: None)}
    assert found == {"ddim 2": 2, "ddim 8": 8, "dpmpp_sde 2": 3, "dpmpp_sde 8": 15}


def test_exponential_sigmas_fall_evenly_over_the_checkpoints_range() -> None:
    sigmas = exponential_sigmas(CONFIG, 6)
    assert len(sigmas) == 7
    assert sigmas[-1] == 0
    ratios = np.divide(sigmas[1:-1], sigmas[:-2])
    assert ratios == pytest.approx(np.full(5, ratios[0]), rel=1e-4)
    assert (sigmas[0], sigmas[-2]) == pytest.approx((14.6, 0.0292), rel=0.01)


def test_the_reference_begins_at_the_noisiest_timestep_and_adds_no_noise() -> None:
    reference = reference_of(CONFIG, 200)
    assert reference.fields == {"scheduler": "dpmpp_2m", "num_inference_steps": 200, "timestep_spacing": "linspace"}
    assert not reference.noise
    # What the checkpoint's own spacing would do with as many steps:
    assert build_table(SchedulerName.DPMPP_2M, CONFIG, 200).timesteps[0] < 850


def test_fields_are_what_the_sdk_and_the_command_take() -> None:
    for setting in settings_of(CONFIG, NAMES, (4,), VARIATIONS, lambda _: None):
        request = ImageRequest.of(prompt="a box", **setting.fields, guidance_scale=3.0)
        assert request.scheduler == setting.scheduler  # type: ignore[attr-defined]
        words = setting.command({"guidance_scale": 3.0}).split()
        assert words[:3] == ["nereid", "generate", "PROMPT"]
        # Nothing listens there, so that a command line that is understood ends with what cannot be reached.
        done = CliRunner().invoke(nereid, [*words[1:], "--url", "127.0.0.1:1", "--timeout", "0.01"])
        assert done.exit_code == 1, done.output
        compile(setting.sdk({"guidance_scale": 3.0}), "recommended", "eval")


# --- what is kept ---


def drawn(value: int, seconds: float = 0.5) -> Drawn:
    return Drawn(pixels=np.full((8, 8, 3), value, np.uint8), seconds=seconds, peak_bytes=1000)


class Painter:
    """Draws flat pictures, notes the order, and stops after `most` as Ctrl-C would."""

    def __init__(self, most: int = 10**9) -> None:
        self.order: list[tuple[Asked, str]] = []
        self.starts, self._most = 0, most

    @contextmanager
    def __call__(self) -> Iterator[Draw]:
        self.starts += 1
        yield self._draw

    def _draw(self, asked: Asked, setting: Setting) -> Drawn:
        if len(self.order) == self._most:
            raise KeyboardInterrupt
        self.order.append((asked, setting.label))
        return drawn((asked.seed + min(setting.steps, 9)) % 256)


def test_an_interrupted_run_goes_on_where_it_stopped(tmp_path: Path) -> None:
    settings = settings_of(CONFIG, ("ddim", "dpmpp_2m"), (2, 3), ("own",), lambda _: None)
    pictures, kept = asked_for(["a box", "a dot"], 2), KeptPictures(tmp_path)
    first, second, third = Painter(most=5), Painter(), Painter()
    with pytest.raises(KeyboardInterrupt):
        draw_missing(settings, pictures, kept, first, lambda _: None)
    assert draw_missing(settings, pictures, kept, second, lambda _: None) == 11
    assert len({*first.order, *second.order}) == len(first.order) + len(second.order) == 16
    assert draw_missing(settings, pictures, kept, third, lambda _: None) == third.starts == 0
    found = kept.read(pictures[3], settings[0])
    assert found is not None
    assert (found.pixels[0, 0, 0], found.seconds, found.peak_bytes) == ((10_001 + 2) % 256, 0.5, 1000)


def test_a_damaged_picture_is_drawn_again(tmp_path: Path) -> None:
    (setting,) = settings_of(CONFIG, ("ddim",), (2,), ("own",), lambda _: None)
    asked, kept = Asked("a box", 0), KeptPictures(tmp_path)
    kept.write(asked, setting, drawn(7))
    (file,) = tmp_path.rglob("*.png")
    whole = file.read_bytes()
    for damaged in (whole[:-30], whole[:20], b"", whole.replace(b"seconds", b"minutes")):
        file.write_bytes(damaged)
        assert kept.read(asked, setting) is None
    Image.new("RGB", (8, 8)).save(file)  # another program's
    assert draw_missing([setting], [asked], kept, Painter(), lambda _: None) == 1


def test_every_round_has_all_settings_in_an_order_of_its_own(tmp_path: Path) -> None:
    settings = settings_of(CONFIG, NAMES, (2,), ("own",), lambda _: None)
    pictures, painter = asked_for(["a box", "a dot", "a disc"], 1), Painter()
    draw_missing(settings, pictures, KeptPictures(tmp_path), painter, lambda _: None)
    rounds = [[label for asked, label in painter.order if asked == one] for one in pictures]
    assert [asked for asked, _ in painter.order] == [one for one in pictures for _ in settings]
    assert {tuple(sorted(one)) for one in rounds} == {tuple(sorted(one.label for one in settings))}
    assert len({tuple(one) for one in rounds}) == 3


def test_seeds_of_a_caption_differ_and_more_of_them_leave_the_first_as_they_were() -> None:
    few, many = asked_for(["a", "a"], 1), asked_for(["a", "a"], 3)
    assert [one.seed for one in few] == [0, 1]
    assert many[:2] == few
    assert len(set(many)) == 6


# --- what is worth its time ---


def test_the_front_has_the_best_of_each_number_of_steps_that_is_better_than_all_with_fewer() -> None:
    found = [
        measured("40", 4, 40, calls=40),
        measured("5", 1, 10, calls=5),
        measured("20, no better than 10", 3, 30, calls=20),
        measured("10", 2, 30, calls=10),
        measured("10, faster by chance", 1.9, 25, calls=10),
    ]
    assert labels(pareto_front(found, PSNR)) == ["5", "10", "40"]
    scored = [measured("a", 1, 40, 50), measured("b", 2, 10, 90, calls=20)]
    assert labels(pareto_front(scored, PSNR)) == ["a"]
    assert labels(pareto_front(scored, SCORE)) == ["a", "b"]
    equal = [measured("fast", 1, 30, 90), measured("near the reference", 1.1, 35, 90)]
    assert labels(pareto_front(equal, SCORE)) == ["near the reference"]


@pytest.mark.parametrize(
    ("bounds", "label"),
    [({SCORE: 80}, "a"), ({SCORE: 95}, "b"), ({SCORE: 95, PSNR: 30}, "c"), ({PSNR: 31}, "c"), ({SCORE: 97}, None)],
)
def test_the_cheapest_that_reaches_every_bound_is_recommended(bounds: dict[str, float], label: str | None) -> None:
    found = [measured("a", 1, 30, 80), measured("b", 2, 20, 95, calls=20), measured("c", 3, 35, 96, calls=30)]
    assert getattr(cheapest(found, bounds), "label", None) == label
    assert best(found, SCORE).label == "c"


def test_of_settings_with_equal_steps_the_better_is_recommended_whichever_was_faster_by_chance() -> None:
    found = [measured("a", 1.00, 20, 95), measured("b", 1.01, 25, 98), measured("c", 1.5, 50, 100, calls=20)]
    assert getattr(cheapest(found, {SCORE: 90}), "label", None) == "b"


# --- the command ---


@pytest.fixture(scope="module")
def tiny(checkpoints: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("tiny") / "repository"
    export(checkpoints["sd"], out)
    return out


class HalfRight:
    """Calls every second caption right, whatever the picture."""

    name = "even numbers"

    def prompts(self, count: int) -> list[str]:
        return []

    def scored(self, count: int) -> list[str]:
        return [f"box {number}" for number in range(count)]

    def score(self, draw: Any, count: int, told: Any) -> float:
        return 100 * sum(int(picture[0, 0, 0]) % 2 == 0 for picture in draw(self.scored(count), list(range(count)))) / count


def command(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["schedulers", *arguments])


def flat(text: str) -> str:
    return " ".join(text.replace("│", " ").split())


@pytest.fixture
def painted(monkeypatch: pytest.MonkeyPatch) -> Painter:
    """The command draws with a painter instead of a server."""
    painter = Painter()
    monkeypatch.setattr(schedulers_cli, "_draw", lambda work: work.draw(lambda _: None, painter))
    return painter


def test_the_command_reports_plots_and_recommends(
    tiny: Path, tmp_path: Path, painted: Painter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schedulers_cli, "_scorer", lambda *_: HalfRight())
    out = tmp_path / "found.json"
    arguments = [
        "--repository",
        str(tiny),
        "--out",
        str(out),
        "--steps",
        "2,3",
        "--captions",
        "4",
        "--schedulers",
        "ddim,euler_karras",
    ]
    done = command(*arguments, "--recommend", "50", "--recommend-psnr", "1", "--guidance", "2")
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout.splitlines()[-1])
    assert report == json.loads(out.read_text())
    row = report["rows"][0]
    assert (row["scheduler"], row["variation"], row["steps"], row["score"], row["seconds"]) == ("ddim", "own", 2, 50.0, 0.5)
    assert 20 < row["psnr_lowest"] <= row["psnr"] < 100
    assert report["reference"]["num_inference_steps"] == 200
    assert report["scored_by"] == "even numbers"
    assert "Pareto front of time and score" in flat(done.stdout)
    recommended = report["recommended"]
    assert recommended["fields"]["guidance_scale"] == 2
    assert recommended["command"] in flat(done.output)
    assert recommended["sdk"] in flat(done.output)
    with Image.open(report["plot"]) as picture:
        assert picture.format == "PNG"
        assert min(picture.size) > 300
    before = len(painted.order)
    assert command(*arguments, "--guidance", "2").exit_code == 0
    assert len(painted.order) == before  # all was kept
    assert command(*arguments, "--guidance", "3").exit_code == 0
    assert len(painted.order) == 2 * before  # other pictures
    assert command(*arguments, "--guidance", "2", "--fresh").exit_code == 0
    assert len(painted.order) == 3 * before


def test_prompts_of_a_file_are_drawn_in_turn_and_not_scored(
    tiny: Path, tmp_path: Path, painted: Painter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schedulers_cli, "_scorer", lambda *_: HalfRight())
    file = tmp_path / "prompts.txt"
    file.write_text("a box\n\n a dot \n")
    arguments = ["--repository", str(tiny), "--out", str(tmp_path / "found.json"), "--captions", "3", "--schedulers", "ddim"]
    done = command(*arguments, "--steps", "2", "--prompts", str(file))
    assert done.exit_code == 0, done.output
    assert "score" not in json.loads(done.stdout.splitlines()[-1])["rows"][0]
    assert {asked for asked, _ in painted.order} == {Asked("a box", 0), Asked("a dot", 1), Asked("a box", 2)}
    file.write_text("\n")
    assert "has no prompts; it must have one a line" in flat(command(*arguments, "--prompts", str(file)).output)


def test_an_interrupted_command_says_that_it_goes_on(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schedulers_cli, "_draw", lambda work: work.draw(lambda _: None, Painter(most=2)))
    done = command("--repository", str(tiny), "--out", str(tmp_path / "found.json"), "--schedulers", "ddim", "--steps", "2")
    assert done.exit_code == 130
    assert "error: stopped; what was drawn is kept, and the same command goes on from there" in flat(done.output)
    assert len(list(tmp_path.rglob("*.png"))) == 2


def test_a_bound_that_nothing_reaches_is_one_sentence_after_the_table(tiny: Path, tmp_path: Path, painted: Painter) -> None:
    arguments = ["--repository", str(tiny), "--out", str(tmp_path / "found.json"), "--captions", "1", "--schedulers", "ddim"]
    done = command(*arguments, "--steps", "2", "--recommend-psnr", "99")
    assert done.exit_code == 1
    assert "error: no setting that was measured reaches psnr 99 dB; ddim " in flat(done.output)
    assert json.loads((tmp_path / "found.json").read_text())["rows"]


def test_a_bound_on_the_score_needs_a_scorer(tiny: Path, tmp_path: Path) -> None:
    done = command("--repository", str(tiny), "--out", str(tmp_path / "found.json"), "--recommend", "90")
    assert done.exit_code == 1
    assert "--recommend: it has no meaning where nothing is scored; --recommend-psnr asks for a PSNR" in flat(done.output)
    assert "nothing is scored: no scorer knows this checkpoint; name its folder with --checkpoint" in flat(done.output)


def test_another_checkpoints_scorer_is_refused(tiny: Path, checkpoints: dict[str, Path]) -> None:
    done = command("--repository", str(tiny), "--checkpoint", str(CHECKPOINT))
    assert done.exit_code == 1
    assert "it must be the folder that the export had, whose name was checkpoint" in flat(done.output)
    assert schedulers_cli._scorer(tiny, "", checkpoints["sd"], lambda _: None) is None


@pytest.mark.parametrize(
    ("arguments", "status", "sentence"),
    [
        (["--schedulers", "heun"], 2, "'heun' is not a scheduler; it must be one of ddpm, ddim, euler,"),
        (
            ["--variations", "beta"],
            2,
            "'beta' is not a variation; it must be one of own, linspace, leading, trailing, exponential, eta",
        ),
        (["--steps", "few"], 2, "'few' is not a list of numbers"),
        (["--captions", "0"], 2, "--captions"),
        (["--recommend", "101"], 2, "--recommend"),
        (["--plot", "plot.txt"], 2, "plot.txt is not allowed; its name must end with one of .png, .svg, .pdf"),
        (["--steps", "201"], 1, "--steps: 201 is not allowed; it must be 1 to 200, the server's max_steps"),
        (["--steps", "60", "--schedulers", "lcm"], 1, "nothing that was asked for can be measured"),
        (["--prompts", "/nowhere"], 1, "--prompts: /nowhere cannot be read: no such file or directory"),
        (["--repository", "/nowhere"], 1, "/nowhere/text_to_image/manifest.json is missing; `make export` puts it there"),
    ],
)
def test_what_cannot_be_measured_is_refused_by_name(tiny: Path, arguments: list[str], status: int, sentence: str) -> None:
    done = command("--repository", str(tiny), *arguments)
    assert done.exit_code == status
    assert sentence in flat(done.output)


def test_engines_that_were_exported_anew_are_measured_anew(tiny: Path, tmp_path: Path) -> None:
    plan = SchedulersPlan(repository=tiny, work=tmp_path, steps=(2,), captions=1)
    before = Schedulers(plan, lambda _: None).kept.folder
    assert Schedulers(plan, lambda _: None).kept.folder == before
    manifest = tiny / "text_to_image" / "manifest.json"
    told = manifest.read_text()
    try:
        changed = json.loads(told)
        changed["files"]["unet/1/model.onnx"] = "0" * 64
        manifest.write_text(json.dumps(changed))
        assert Schedulers(plan, lambda _: None).kept.folder != before
        manifest.unlink()
        with pytest.raises(ServingError, match="denoise is in no manifest; export the model again"):
            Schedulers(plan, lambda _: None)
    finally:
        manifest.write_text(told)


def test_the_captions_that_shapes_scores_are_those_that_it_draws() -> None:
    scorer = scorer_for(CHECKPOINT)
    assert scorer is not None
    asked: list[str] = []

    def draw(texts: list[str], seeds: list[int]) -> Iterator[np.ndarray]:
        asked.extend(texts)
        assert seeds == [one.seed for one in asked_for(texts, 1)]
        return (np.zeros((128, 128, 3), np.uint8) for _ in texts)

    scorer.score(draw, 5, lambda _: None)
    assert asked == scorer.scored(5)
