"""Opens a local diffusers folder: which family it is, whether every file is whole and safe to read; loads its parts."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from safetensors import SafetensorError, safe_open

from nereid.engines.digests import file_digest
from nereid_export.errors import ExportError
from nereid_export.families import PIPELINES, export_family


class Fused(Protocol):
    """Weights that are added to a checkpoint's (`nereid_export.lora.Lora`)."""

    def digest(self) -> str: ...

    def require_parts(self, unet_config: Mapping[str, Any], parts: Sequence[str]) -> None:
        """Raises ExportError where it is for a part that the checkpoint has not."""

    def fuse(self, unet_config: Mapping[str, Any], part: str, module: Any) -> None:
        """Add what is for `part`, in float32; raises ExportError for what does not fit."""


class Tiny(Protocol):
    """A small VAE for the latents of a checkpoint's own (`nereid_export.tiny_vae.TinyVae`)."""

    def digest(self) -> str: ...

    def weight_bytes(self) -> int: ...

    def require_fits(self, vae_config: Mapping[str, Any]) -> None:
        """Raises ExportError where it is for other latents than the checkpoint's VAE."""

    def load(self) -> Any:
        """The module in float32; raises ExportError where its weights do not fit its config."""


_PICKLE_SUFFIXES = (".bin", ".ckpt", ".pt", ".pth", ".pkl")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A folder that has been looked through and found exportable."""

    folder: Path
    family: str
    index: dict[str, Any]
    fused: tuple[Fused, ...] = ()
    """What is added to its parts when they are loaded."""
    cache_branch: int | None = None
    """Where its UNet is cut for feature caching (nereid_export.split_unet)."""
    tiny_vae: Tiny | None = None
    """Whose decoder is served beside the VAE's."""

    @classmethod
    def open(
        cls, folder: Path, fused: tuple[Fused, ...] = (), *, cache_branch: int | None = None, tiny_vae: Tiny | None = None
    ) -> Checkpoint:
        """Look the folder through without loading weights; raises ExportError with what is wrong."""
        if not folder.is_dir():
            hint = " (a single-file checkpoint; save it with diffusers' save_pretrained first)" if folder.is_file() else ""
            raise ExportError(f"{folder} is not a folder{hint}; it must be a local diffusers folder")
        index_file = folder / "model_index.json"
        if not index_file.is_file():
            raise ExportError(f"{folder} has no model_index.json; it must be a local diffusers folder")
        index = read_json(index_file)
        name = index.get("_class_name")
        if not isinstance(name, str) or name not in PIPELINES:
            raise ExportError(f"{index_file}: architecture {name!r} is not supported; it must be one of {', '.join(PIPELINES)}")
        if index.get("requires_aesthetics_score"):
            raise ExportError(f"{index_file}: the XL refiner is not supported; export the base model")
        checkpoint = cls(folder, PIPELINES[name], index, fused, cache_branch, tiny_vae)
        for component in export_family(checkpoint.family).components:
            checkpoint._check_component(component)
        with understood(folder):
            checkpoint._check_architecture()
        for item in fused:
            item.require_parts(checkpoint.config("unet"), export_family(checkpoint.family).components)
        if tiny_vae is not None:
            with understood(folder):
                tiny_vae.require_fits(checkpoint.config("vae"))
        return checkpoint

    def config(self, component: str) -> Settings:
        """The component's own settings, parsed."""
        names = {"scheduler": "scheduler_config.json", "tokenizer": "tokenizer_config.json"}
        return read_json(self.folder / component / names.get(component.removesuffix("_2"), "config.json"))

    @property
    def latent_channels(self) -> int:
        """Of the VAE's latents, which the UNet denoises."""
        return int(self.config("vae").get("latent_channels", 4))

    @property
    def inpainting(self) -> bool:
        """Whether the UNet is told a mask and a picture's latents, as further channels of its sample."""
        return bool(self.config("unet")["in_channels"] == _told_channels(self.latent_channels))

    def weights(self, component: str) -> list[Path]:
        """The component's safetensors files; fp16 variants only where nothing else is there."""
        return weights_in(self.folder / component)

    def variant(self, component: str) -> str | None:
        """What diffusers and transformers must be told to find the component's weights under their name."""
        return variant_in(self.folder / component)

    def weight_bytes(self) -> int:
        """Size of all weights on disk."""
        parts = [name for name in export_family(self.family).components if not name.startswith(("tokenizer", "scheduler"))]
        size = sum(file.stat().st_size for part in parts for file in self.weights(part))
        return size + (0 if self.tiny_vae is None else self.tiny_vae.weight_bytes())

    def digest(self) -> str:
        """SHA-256 over every component's files, names included: what an engine was made from."""
        total = hashlib.sha256()
        for file in self._files():
            total.update(f"{file.relative_to(self.folder)}\0".encode())
            total.update(file_digest(file).encode())
        for item in self.fused:
            total.update(f"{item.digest()}\0".encode())
        if self.tiny_vae is not None:
            total.update(f"{self.tiny_vae.digest()}\0".encode())
        return total.hexdigest()

    def _files(self) -> Iterator[Path]:
        yield self.folder / "model_index.json"
        for component in export_family(self.family).components:
            yield from sorted(path for path in (self.folder / component).iterdir() if path.is_file())

    def _check_component(self, component: str) -> None:
        folder = self.folder / component
        if not folder.is_dir():
            raise ExportError(f"{self.folder} has no {component}/, which a {self.index['_class_name']} needs")
        self.config(component)
        if component.startswith(("tokenizer", "scheduler")):
            return
        check_weights(folder)

    def _check_architecture(self) -> None:
        unet, vae = self.config("unet"), self.config("vae")
        for component, config, expected in (
            ("unet", unet, "UNet2DConditionModel"),
            ("vae", vae, "AutoencoderKL"),
        ):
            if config.get("_class_name") != expected:
                raise ExportError(
                    f"{self.folder / component}: architecture {config.get('_class_name')!r} is not supported; "
                    f"it must be {expected}"
                )
        latents = self.latent_channels
        if unet.get("in_channels") not in (latents, _told_channels(latents)) or unet.get("out_channels") != latents:
            raise ExportError(
                f"{self.folder / 'unet'}: in_channels {unet.get('in_channels')} and out_channels {unet.get('out_channels')} "
                f"do not fit the VAE's {latents} latent channels; it must take {latents}, or {_told_channels(latents)} for "
                "inpainting; depth models are not supported"
            )
        for name in ("latents_mean", "latents_std"):
            if vae.get(name) is not None:
                raise ExportError(f"{self.folder / 'vae'}: {name} is not supported; latents are scaled by scaling_factor alone")
        wanted = export_family(self.family).addition_embed_type
        if unet.get("addition_embed_type") != wanted or unet.get("class_embed_type") is not None:
            raise ExportError(
                f"{self.folder / 'unet'}: addition_embed_type {unet.get('addition_embed_type')!r} is not supported "
                f"for this family; it must be {wanted!r}"
            )


