"""What AUTOMATIC1111's API answers: pictures with their parameters as text, progress, and what there is to choose from."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from nereid.engines.digests import own_version
from nereid.serving.gateway.a1111.bodies import DrawBody, ImageToImageBody
from nereid.serving.gateway.a1111.jobs import Job, Preview
from nereid.serving.gateway.a1111.masks import Overlay
from nereid.serving.gateway.a1111.samplers import SAMPLERS, SCHEDULES, Chosen
from nereid.serving.gateway.a1111.settings import Kept
from nereid.serving.gateway.picture_forms import MASK
from nereid.serving.gateway.pictures import PARAMETERS, Encoding, in_base64
from nereid_client import ImageResult

_PNG = Encoding()
_STAMP = "%Y%m%d%H%M%S"
_VERSION = f"Nereid {own_version()}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawn:
    """A request that is done, or was interrupted: then there are fewer results than seeds."""

    body: DrawBody
    model: str
    sampler: Chosen
    steps: int | None
    cfg_scale: float | None
    """Of both, None: neither the request nor the model says it."""
    job: Job
    results: Sequence[ImageResult]
    encoding: Encoding = _PNG
    warnings: Sequence[str] = ()

    def answer(self, overlay: Overlay | None = None) -> dict[str, Any]:
        """The whole answer; encodes pictures, which takes a while."""
        pictures = []
        if self.body.send_images:
            for result in self.results:
                pixels = result.pixels[0] if overlay is None else overlay.over(result.pixels[0])
                pictures.append(in_base64(self.encoding.encoded(pixels, text=self.text(result))))
        return {"images": pictures, "parameters": _sent(self.body), "info": json.dumps(self.info(), ensure_ascii=False)}

    def info(self) -> dict[str, Any]:
        """The object that the answer has as a text, with all that AUTOMATIC1111's has: some front ends read nothing less.

        `warnings` and `interrupted` are not AUTOMATIC1111's.
        """
        count, seeds = len(self.results), [result.seed for result in self.results]
        height, width = self.results[0].pixels.shape[1:3] if self.results else (self.body.height, self.body.width)
        warnings = dict.fromkeys([*self.warnings, *(line for result in self.results for line in result.warnings)])
        return {
            "prompt": self.body.prompt,
            "all_prompts": [self.body.prompt] * count,
            "negative_prompt": self.body.negative_prompt,
            "all_negative_prompts": [self.body.negative_prompt] * count,
            "seed": seeds[0] if seeds else self.body.seed,
            "all_seeds": seeds,
            "subseed": 0,
            "all_subseeds": [0] * count,
            "subseed_strength": 0,
            "width": width,
            "height": height,
            "sampler_name": self.sampler.label,
            "cfg_scale": self.cfg_scale,
            "steps": self.steps,
            "batch_size": self.body.batch_size,
            "restore_faces": False,
            "face_restoration_model": None,
            "sd_model_name": self.model,
            "sd_model_hash": "",
            "sd_vae_name": None,
            "sd_vae_hash": None,
            "seed_resize_from_w": -1,
            "seed_resize_from_h": -1,
            "denoising_strength": self.body.denoising_strength if isinstance(self.body, ImageToImageBody) else 0,
            "extra_generation_params": {},
            "index_of_first_image": 0,
            "infotexts": [self.text(result) for result in self.results],
            "styles": [],
            "job_timestamp": time.strftime(_STAMP, time.localtime(self.job.began_at)),
            "clip_skip": 1,
            "is_using_inpainting_conditioning": False,
            "version": _VERSION,
            "warnings": list(warnings),
            "interrupted": self.job.interrupted,
        }

    def text(self, result: ImageResult) -> str:
        """One picture's parameters in the form in which AUTOMATIC1111 writes them into its files."""
        height, width = result.pixels.shape[1:3]
        facts = {
            "Steps": self.steps,
            "Sampler": self.sampler.label or None,
            "CFG scale": None if self.cfg_scale is None else f"{self.cfg_scale:g}",
            "Seed": result.seed,
            "Size": f"{width}x{height}",
            "Model": self.model,
            "Denoising strength": f"{self.body.denoising_strength:g}" if isinstance(self.body, ImageToImageBody) else None,
            "Eta": "0" if self.body.eta == 0 else None,
            "Version": _VERSION,
        }
        negative = [f"Negative prompt: {self.body.negative_prompt}"] if self.body.negative_prompt else []
        return "\n".join(
            [self.body.prompt, *negative, ", ".join(f"{name}: {it}" for name, it in facts.items() if it is not None)]
        )


def _sent(body: DrawBody) -> dict[str, Any]:
    """The request's fields, without the pictures that came with it, unless they are asked for."""
    kept = body.model_dump()
    if isinstance(body, ImageToImageBody) and not body.include_init_images:
        kept["init_images"] = kept[MASK] = None
    return kept


def progress(jobs: Sequence[Job]) -> dict[str, Any]:
    """How far the oldest one is; all is 0 where there is none."""
    job = jobs[0] if jobs else None
    share = 0.0 if job is None else job.share
    seconds = 0.0 if job is None else time.monotonic() - job.begun
    return {
        "progress": share,
        "eta_relative": seconds / share - seconds if share else 0.0,
        "state": _state(job),
        "current_image": None,
        "textinfo": None,
    }


