"""Graphs of language models for OpenVINO: every family as transformers computes it, few bits, what cannot be written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

ov = pytest.importorskip("openvino")

from openvino_llm import IDS, engine_of, export, served_logits, transformers_logits

from nereid.engines.openvino_causal import OpenVinoCausalEngine
from nereid.llm.settings import LlmFacts
from nereid_export.errors import ExportError
from nereid_export.llm_ir import build_graph, matrices
from nereid_export.llm_ir_weights import Matrix
from nereid_export.llm_quantize import Scheme, round_trip

import checkpoints as make

pytestmark = pytest.mark.torch


ROPE = {"rope_theta": 10_000.0, "original_max_position_embeddings": 64, "factor": 4.0}
LLAMA3 = {**ROPE, "rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0}


@pytest.mark.parametrize(
    ("family", "settings"),
    [
        ("llama", {"attention_bias": True, "mlp_bias": True}),
        ("llama", {"rope_parameters": LLAMA3}),
        ("llama", {"rope_parameters": {**ROPE, "rope_type": "yarn"}}),
        ("qwen2", {}),
        ("qwen2", {"sliding_window": 16, **make.EVERY_OTHER}),
        ("qwen3", {}),
        ("mistral", {"sliding_window": 16}),
        ("phi3", {"sliding_window": 16}),
        ("phi3", {"rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0, "partial_rotary_factor": 0.5}}),
        ("gemma", {}),
        ("gemma2", {"attn_logit_softcapping": None}),
    ],
)
def test_each_family_computes_what_transformers_does(tmp_path: Path, family: str, settings: dict[str, object]) -> None:
    """Biases, norms of queries and keys, fused weights, sliding windows, scaled and partial rotations, capped logits."""
    checkpoint = make.make_llm(tmp_path / family, family, **settings)
    manifest = export(checkpoint, tmp_path / "out")
    assert manifest["engine"]["unquantised_error"] <= 1e-5
    expected = transformers_logits(checkpoint, IDS)
    made = served_logits(engine_of(tmp_path / "out"), IDS, decoded=20)
    assert np.linalg.norm(made - expected) <= 1e-5 * np.linalg.norm(expected)


def test_what_the_graph_cannot_hold_is_refused_by_its_name(tmp_path: Path) -> None:
    checkpoint = make.make_llm(tmp_path / "gemma2", "gemma2")
    with pytest.raises(
        ExportError, match=r"config\.json: attn_logit_softcapping 50\.0 is not allowed .* use --engine onnxruntime"
    ):
        export(checkpoint, tmp_path / "out")
    make.with_settings(checkpoint, {"attn_logit_softcapping": None, "hidden_activation": "quick_gelu"})
    with pytest.raises(
        ExportError, match=r"config\.json: hidden_act 'quick_gelu' is not supported; it must be one of silu, gelu"
    ):
        export(checkpoint, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_longrope_is_served_up_to_where_it_rotates_cached_keys_anew(tmp_path: Path) -> None:
    factors = {"short_factor": [1 + 0.2 * i for i in range(8)], "long_factor": [3.0 + i for i in range(8)]}
    rope = {"rope_type": "longrope", "rope_theta": 10_000.0, **factors}
    checkpoint = make.make_llm(tmp_path / "phi3", "phi3", original_max_position_embeddings=50, rope_parameters=rope)
    with pytest.raises(ExportError, match=r"config\.json: beyond 50 tokens LongRoPE .* --context-length 50 or less"):
        export(checkpoint, tmp_path / "out")
    export(checkpoint, tmp_path / "out", context_length=50)
    assert LlmFacts.read(tmp_path / "out" / "llm" / "1").context_length == 50
    expected = transformers_logits(checkpoint, IDS[:50])
    made = served_logits(engine_of(tmp_path / "out"), IDS[:50], decoded=20)
    assert np.linalg.norm(made - expected) <= 1e-5 * np.linalg.norm(expected)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_few_bits_stay_few_and_are_the_rounded_matrices(tmp_path: Path, family: str, bits: int, symmetric: bool) -> None:
    """Llama's embedding is its head, Qwen's is not."""
    scheme = Scheme(bits=bits, block_size=16, symmetric=symmetric)
    model = AutoModelForCausalLM.from_pretrained(make.make_llm(tmp_path / family, family), dtype=torch.float32).eval()
    rounded = {}
    for name, module in matrices(model).items():
        weight = module.weight.detach().numpy()
        rounded[name] = Matrix.of(weight, scheme)
        module.weight.data = torch.from_numpy(np.ascontiguousarray(round_trip(np.ascontiguousarray(weight.T), scheme).T))
    ov.save_model(build_graph(model, rounded, {}), tmp_path / "model.xml", compress_to_fp16=False)
    engine = OpenVinoCausalEngine.load(tmp_path / "model.xml", tokens=256, threads=1)
    with torch.no_grad():
        expected = model(torch.tensor([IDS])).logits[0].numpy()
    made = served_logits(engine, IDS, decoded=3)
    assert np.linalg.norm(made - expected) <= 2e-2 * np.linalg.norm(expected)  # activations may be rounded to 8 bits, too
    graph = ov.Core().read_model(tmp_path / "model.xml")
    whole = [
        node for node in graph.get_ops() if node.get_type_name() == "Constant" and list(node.get_output_shape(0)) == [320, 64]
    ]
    assert len(whole) == (0 if family == "llama" else 1)
    kind = f"{'i' if symmetric else 'u'}{bits}"
    products = [node for node in engine.request.get_compiled_model().get_runtime_model().get_ops() if "FullyConn" in _layer(node)]
    assert len(products) == len(rounded)
    layers = [_layer(node) for node in engine.request.get_compiled_model().get_runtime_model().get_ops()]
    assert (layers.count("PagedAttention"), layers.count("RoPE")) == (2, 4)
    assert {node.get_input_element_type(1).get_type_name() for node in products} == {kind}


def _layer(node: Any) -> str:
    return str(node.get_rt_info()["layerType"].astype(str))
