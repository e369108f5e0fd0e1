"""A tiny VAE beside a checkpoint: its decoder is an engine like others, what it costs is told, what does not fit is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from conftest import Silent, export

torch = pytest.importorskip("torch")
import onnxruntime
from diffusers import AutoencoderTiny
from safetensors.torch import load_file, save_file
from test_auto import MEMORY, speeds

from nereid.diffusion.settings import Decoder, Pipeline
from nereid_export import contest, diffusion
from nereid_export.checkpoint import Checkpoint
from nereid_export.cli import app
from nereid_export.configs import read_config
from nereid_export.contest import Contest
from nereid_export.engines import Engine
from nereid_export.engines.precision import parse_precisions
from nereid_export.facts import pipeline_facts
from nereid_export.gate import SCORED, compare_decoders
from nereid_export.remeasure import remeasure
from nereid_export.tiny_vae import TinyVae

from checkpoints import make_tiny_vae

pytestmark = pytest.mark.torch

FULL, TINY = "p_vae_decoder", "p_vae_decoder_tiny"


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("prompts") / "prompts"
    file.write_text("a red circle\na blue square\ntwo green squares\n", encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def exported(checkpoints: dict[str, Path], tiny_vae: Path, prompts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """To be read only."""
    out = tmp_path_factory.mktemp("tiny") / "out"
    export(checkpoints["sd"], out, name="p", tiny_vae=TinyVae.open(tiny_vae), calibration_prompts=prompts)
    return out


def manifest_of(out: Path) -> dict[str, Any]:
    return dict(json.loads((out / "p_text_to_image" / "manifest.json").read_text()))


def test_its_decoder_is_a_model_with_the_full_ones_tensors(exported: Path) -> None:
    full, tiny = (read_config(exported / name / "config.pbtxt") for name in (FULL, TINY))
    assert tiny.name == TINY
    assert [(tensor.name, list(tensor.dims)) for tensor in (*tiny.input, *tiny.output)] == [
        (tensor.name, list(tensor.dims)) for tensor in (*full.input, *full.output)
    ]
    assert [sample.name for sample in tiny.model_warmup] == [sample.name for sample in full.model_warmup]
    for caller in ("denoise", "image_output"):
        assert read_config(exported / f"p_{caller}" / "config.pbtxt").parameters["vae_decoder_tiny_model"].string_value == TINY


def test_its_engine_gives_pictures_in_the_full_ones_range_as_diffusers_does(exported: Path, tiny_vae: Path) -> None:
    latents = torch.randn(2, 4, 9, 7, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        theirs = AutoencoderTiny.from_pretrained(tiny_vae).decode(latents).sample.numpy()
    session = onnxruntime.InferenceSession(exported / TINY / "1" / "model.onnx", providers=["CPUExecutionProvider"])
    (ours,) = session.run(["image"], {"latents": latents.numpy()})
    assert np.abs(ours - theirs).max() < 1e-4
    assert ours.min() < -0.5  # of -1..1, not 0..1


def test_manifest_and_pipeline_tell_that_it_is_there_and_what_it_costs(
    exported: Path, tiny_vae: Path, checkpoints: dict[str, Path]
) -> None:
    manifest = manifest_of(exported)
    assert manifest["engines"][TINY]["checked"]
    assert manifest["arguments"]["tiny_vae"] == tiny_vae.name
    assert manifest["decoders"]["pictures"] == 3
    assert 0 < manifest["decoders"]["psnr_lowest"] <= manifest["decoders"]["psnr"] < 100
    for model in ("denoise", "image_output"):
        pipeline = Pipeline.read(exported / f"p_{model}" / "1")
        assert pipeline.tiny_decoder
        assert set(pipeline.memory) == {"text_encoder", "unet", "vae_decoder", "vae_decoder_tiny", "vae_encoder"}
    assert not pipeline_facts(Checkpoint.open(checkpoints["sd"]), [])["tiny_decoder"]


def test_it_has_a_precision_of_its_own_and_is_calibrated_on_what_the_full_one_is_called_with(
    checkpoints: dict[str, Path], tiny_vae: Path, prompts: Path, tmp_path: Path
) -> None:
    given = {"name": "p", "tiny_vae": TinyVae.open(tiny_vae), "calibration_prompts": prompts}
    export(checkpoints["sd"], tmp_path / "out", precision=parse_precisions("vae_decoder_tiny=int8"), **given)
    manifest = manifest_of(tmp_path / "out")
    assert {name: engine["precision"] for name, engine in manifest["engines"].items() if engine["precision"] != "fp32"} == {
        TINY: "int8"
    }
    (check,) = manifest["engines"][TINY]["checks"]
    assert check["output"] == "image"
    assert manifest["decoders"]["pictures"] == manifest["pictures"]["pictures"] == 3


def test_auto_chooses_its_engine_too_and_another_machine_chooses_again(
    checkpoints: dict[str, Path], tiny_vae: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nereid_export.built.measure_memory", lambda *_: MEMORY)
    monkeypatch.setattr("nereid_export.remeasure.measure_memory", lambda *_: MEMORY)
    monkeypatch.setattr(contest, "available_processors", lambda: 2)
    monkeypatch.setattr(Contest, "_time", speeds({"vae_decoder_tiny": "openvino"}))
    given = {"name": "p", "tiny_vae": TinyVae.open(tiny_vae), "calibration_prompts": prompts, "max_batch_size": 2}
    export(checkpoints["sd"], tmp_path / "out", engine=Engine.AUTO, **given)
    assert manifest_of(tmp_path / "out")["engines"][TINY]["engine"] == "openvino"
    monkeypatch.setattr(Contest, "_time", speeds({}))
    (manifest,) = remeasure(tmp_path / "out", Silent())
    assert manifest["engines"][TINY]["engine"] == "onnxruntime"
    assert manifest["decoders"]["pictures"] == 3
    pipeline = Pipeline.read(tmp_path / "out" / "p_denoise" / "1")
    assert pipeline.tiny_decoder
    assert "vae_decoder_tiny" in pipeline.memory


def test_engines_of_another_tiny_vae_are_other_engines(checkpoints: dict[str, Path], tiny_vae: Path, tmp_path: Path) -> None:
    def digest(folder: Path | None) -> str:
        return Checkpoint.open(checkpoints["sd"], tiny_vae=None if folder is None else TinyVae.open(folder)).digest()

    other = Path(shutil.copytree(tiny_vae, tmp_path / "other"))
    assert digest(tiny_vae) == digest(other) != digest(None)
    edit_weights(other, lambda value: value + 1)
    assert digest(other) != digest(tiny_vae)


def edit_weights(folder: Path, change: Callable[[Any], Any]) -> None:
    file = folder / "diffusion_pytorch_model.safetensors"
    save_file({name: change(value) for name, value in load_file(file).items()}, file, {"format": "pt"})


def edit_config(folder: Path, **changes: object) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


REFUSALS: dict[str, tuple[Callable[[Path], object], str]] = {
    "no folder": (shutil.rmtree, "is not a folder; it must be one of an AutoencoderTiny"),
    "another class": (
        lambda folder: edit_config(folder, _class_name="AutoencoderKL"),
        "architecture 'AutoencoderKL' is not supported; it must be AutoencoderTiny",
    ),
    "other channels": (
        lambda folder: make_tiny_vae(folder, latent_channels=16),
        "16 latent channels are not allowed; it must be 4, as the VAE has",
    ),
    "another scale": (lambda folder: make_tiny_vae(folder, levels=4), "8 pixels a latent are not allowed; it must be 4"),
    "other colours": (lambda folder: make_tiny_vae(folder, out_channels=4), "4 colours are not allowed; it must be 3"),
    "no config": (lambda folder: (folder / "config.json").unlink(), "config.json is missing"),
    "a setting is not there": (lambda folder: (folder / "config.json").write_text('{"_class_name": "AutoencoderTiny"}'), "lacks"),
    "a pickle": (
        lambda folder: (folder / "diffusion_pytorch_model.safetensors").rename(folder / "diffusion_pytorch_model.bin"),
        "is a pickle",
    ),
    "weights of another shape": (lambda folder: edit_config(folder, num_decoder_blocks=[2, 1, 1]), "little"),
    "weights not finite": (lambda folder: edit_weights(folder, lambda value: value / 0), "holds NaN or infinite values"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_what_does_not_fit_is_refused_in_one_sentence(
    name: str, checkpoints: dict[str, Path], tiny_vae: Path, tmp_path: Path
) -> None:
    damage, words = REFUSALS[name]
    folder = Path(shutil.copytree(tiny_vae, tmp_path / "little"))
    damage(folder)
    given = [str(checkpoints["sd"]), "--tiny-vae", str(folder), "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(app, ["diffusion", *given], terminal_width=400)
    assert done.exit_code == 1
    assert words in " ".join(done.output.split())
    assert "Traceback" not in done.output
    assert not (tmp_path / "out").exists()


def test_both_decoders_are_scored_on_the_same_latents_which_are_drawn_once() -> None:
    class Drawing:
        def __init__(self) -> None:
            self.drawn = 0

        def request(self, prompts: Sequence[str], seeds: Sequence[int]) -> list[int]:
            return list(seeds)

        def denoise(self, seeds: list[int]) -> np.ndarray:
            self.drawn += len(seeds)
            return np.array(seeds)

        def decode(self, latents: np.ndarray, decoder: Decoder = Decoder.FULL) -> np.ndarray:
            return np.stack([np.full((2, 2, 3), 10 * (seed % 2) + (decoder is Decoder.TINY), np.uint8) for seed in latents])

    class Counting:
        name = "even seeds, and as the full decoder shows them"

        def prompts(self, count: int) -> list[str]:
            return []

        def score(self, draw: Any, count: int, told: Any) -> float:
            made: Iterator[Any] = draw([str(seed) for seed in range(count)], list(range(count)))
            told(count)
            return 100 * sum(int(picture.max()) in (0, 11) for picture in made) / count

    drawing, lines = Drawing(), []
    found = compare_decoders(drawing, ["a", "b", "c"], Counting(), lines.append)  # type: ignore[arg-type]
    assert drawing.drawn == 3 + SCORED
    assert found["psnr"] == found["psnr_lowest"] == round(20 * np.log10(255), 2)
    assert (found["score_full"], found["score_tiny"], found["scored"]) == (50, 50, SCORED)
    assert lines[-2:] == [f"scoring the {name} decoder's pictures: {SCORED} of {SCORED}" for name in ("full", "tiny")]
    assert "score_full" not in compare_decoders(drawing, ["a"], None, lines.append)  # type: ignore[arg-type]


def test_an_interrupted_export_does_not_compare_the_decoders_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Reference:
        known: float | None = None

        def drawer(self) -> None: ...

        def scored(self, percent: float) -> None:
            self.known = percent

    compared = []
    monkeypatch.setattr(diffusion, "compare_decoders", lambda *_: compared.append(1) or {"psnr": 30.0, "score_full": 90.0})
    for digest, times in (("one", 1), ("one", 1), ("another", 2)):
        reference = Reference()
        found = diffusion._compared_decoders(reference, ["a box"], digest, None, tmp_path, Silent())  # type: ignore[arg-type]
        assert found["psnr"] == 30
        assert reference.known == 90  # what the gate would otherwise draw again
        assert len(compared) == times
