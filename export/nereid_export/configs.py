"""The repository's config.pbtxt files, edited as Triton's own ModelConfig protobuf for one checkpoint's sizes and names."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as pb

from nereid.diffusion.families import TextEncoder, family_of
from nereid.diffusion.families.base import HALVES
from nereid.engines.served_model import STAND_IN_CONFIG
from nereid_export.components import Component, TensorSpec
from nereid_export.engines.base import EngineBuilder, Target
from nereid_protocol.field import Model
from nereid_protocol.fields import carried_by, passed_on

SOURCE = Path(__file__).resolve().parents[2] / "model_repository"
"""Where the sources of all models lie, in a checkout."""

_DTYPES = {torch.float32: pb.TYPE_FP32, torch.int32: pb.TYPE_INT32}
_ENSEMBLE = "text_to_image"
_PIPELINE_MODELS = ("tokenizer", "denoise", "image_output", "text_to_image_stream", "text_to_image_json", _ENSEMBLE)


def read_config(file: Path) -> Any:
    """Parse a config.pbtxt."""
    return text_format.Parse(file.read_text(), pb.ModelConfig())


def source_config(name: str) -> Any:
    """A model's config.pbtxt as its source has it, with the request fields that the table says it carries."""
    config = read_config(SOURCE / name / "config.pbtxt")
    if name not in set(Model):
        return config
    for field in carried_by(Model(name)):
        kind = getattr(pb, f"TYPE_{field.dtype}")
        config.input.add(name=field.name, data_type=kind, dims=field.shape, optional=field.name != "prompt")
    if name == Model.ENSEMBLE:
        for target in (Model.TOKENIZER, Model.DENOISE):
            for field in passed_on(Model.ENSEMBLE, target):
                _step(config, target).input_map[field.name] = field.name
    return config


def write_config(config: Any, folder: Path) -> None:
    """Write a model's config.pbtxt."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.pbtxt").write_text(text_format.MessageToString(config))


def write_engine_config(config: Any, folder: Path) -> None:
    """Write an engine's config, and where it names a platform of newer Tritons, the one by which stand-ins serve it."""
    write_config(config, folder)
    if config.platform:
        older = pb.ModelConfig()
        older.CopyFrom(config)
        older.ClearField("platform")
        file = folder / "configs" / f"{STAND_IN_CONFIG}.pbtxt"
        file.parent.mkdir()
        file.write_text(text_format.MessageToString(older))


def write_model(config: Any, source: str, repository: Path) -> Path:
    """A Python model with its code, as `source` has it, into a repository; the model's folder."""
    folder = repository / config.name
    write_config(config, folder)
    shutil.copytree(SOURCE / source / "1", folder / "1", ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def prefixed(name: str, prefix: str) -> str:
    """A model's name in a repository of several pipelines."""
    return f"{prefix}_{name}" if prefix else name


def engine_config(component: Component, builder: EngineBuilder, target: Target, *, prefix: str) -> Any:
    """The config of one engine model: real sizes, backend, place."""
    own = SOURCE / component.name
    source = own if own.is_dir() else SOURCE / component.name.rpartition("_")[0]  # text_encoder_2, unet_shallow
    config = read_config(source / "config.pbtxt")
    config.name = prefixed(component.name, prefix)
    config.max_batch_size = target.max_batch_size
    config.backend, config.default_model_filename = builder.backend, builder.filename
    del config.input[:], config.output[:]
    for spec in component.inputs:
        config.input.add(name=spec.name, data_type=_DTYPES[spec.dtype], dims=_dims(spec))
    for spec in component.outputs:
        config.output.add(name=spec.name, data_type=_DTYPES[spec.dtype], dims=_dims(spec))
    builder.configure(config, component, target)
    return config


def _dims(spec: TensorSpec) -> list[int]:
    return [-1 if isinstance(dim, str) else dim for dim in spec.dims]


def pipeline_configs(
    *, prefix: str, family: str, channels: int, max_batch_size: int, force_zeros: bool, unet_min_rows: int
) -> dict[str, Any]:
    """The configs of all Python models and the ensemble, by their unprefixed names."""
    configs = {name: source_config(name) for name in _PIPELINE_MODELS}
    for config in configs.values():
        if config.max_batch_size:
            config.max_batch_size = max_batch_size
        for tensor in (*config.input, *config.output):
            _set_channels(tensor, channels)
    denoise = configs["denoise"]
    _set_parameter(denoise, "unet_max_batch_size", str(2 * max_batch_size))
    _set_parameter(denoise, "max_images_per_request", str(max_batch_size))
    _set_parameter(denoise, "unet_min_batch_size", str(unet_min_rows))
    inflight = max(max_batch_size, int(denoise.parameters["max_inflight"].string_value))
    _set_parameter(denoise, "max_inflight", str(inflight))
    for encoder in family_of(family).encoders[1:]:
        _add_encoder(configs, encoder)
    if force_zeros:
        denoise.input.add(name="negative_prompt", data_type=pb.TYPE_STRING, dims=[1], optional=True)
        _step(configs[_ENSEMBLE], "denoise").input_map["negative_prompt"] = "negative_prompt"
    for config in configs.values():
        _prefix(config, prefix)
    return configs


def _set_channels(tensor: Any, channels: int) -> None:
    """The sources say 4 latent channels, first of three dimensions or second of four; make that the checkpoint's number."""
    if tensor.name in ("latents", "solver_memory"):
        tensor.dims[-3] = channels


def _set_parameter(config: Any, key: str, value: str) -> None:
    config.parameters[key].string_value = value


def _step(ensemble: Any, model: str) -> Any:
    return next(step for step in ensemble.ensemble_scheduling.step if step.model_name == model)


def _add_encoder(configs: dict[str, Any], encoder: TextEncoder) -> None:
    """A further tokenizer and text encoder, whose embeddings go to `denoise` too."""
    tokenizer, denoise, ensemble = configs["tokenizer"], configs["denoise"], configs[_ENSEMBLE]
    steps = ensemble.ensemble_scheduling.step
    for half in HALVES:
        ids = encoder.ids(half)
        tokenizer.output.add(name=ids, data_type=pb.TYPE_INT32, dims=[-1])
        _step(ensemble, "tokenizer").output_map[ids] = ids
        for theirs, ours in encoder.outputs(half).items():
            dims = [-1] if theirs.startswith("pooled") else [-1, -1]
            denoise.input.add(name=ours, data_type=pb.TYPE_FP32, dims=dims, optional=True)
            _step(ensemble, "denoise").input_map[ours] = ours
        steps.add(model_name=encoder.model, model_version=-1, input_map={"input_ids": ids}, output_map=encoder.outputs(half))


def _prefix(config: Any, prefix: str) -> None:
    """Rename the model and everything it calls."""
    config.name = prefixed(config.name, prefix)
    for key in config.parameters:
        if key.endswith("_model"):
            _set_parameter(config, key, prefixed(config.parameters[key].string_value, prefix))
    for step in config.ensemble_scheduling.step:
        step.model_name = prefixed(step.model_name, prefix)