def preview_of(preview: Preview) -> str:
    """As large as its picture."""
    return in_base64(_PNG.encoded(preview.pixels, enlarge=preview.scale))


def _state(job: Job | None) -> dict[str, Any]:
    done, steps = (0, 0) if job is None else job.step
    return {
        "skipped": job is not None and job.skipped,
        "interrupted": job is not None and job.interrupted,
        "stopping_generation": False,
        "job": "" if job is None else f"Batch {job.batch + 1} out of {job.batches}",
        "job_count": 0 if job is None else job.batches,
        "job_timestamp": "0" if job is None else time.strftime(_STAMP, time.localtime(job.began_at)),
        "job_no": 0 if job is None else job.batch,
        "sampling_step": done,
        "sampling_steps": steps,
    }


def samplers() -> list[dict[str, Any]]:
    made = []
    for item in SAMPLERS:
        options = {"scheduler": "karras"} if item.by_itself else {}
        made.append({"name": item.name, "aliases": [*item.aliases, str(item.scheduler)], "options": options})
    return made


def schedulers() -> list[dict[str, Any]]:
    facts = {"aliases": None, "default_rho": -1, "need_inner_model": False}
    return [{"name": item.name, "label": item.label, **facts} for item in SCHEDULES]


def models(names: Sequence[str]) -> list[dict[str, Any]]:
    nothing = {"hash": None, "sha256": None, "config": None}
    return [{"title": name, "model_name": name, "filename": name, **nothing} for name in names]


def options(kept: Kept) -> Mapping[str, Any]:
    """The settings that front ends read, as they are here."""
    return {
        **asdict(kept),
        "sd_checkpoint_hash": None,
        "sd_vae": "Automatic",
        "CLIP_stop_at_last_layers": 1,
        "eta_noise_seed_delta": 0,
        "return_grid": False,
        "img2img_background_color": "#ffffff",
        "img2img_color_correction": False,
        "img2img_fix_steps": False,
        "initial_noise_multiplier": 1,
        "ddim_discretize": "uniform",
        "sd_hypernetwork": "None",
        "sd_model_refiner": "None",
        "face_restoration_model": None,
    }


NOTHING: Mapping[str, Any] = {
    "upscalers": [{"name": "None", "model_name": None, "model_path": None, "model_url": None, "scale": 4}],
    "latent-upscale-modes": [],
    "sd-vae": [],
    "sd-modules": [],
    "loras": [],
    "hypernetworks": [],
    "prompt-styles": [],
    "face-restorers": [],
    "realesrgan-models": [],
    "extensions": [],
    "script-info": [],
    "embeddings": {"loaded": {}, "skipped": {}},
    "scripts": {"txt2img": [], "img2img": []},
}
"""What front ends ask for at their start, and there is none of here."""


FLAGS: Mapping[str, Any] = {"api": True, "nowebui": True}
"""How AUTOMATIC1111 would have been started; front ends look here whether there is an API."""
_UNTOLD = {"error": "not told here"}
MEMORY: Mapping[str, Any] = {"ram": _UNTOLD, "cuda": _UNTOLD}
"""As AUTOMATIC1111 says it where it does not know; front ends look here whether anybody answers."""


def queue(jobs: Sequence[Job]) -> dict[str, Any]:
    """As Gradio says it below AUTOMATIC1111: a front end looks here whether anybody answers."""
    unknown = dict.fromkeys(("rank", "avg_event_process_time", "avg_event_concurrent_process_time", "rank_eta"))
    return {"msg": "estimation", "queue_size": len(jobs), "queue_eta": 0, **unknown}


def picture_info(texts: Mapping[str, str]) -> dict[str, Any]:
    """A picture's parameters, in one text and apart, and its other texts."""
    items = dict(texts)
    text = items.pop(PARAMETERS, "")
    return {"info": text, "items": items, "parameters": _parameters(text)}


_NEGATIVE = "Negative prompt: "
_SIZE = re.compile(r"([0-9]{1,6})x([0-9]{1,6})")


def _parameters(text: str) -> dict[str, str]:
    """What the text says, by its own names; a size by two. Takes time in proportion to its length, whoever has written it."""
    if not text:
        return {}
    *lines, last = text.strip().split("\n")
    if "Steps: " not in last:
        lines, last = [*lines, last], ""
    begin = next((number for number, line in enumerate(lines) if line.startswith(_NEGATIVE)), len(lines))
    made = {"Prompt": "\n".join(lines[:begin]), "Negative prompt": "\n".join(lines[begin:]).removeprefix(_NEGATIVE)}
    for fact in _facts(last):
        name, colon, value = fact.partition(": ")
        if size := _SIZE.fullmatch(value):
            made[f"{name}-1"], made[f"{name}-2"] = size.groups()
        elif colon:
            made[name] = value
    return made


def _facts(line: str) -> Iterator[str]:
    """Its parts between commas; a value in quotation marks is one part whatever is in it."""
    parts = iter(line.split(", "))
    for part in parts:
        whole = [part]
        if part.count('"') % 2:
            for more in parts:
                whole.append(more)
                if more.endswith('"'):
                    break
        yield ", ".join(whole)
