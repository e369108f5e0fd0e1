"""Runs the real perf_analyzer over a range of concurrencies and plots throughput and latency."""

from __future__ import annotations

import csv
import json
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig

from nereid.flow.parameters import read_tensor_names
from nereid.serving.errors import ServingError
from nereid.serving.installation import perf_analyzer_command
from nereid_bench.servers import serving
from nereid_zoo.sections.chat import conversation

NEW_TOKENS = 32
"""Tokens of each answer of `llm`."""
PERCENTILES = ("p50", "p90", "p95", "p99")


def perf(
    repository: Path, out: Path, concurrencies: tuple[int, ...], steps: int, seconds: float, say: Callable[[str], None]
) -> dict[str, Any]:
    """Measure `text_to_image`, `unet` and `llm`, whichever are there; CSV, JSON and a plot go to `out`, the JSON is returned."""
    cases = _cases(repository, steps)
    if not cases:
        raise ServingError(f"{repository} has neither text_to_image nor llm; `make export export-llm` puts both there")
    out.mkdir(parents=True, exist_ok=True)
    report: dict[str, Any] = {"steps": steps, "new_tokens": NEW_TOKENS, "models": {}}
    with serving(repository) as (_, options):
        for model, arguments in cases.items():
            rows = []
            for concurrency in concurrencies:
                say(f"perf_analyzer: {model}, concurrency {concurrency}")
                rows.append(_measure(model, f"127.0.0.1:{options.grpc_port}", concurrency, seconds, arguments, out))
            report["models"][model] = rows
    (out / "perf.json").write_text(json.dumps(report, indent=1))
    _plot(report, out / "perf.png")
    return report


def _cases(repository: Path, steps: int) -> dict[str, tuple[dict[str, Any], list[str]]]:
    """Input data and further arguments of each model that is there."""
    images = _image_cases(repository, steps) if (repository / "text_to_image").is_dir() else {}
    return {**images, **(_text_case() if (repository / "llm").is_dir() else {})}


def _text_case() -> dict[str, tuple[dict[str, Any], list[str]]]:
    """A request for a fixed number of tokens, streamed: perf_analyzer's latency is then the last token's."""
    parameters = {"max_tokens": NEW_TOKENS, "ignore_eos": True, "temperature": 0}
    request = {
        "text_input": [conversation("features section for a museum, four cards")],
        "stream": [True],
        "sampling_parameters": [json.dumps(parameters)],
    }
    return {"llm": (request, ["--streaming"])}


def _image_cases(repository: Path, steps: int) -> dict[str, tuple[dict[str, Any], list[str]]]:
    facts = json.loads((repository / "denoise" / "1" / "pipeline.json").read_text())
    side = facts["default_width"] // facts["vae_scale_factor"]
    image = {
        "prompt": ["a red circle above a blue square"],
        "num_inference_steps": [steps],
        "guidance_scale": [5.0],
        "seed": [7],
    }
    return {"text_to_image": (image, []), "unet": ({}, ["--input-data=random", *_unet_shapes(repository, side)])}


def _unet_shapes(repository: Path, side: int) -> list[str]:
    """Of the inputs that perf_analyzer cannot know: those of any size, or, where the engine batches by its shape, all."""
    text_encoder, unet, denoise = (_config(repository, name) for name in ("text_encoder", "unet", "denoise"))
    tokens = text_encoder.input[0].dims[-1]
    told = {key: value.string_value for key, value in denoise.parameters.items()}
    sample, states = (read_tensor_names(told).get("unet", {}).get(name, name) for name in ("sample", "encoder_hidden_states"))
    shapes = []
    for tensor in unet.input:
        batch, dims = ([], list(tensor.dims)) if unet.max_batch_size else ([1], list(tensor.dims)[1:])
        if tensor.name == sample:
            dims[1:] = [side, side]
        if tensor.name == states:
            dims[0] = tokens
        if batch or dims != list(tensor.dims):
            shapes.append(f"--shape={tensor.name}:{','.join(map(str, batch + dims))}")
    return shapes


def _config(repository: Path, model: str) -> Any:
    return text_format.Parse((repository / model / "config.pbtxt").read_text(), ModelConfig())


def _measure(
    model: str, url: str, concurrency: int, seconds: float, case: tuple[dict[str, Any], list[str]], out: Path
) -> dict[str, float]:
    data, arguments = case
    binary, environment = perf_analyzer_command()
    table = out / f"{model}-{concurrency}.csv"
    with tempfile.TemporaryDirectory() as folder:
        if data:
            file = Path(folder) / "input.json"
            file.write_text(json.dumps({"data": [data]}))
            arguments = [*arguments, f"--input-data={file}"]
        command = [
            *(str(binary), "-m", model, "-u", url, "-i", "grpc", "--async", "-b", "1"),
            f"--concurrency-range={concurrency}",
            "--measurement-mode=time_windows",
            f"--measurement-interval={int(seconds * 1000)}",
            "--max-trials=3",
            "--stability-percentage=999",
            "-f",
            str(table),
            *arguments,
        ]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60 + 20 * seconds)
    if done.returncode != 0 or not table.is_file():
        raise ServingError(f"perf_analyzer failed on {model}: {' '.join((done.stderr or done.stdout).split())[:400]}")
    with table.open() as opened:
        row = next(csv.DictReader(opened))
    latencies = {name: float(row[f"{name} latency"]) / 1e6 for name in PERCENTILES}
    return {"concurrency": concurrency, "throughput": float(row["Inferences/Second"]), **latencies}


def _plot(report: dict[str, Any], file: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(
        len(report["models"]), 2, figsize=(9, 3 * len(report["models"])), squeeze=False, layout="constrained"
    )
    for (model, rows), (left, right) in zip(report["models"].items(), axes, strict=True):
        concurrency = [row["concurrency"] for row in rows]
        left.plot(concurrency, [row["throughput"] for row in rows], marker="o")
        left.set(title=model, xlabel="concurrency", ylabel="inferences/s", ylim=(0, None))
        for name in ("p50", "p95"):
            right.plot(concurrency, [1000 * row[name] for row in rows], marker="o", label=name)
        right.set(title=model, xlabel="concurrency", ylabel="latency, ms", ylim=(0, None))
        right.legend()
        for axis in (left, right):
            axis.grid(alpha=0.3)
    figure.savefig(file, dpi=120)
    plt.close(figure)
