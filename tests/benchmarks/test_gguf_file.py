"""llama.cpp computes from the GGUF file what transformers computes from the same rounded weights."""

from __future__ import annotations

import ctypes
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from nereid_bench.gguf_file import write_gguf

import checkpoints as make

gguf = pytest.importorskip("gguf", reason="extra llama-cpp")
lc = pytest.importorskip("llama_cpp", reason="extra llama-cpp")

TOKENS = [5, 70, 12, 200, 33, 9, 101]


@pytest.mark.torch
def test_logits_are_transformers_own(tmp_path: Path) -> None:
    checkpoint = make.make_llm(tmp_path / "checkpoint", "llama")
    write_gguf(checkpoint, tmp_path / "model.gguf")
    ours, reference = logits_of_file(tmp_path / "model.gguf"), logits_of_rounded(checkpoint)
    # llama.cpp rounds activations to 8 bits as well.
    assert np.linalg.norm(ours - reference) / np.linalg.norm(reference) < 0.03


def logits_of_rounded(checkpoint: Path) -> NDArray[np.float32]:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    kind = gguf.GGMLQuantizationType.Q4_0
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                packed = gguf.quants.quantize(parameter.numpy(), kind)
                parameter.copy_(torch.from_numpy(gguf.quants.dequantize(packed, kind)))
        logits: NDArray[np.float32] = model(torch.tensor([TOKENS])).logits[0].numpy()
    return logits


def logits_of_file(file: Path) -> NDArray[np.float32]:
    silent = lc.llama_log_callback(lambda level, text, data: None)
    lc.llama_log_set(silent, ctypes.c_void_p(0))
    model = lc.llama_model_load_from_file(str(file).encode(), lc.llama_model_default_params())
    options = lc.llama_context_default_params()
    options.n_ctx = 256
    context = lc.llama_init_from_model(model, options)
    batch = lc.llama_batch_init(len(TOKENS), 0, 1)
    batch.n_tokens = len(TOKENS)
    for place, token in enumerate(TOKENS):
        batch.token[place], batch.pos[place], batch.n_seq_id[place], batch.seq_id[place][0] = token, place, 1, 0
        batch.logits[place] = True
    assert lc.llama_decode(context, batch) == 0
    logits = [np.ctypeslib.as_array(lc.llama_get_logits_ith(context, place), (320,)).copy() for place in range(len(TOKENS))]
    lc.llama_free(context)
    lc.llama_model_free(model)
    return np.stack(logits)
