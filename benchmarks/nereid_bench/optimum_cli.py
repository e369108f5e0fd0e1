"""OpenVINO GenAI's models, which Hugging Face's `optimum-cli` makes: its packages fit beside ours only in another environment."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
from pathlib import Path

from nereid_export.errors import ExportError

LLM = ("--task", "text-generation-with-past", "--weight-format", "int4", "--group-size", "32", "--sym", "--ratio", "1.0")
IMAGES = ("--task", "text-to-image", "--weight-format", "fp32")
LEFT_OUT = "openvino-genai is left out: it needs `pip install -e './benchmarks[openvino-genai]'` and --optimum-cli"


def converted(checkpoint: Path, folder: Path, cli: Path | None, *options: str) -> None:
    """Make the checkpoint's model in `folder`, whole or not at all, unless it is there or nobody said where the command is."""
    if cli is None or folder.is_dir():
        return
    beside = folder.absolute().with_name(f"{folder.name}.new")
    shutil.rmtree(beside, ignore_errors=True)
    command = [str(cli), "export", "openvino", "-m", str(checkpoint.absolute()), *options]
    try:
        done = subprocess.run([*command, str(beside)], check=False, capture_output=True, text=True)
    except OSError as error:
        raise ExportError(f"--optimum-cli: {cli} cannot be run: {str(error.strerror).lower()}") from None
    if done.returncode or not beside.is_dir():
        said = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise ExportError(f"--optimum-cli: {cli} could not convert {checkpoint}: {said[-1]}")
    beside.replace(folder)


def has_openvino_genai() -> bool:
    return importlib.util.find_spec("openvino_genai") is not None


def images_converted(checkpoint: Path, folder: Path, cli: Path | None) -> bool:
    """Whether the checkpoint's pipeline is in `folder`, now or after `cli` has made it, with a scheduler that GenAI knows."""
    if not has_openvino_genai():
        return False
    converted(checkpoint, folder, cli, *IMAGES)
    if not folder.is_dir():
        return False
    from diffusers import DDIMScheduler

    # It has fewer schedulers than diffusers, and calls of the UNet take as long with each.
    config = DDIMScheduler.load_config(checkpoint, subfolder="scheduler")
    same = {name: config[name] for name in ("beta_start", "beta_end", "beta_schedule", "prediction_type") if name in config}
    DDIMScheduler(**same, clip_sample=False).save_pretrained(folder / "scheduler")
    return True
