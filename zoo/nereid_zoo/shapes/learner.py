"""What learns in a consistency distillation, beside its teacher: a copy of the whole UNet, or LoRA weights of the teacher's own.

LoRA: Hu et al., 2021; as consistency distillation has it, LCM-LoRA: Luo et al., 2023. Needs peft, for LoRA alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from copy import deepcopy
from pathlib import Path
from typing import Any, Protocol

import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor, nn

from nereid_zoo.optimisation import update_ema

Network = Callable[[Tensor, Tensor, Tensor], Any]
"""Sample, timesteps and states to what has a `sample`: a UNet2DConditionModel, or one with some of its adapters."""

LORA_FILE = "pytorch_lora_weights.safetensors"
"""As diffusers names it in every folder."""
LORA_LAYERS = (
    *("to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2"),
    *("conv1", "conv2", "conv_shortcut", "time_emb_proj", "downsamplers.0.conv", "upsamplers.0.conv"),
)
"""By the ends of their names, those of LCM-LoRA: all but the first and the last convolution and the embedding of timesteps."""


class Learner(Protocol):
    """A student and its moving average, both to be called; `weights` are what trains."""

    peak: float
    """Of the learning rate."""
    student: Network

    @property
    def average(self) -> Network: ...

    @property
    def weights(self) -> nn.Module: ...

    def teaching(self) -> AbstractContextManager[None]:
        """Within it, the UNet that it was made from computes as the teacher."""

    def follow(self, decay: float) -> None:
        """Move the average towards the student; what it keeps of itself is `decay`."""


class WholeNetwork:
    """All weights of a copy."""

    peak = 3e-4

    def __init__(self, teacher: UNet2DConditionModel) -> None:
        self.student, self.average = deepcopy(teacher).train().requires_grad_(True), deepcopy(teacher)

    @property
    def weights(self) -> nn.Module:
        return self.student

    def teaching(self) -> AbstractContextManager[None]:
        return nullcontext()

    def follow(self, decay: float) -> None:
        update_ema(self.average, self.student, decay=decay)


class Adapters:
    """LoRA weights, and their moving average, in the teacher's own UNet, which is in memory once and stays as it is.

    The student's are switched on between calls: switched off, they would get no gradient.
    """

    peak = 1e-3
    """Higher than of whole weights, as is usual: B starts from zero."""

    def __init__(self, teacher: UNet2DConditionModel, rank: int, seed: int) -> None:
        from peft import LoraConfig

        self._unet, self.student = teacher, teacher
        self._config = LoraConfig(r=rank, lora_alpha=rank, target_modules=list(LORA_LAYERS))
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            for name in ("average", "student"):
                teacher.add_adapter(self._config, adapter_name=name)
        self.weights, self._averaged = self._of("student"), self._of("average")
        self.follow(decay=0)

    def average(self, sample: Tensor, timesteps: Tensor, states: Tensor) -> Any:
        self._unet.set_adapter("average")
        try:
            return self._unet(sample, timesteps, states)
        finally:
            self._unet.set_adapter("student")

    @contextmanager
    def teaching(self) -> Iterator[None]:
        self._unet.disable_adapters()
        try:
            yield
        finally:
            self._unet.enable_adapters()

    def follow(self, decay: float) -> None:
        update_ema(self._averaged, self.weights, decay=decay)

    def save(self, folder: Path) -> None:
        """The average, in float32, as diffusers' `load_lora_weights` reads it."""
        from peft.utils import get_peft_model_state_dict

        StableDiffusionPipeline.save_lora_weights(
            folder,
            unet_lora_layers=get_peft_model_state_dict(self._unet, adapter_name="average"),
            unet_lora_adapter_metadata=self._config.to_dict(),
        )

    def remove(self) -> None:
        """Leave the teacher's UNet as it was before."""
        self._unet.unload_lora()

    def _of(self, name: str) -> nn.ParameterList:
        return nn.ParameterList(value for path, value in self._unet.named_parameters() if f".{name}." in path)


def fuse(unet: UNet2DConditionModel, folder: Path) -> None:
    """Add the LoRA weights in `folder` to the UNet's own."""
    unet.load_lora_adapter(folder, weight_name=LORA_FILE, prefix="unet")
    unet.fuse_lora()
    unet.unload_lora()