def _told_channels(latents: int) -> int:
    """Of the sample of a UNet that draws parts of pictures: latents, a mask, and latents of the rest of the picture."""
    return 2 * latents + 1


def weights_in(folder: Path) -> list[Path]:
    """A folder's safetensors files; fp16 variants only where nothing else is there."""
    files = sorted(folder.glob("*.safetensors"))
    return [file for file in files if not is_fp16(file)] or files


def variant_in(folder: Path) -> str | None:
    """What diffusers and transformers must be told to find a folder's weights under their name."""
    files = weights_in(folder)
    return "fp16" if files and is_fp16(files[0]) else None


def check_weights(folder: Path) -> None:
    """Raises ExportError for a folder without safetensors files, or with one that cannot be read."""
    if not weights_in(folder):
        raise no_weights(folder)
    for file in weights_in(folder):
        check_safetensors(file)


def no_weights(folder: Path) -> ExportError:
    """What a folder is refused with that has no safetensors files."""
    pickles = [file for file in sorted(folder.iterdir()) if file.suffix in _PICKLE_SUFFIXES]
    if pickles:
        return ExportError(
            f"{pickles[0]} is a pickle, which can run code when read, and is refused; convert it to safetensors first"
        )
    return ExportError(f"{folder} has no *.safetensors file")


def is_fp16(file: Path) -> bool:
    """Whether a weights file is of the fp16 variant: model.fp16.safetensors, or one of its shards in either spelling."""
    return ".fp16." in file.name or ".fp16-" in file.name


class Settings(dict[str, Any]):
    """A JSON object that remembers its file: a name asked for and not there is the file's fault."""

    def __init__(self, file: Path, values: dict[str, Any]) -> None:
        super().__init__(values)
        self.file = file

    def __missing__(self, name: str) -> Any:
        raise ExportError(f"{self.file} lacks {name}")


def read_json(file: Path) -> Settings:
    """A JSON object from a file; raises ExportError where there is none."""
    try:
        value = json.loads(read_text(file))
    except (ValueError, RecursionError):
        raise ExportError(f"{file} is not valid JSON") from None
    if not isinstance(value, dict):
        raise ExportError(f"{file} must hold a JSON object")
    return Settings(file, value)


def read_text(file: Path) -> str:
    """A text file of a checkpoint; raises ExportError where it cannot be read."""
    try:
        return file.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ExportError(f"{file} is missing") from None
    except UnicodeDecodeError:
        raise ExportError(f"{file} is not UTF-8 text") from None
    except OSError as error:
        raise ExportError(f"{file} cannot be read: {(error.strerror or type(error).__name__).lower()}") from None


@contextmanager
def understood(what: Path) -> Iterator[None]:
    """Turn what libraries and arithmetic make of a checkpoint's odd settings into one sentence that says where they lie."""
    try:
        yield
    except ExportError:
        raise
    except MemoryError:
        raise ExportError(f"{what}: there is not enough memory for it") from None
    except Exception as error:
        said = next(iter(str(error).splitlines()), "")
        raise ExportError(f"{what} cannot be used: {type(error).__name__}{': ' if said else ''}{said}") from None


def check_safetensors(file: Path) -> None:
    """Open the file and read its table of contents; raises ExportError for truncated or corrupt ones."""
    try:
        with safe_open(file, framework="np") as opened:
            if not list(opened.keys()):
                raise ExportError(f"{file} holds no tensors")
    except SafetensorError as error:
        raise ExportError(f"{file} is truncated or corrupt ({error})") from None
