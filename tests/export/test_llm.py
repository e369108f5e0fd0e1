"""Export of language models: families, precisions, figures of the manifest, refusals."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from nereid.engines.kv_cache import DeviceMemory
from nereid.engines.onnx_causal import OnnxCausalEngine
from nereid.llm.engine import longest_row
from nereid.llm.settings import LlmFacts
from nereid_export.errors import ExportError
from nereid_export.frame import Device
from nereid_export.llm import LlmExportOptions, LlmPrecision
from nereid_export.llm import export_llm as run_export
from nereid_export.llm_quantize import Scheme, round_trip

import checkpoints as make
from conftest import ZOO, Silent, export_llm, made_once

pytestmark = pytest.mark.torch

SECTIONS = ZOO / "sections" / "checkpoint"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make.make_llm(tmp_path_factory.mktemp("llm") / "llama", "llama")


@pytest.fixture(scope="module")
def exported(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A repository of the tiny model in that precision."""
    return made_once(tmp_path_factory, lambda out, precision: export_llm(tiny, out, precision=precision))


def test_the_builders_own_process_writes_what_a_fork_writes(exported: Callable[[str], Path], tiny: Path, tmp_path: Path) -> None:
    """The other tests build in forks, which start ten times sooner."""
    run_export(LlmExportOptions(checkpoint=tiny, out=tmp_path / "out", precision=LlmPrecision.FP32), Silent())
    cold, warm = (folder / "llm" / "1" / "model.onnx" for folder in (tmp_path / "out", exported("fp32")))
    assert cold.read_bytes() == warm.read_bytes()


def engine_of(repository: Path, name: str = "llm") -> OnnxCausalEngine:
    made = OnnxCausalEngine.load(repository / name / "1" / "model.onnx", tokens=2048, threads=1)
    made.arrange(5, 128)
    return made


WINDOW = {"sliding_window": 16}


@pytest.mark.parametrize(
    ("family", "settings"),
    [
        ("qwen2", {}),
        ("qwen2", {**WINDOW, **make.EVERY_OTHER}),
        ("qwen3", {}),
        ("mistral", {}),
        ("mistral", WINDOW),
        ("phi3", {}),
        ("phi3", WINDOW),
    ],
)
def test_each_family_computes_what_transformers_does(tmp_path: Path, family: str, settings: dict[str, object]) -> None:
    """Biases (Qwen2), norms of queries and keys (Qwen3), fused weights (Phi-3); sliding windows, of all layers or of some."""
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM

    checkpoint = make.with_settings(make.make_llm(tmp_path / family, family), settings)
    manifest = export_llm(checkpoint, tmp_path / "out", precision="fp32")
    assert manifest["engine"]["unquantised_error"] <= 1e-4  # type: ignore[index]
    ids = np.random.default_rng(0).integers(3, 250, 60).tolist()
    with torch.no_grad():
        model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
        expected = model(torch.tensor([ids])).logits[0].numpy()
    engine = engine_of(tmp_path / "out")
    for start in range(0, 40, 8):
        engine.extend(0, start, ids[start : start + 8])
    made = [engine.decode([ids[place]], [place])[0].copy() for place in range(40, 60)]
    assert np.allclose(np.stack(made), expected[40:], atol=2e-4)


@pytest.mark.parametrize("precision", ["fp32", "int4", "int8"])
def test_rows_and_chunks_do_not_change_a_bit(exported: Callable[[str], Path], precision: str) -> None:
    engine = engine_of(exported(precision))
    rng = np.random.default_rng(1)
    prompts = [rng.integers(3, 250, length).tolist() for length in (60, 17, 33, 65)]

    def fill(row: int, ids: list[int], chunk: int) -> np.ndarray:
        for start in range(0, len(ids), chunk):
            logits = engine.extend(row, start, ids[start : start + chunk])
        return logits[0].copy()

    whole = [fill(0, ids, 128) for ids in prompts]
    for chunk in (1, 7, 16, 33):
        assert all(np.array_equal(fill(3, ids, chunk), expected) for ids, expected in zip(prompts, whole, strict=True))
    for row, ids in enumerate(prompts):
        fill(row, ids, 40)
    together = engine.decode([5, 6, 7, 8], [len(ids) for ids in prompts]).copy()
    engine.arrange(2, 256)
    for row, ids in enumerate(prompts):
        fill(0, ids, 50)
        assert np.array_equal(engine.decode([5 + row], [len(ids)])[0], together[row])


def test_a_lone_row_may_be_rounded_in_its_own_way(exported: Callable[[str], Path]) -> None:
    file, ids = exported("int4") / "llm" / "1" / "model.onnx", list(range(5, 30))
    made = []
    for invariant in (True, False):
        engine = OnnxCausalEngine.load(file, tokens=2048, threads=1, batch_invariant=invariant)
        engine.arrange(5, 128)
        for row in range(2):
            engine.extend(row, 0, ids)
        made.append(
            (engine.decode([7], [25])[0].copy(), engine.decode([7, 7], [25, 25]).copy(), engine.extend(0, 26, [9])[0].copy())
        )
    (alone, pair, appended), (quick_alone, quick_pair, quick_appended) = made
    assert np.array_equal(alone, pair[0])
    assert np.array_equal(pair, quick_pair)
    assert np.linalg.norm(quick_alone - alone) < 0.1 * np.linalg.norm(alone)
    assert np.linalg.norm(quick_appended - appended) < 0.1 * np.linalg.norm(appended)


def test_all_logits_of_a_chunk_that_needs_padding_can_be_kept(exported: Callable[[str], Path]) -> None:
    engine, ids = engine_of(exported("fp32")), list(range(5, 38))
    kept = engine.extend(0, 0, ids, keep=33).copy()
    assert kept.shape[0] == 33
    assert np.allclose(kept[-5:], engine.extend(1, 0, ids, keep=5), atol=1e-5)
    assert np.allclose(kept[:32], engine.extend(2, 0, ids[:32], keep=32), atol=1e-5)


def test_int4_is_small_and_its_manifest_says_what_it_costs(tmp_path: Path, tiny: Path) -> None:
    manifest: Any = export_llm(tiny, tmp_path / "out", eight_bit_share=0.3)
    engine = manifest["engine"]
    errors = [item["output_error"] for item in engine["matrices"]]
    assert errors == sorted(errors, reverse=True)
    assert engine["eight_bit"]
    worst_left = next(item for item in engine["matrices"] if item["matrix"] not in engine["eight_bit"])
    assert engine["matrices"][0]["matrix"] in engine["eight_bit"] or worst_left is engine["matrices"][0]
    assert 0 < engine["logits_error"] < 0.6
    assert 0 <= engine["next_token_agreement"] <= 1
    assert engine["perplexity"] > 1
    facts = LlmFacts.read(tmp_path / "out" / "llm" / "1")
    assert (facts.precision, facts.weight_bytes) == ("int4", engine["engine_bytes"])
    lean: Any = export_llm(tiny, tmp_path / "lean", eight_bit_share=0.0)
    assert lean["engine"]["eight_bit"] == []
    assert lean["engine"]["engine_bytes"] < engine["engine_bytes"]


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [4, 8])
def test_measured_rounding_is_the_kernels(bits: int, symmetric: bool) -> None:
    """`round_trip` against what a MatMulNBits of the same weights multiplies with."""
    import onnx
    import onnxruntime as ort
    from onnx import helper, numpy_helper
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    weight = np.random.default_rng(3).standard_normal((64, 32)).astype(np.float32)
    x, y = (helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["n", size]) for name, size in (("x", 64), ("y", 32)))
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"], name="m")], "g", [x], [y], [numpy_helper.from_array(weight, "w")]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    quantizer = MatMulNBitsQuantizer(model, bits=bits, block_size=32, is_symmetric=symmetric, accuracy_level=0)
    quantizer.process()
    session = ort.InferenceSession(quantizer.model.model.SerializeToString(), providers=["CPUExecutionProvider"])
    used = session.run(None, {"x": np.eye(64, dtype=np.float32)})[0]
    made = round_trip(weight, Scheme(bits=bits, block_size=32, symmetric=symmetric))
    assert (np.abs(made - used) > 1e-5).mean() < 0.01  # but for values half-way between two steps
    assert np.linalg.norm(made - used) < 0.1 * np.linalg.norm(used - weight) + 0.1


def test_a_graph_that_is_not_pytorchs_is_not_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = make.with_settings(make.make_llm(tmp_path / "mistral", "mistral"), WINDOW)
    monkeypatch.setattr("nereid_export.llm_genai.set_window", lambda model, window: None)
    with pytest.raises(ExportError, match=r"relative error .* nothing was published"):
        export_llm(checkpoint, tmp_path / "out", precision="fp32")
    assert not (tmp_path / "out").exists()


def test_a_draft_model_comes_with_the_large_one(tmp_path: Path, tiny: Path) -> None:
    other = make.make_llm(tmp_path / "qwen3", "qwen3")
    manifest: Any = export_llm(tiny, tmp_path / "out", precision="fp32", draft=other)
    folder = tmp_path / "out" / "llm" / "1"
    assert manifest["engine"]["source"]["architecture"] == "LlamaForCausalLM"
    assert manifest["draft"]["source"]["architecture"] == "Qwen3ForCausalLM"
    large, small = (OnnxCausalEngine.load(place / "model.onnx", tokens=256, threads=1) for place in (folder, folder / "draft"))
    assert (large.vocabulary, large.layers) == (small.vocabulary, small.layers)
    for engine in (large, small):
        engine.arrange(1, 64)
    assert not np.array_equal(large.extend(0, 0, [5, 6, 7]), small.extend(0, 0, [5, 6, 7]))
    assert {f"llm/1/draft/{file.name}" for file in (folder / "draft").iterdir()} <= set(manifest["files"])


def test_a_draft_model_with_other_tokens_is_refused(tmp_path: Path, tiny: Path) -> None:
    with pytest.raises(ExportError, match=r"--draft: .* has other tokens"):
        export_llm(tiny, tmp_path / "out", draft=SECTIONS)
    assert not (tmp_path / "out").exists()


def test_a_draft_model_may_be_padded_to_another_width_but_must_know_every_token(tmp_path: Path, tiny: Path) -> None:
    """As Qwen2.5's: 0.5B has 151,936 logits, 7B 152,064, and both the same tokens."""
    export_llm(tiny, tmp_path / "out", precision="fp32", draft=make.make_llm(tmp_path / "narrow", "llama", vocab_size=300))
    assert OnnxCausalEngine.load(tmp_path / "out" / "llm" / "1" / "draft" / "model.onnx", tokens=64).vocabulary == 300
    blind = make.make_llm(tmp_path / "blind", "llama", vocab_size=258)
    tokens = max(json.loads((blind / "tokenizer.json").read_text())["model"]["vocab"].values())
    make.with_settings(blind, {"vocab_size": tokens})
    with pytest.raises(ExportError, match=rf"--draft: .* has logits for {tokens} tokens, and its tokenizer has"):
        export_llm(tiny, tmp_path / "refused", draft=blind)
    assert not (tmp_path / "refused").exists()


LONGROPE = {"rope_type": "longrope", "rope_theta": 10_000.0}  # as transformers 5 writes it
FACTORS = {"short_factor": [1 + 0.2 * i for i in range(8)], "long_factor": [3.0 + i for i in range(8)]}


def test_longrope_is_served_up_to_where_it_rotates_cached_keys_anew(tmp_path: Path) -> None:
    """Phi-3's longer contexts: token by token, to the last that may be, the logits are transformers'."""
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM

    rope = {**LONGROPE, **FACTORS}
    checkpoint = make.make_llm(tmp_path / "phi3", "phi3", original_max_position_embeddings=50, rope_parameters=rope)
    for asked in (None, 51):
        with pytest.raises(ExportError, match=r"config\.json: beyond 50 tokens LongRoPE .* --context-length 50 or less"):
            export_llm(checkpoint, tmp_path / "out", precision="fp32", context_length=asked)
    assert not (tmp_path / "out").exists()
    export_llm(checkpoint, tmp_path / "out", precision="fp32", context_length=50)
    facts = LlmFacts.read(tmp_path / "out" / "llm" / "1")
    assert facts.context_length == 50
    ids = np.random.default_rng(0).integers(3, 250, 50).tolist()
    with torch.no_grad():
        model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
        expected = model(torch.tensor([ids])).logits[0].numpy()
    engine = engine_of(tmp_path / "out")
    engine.arrange(2, longest_row(facts.context_length, 2048))
    engine.extend(0, 0, ids[:30])
    made = [engine.decode([ids[place]], [place])[0].copy() for place in range(30, 50)]
    assert np.allclose(np.stack(made), expected[30:], atol=2e-4)


def test_memory_in_torch_tensors_is_memory_in_arrays(exported: Callable[[str], Path]) -> None:
    """What a graphics card's memory is handled with, on the processor."""
    host, device = engine_of(exported("fp32")), engine_of(exported("fp32"))
    device.memory = DeviceMemory("cpu")
    device._flat = [device.memory.zeros(len(flat), device.dtype) for flat in device._flat]
    device._views.clear()
    device.arrange(5, 128)
    made = []
    for engine in (host, device):
        logits = [engine.extend(row, 0, range(5, 25 + row))[0].copy() for row in range(3)]
        engine.move(2, 1, 22)
        block = engine.read(1, 0, 16)
        engine.arrange(3, 256, [20, 22])
        engine.write(2, 0, block)
        logits += list(engine.decode([7, 8, 9], [20, 22, 16]).copy())
        made.append((np.stack(logits), block))
    assert np.array_equal(made[0][0], made[1][0])
    assert np.array_equal(made[0][1], made[1][1])


@pytest.mark.parametrize("in_torch", [False, True])
def test_rows_that_are_exchanged_go_on_as_where_they_were(exported: Callable[[str], Path], in_torch: bool) -> None:
    engine = engine_of(exported("fp32"))
    if in_torch:
        engine.memory = DeviceMemory("cpu")
        engine._flat = [engine.memory.zeros(len(flat), engine.dtype) for flat in engine._flat]
        engine._views.clear()
    engine.arrange(3, 128)
    for row, length in enumerate((20, 31, 25)):
        engine.extend(row, 0, range(5 + row, 5 + row + length))
    before = engine.decode([7, 8, 9], [20, 31, 25]).copy()
    engine.swap(0, 1, 31)
    assert np.array_equal(engine.decode([8, 7, 9], [31, 20, 25]), before[[1, 0, 2]])
    engine.swap(2, 0, 31)
    assert np.array_equal(engine.decode([9], [25]), before[2:])


def test_an_engine_for_a_graphics_card_is_placed_there(tmp_path: Path, tiny: Path) -> None:
    try:
        export_llm(tiny, tmp_path / "out", precision="fp16", device=Device.CUDA)
    except ExportError as error:
        pytest.skip(str(error))
    config = (tmp_path / "out" / "llm" / "config.pbtxt").read_text()
    assert "KIND_GPU" in config
    if "CUDAExecutionProvider" not in ort.get_available_providers():
        with pytest.raises(ValueError, match="KIND_GPU needs the package onnxruntime-gpu"):
            OnnxCausalEngine.load(tmp_path / "out" / "llm" / "1" / "model.onnx", tokens=256, gpu=0)


def test_a_name_keeps_several_models_in_one_repository(tmp_path: Path, tiny: Path) -> None:
    export_llm(tiny, tmp_path / "out", precision="fp32")
    export_llm(tiny, tmp_path / "out", precision="fp32", name="other")
    assert {folder.name for folder in (tmp_path / "out").iterdir()} == {"llm", "other_llm"}
    assert 'name: "other_llm"' in (tmp_path / "out" / "other_llm" / "config.pbtxt").read_text()


def test_an_interrupted_export_resumes(tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("nereid_export.llm.publish", interrupt)
        with pytest.raises(KeyboardInterrupt):
            export_llm(tiny, tmp_path / "out", precision="fp32")
    assert not (tmp_path / "out").exists()
    watcher = Silent()
    run_export(LlmExportOptions(checkpoint=tiny, out=tmp_path / "out", precision=LlmPrecision.FP32), watcher)
    assert "built before" in watcher.said
    assert (tmp_path / "out" / "llm" / "1" / "model.onnx").is_file()


def spoil(folder: Path, what: str) -> None:
    config = json.loads((folder / "config.json").read_text())
    weights = folder / "model.safetensors"
    match what:
        case "pickle":
            weights.unlink()
            (folder / "pytorch_model.bin").write_bytes(b"x")
        case "truncated":
            weights.write_bytes(weights.read_bytes()[:1000])
        case "no weights":
            weights.unlink()
        case "architecture":
            (folder / "config.json").write_text(json.dumps({**config, "architectures": ["BertModel"]}))
        case "quantised":
            (folder / "config.json").write_text(json.dumps({**config, "quantization_config": {"bits": 4}}))
        case "tokenizer":
            (folder / "tokenizer.json").unlink()
        case "not JSON":
            (folder / "config.json").write_text("{")
        case "shard":
            (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "model-2.safetensors"}}')


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("pickle", "is a pickle"),
        ("truncated", "truncated or corrupt"),
        ("no weights", "has no \\*.safetensors"),
        ("architecture", "'BertModel' is not supported"),
        ("quantised", "quantised already"),
        ("tokenizer", "no tokenizer.json"),
        ("not JSON", "not valid JSON"),
        ("shard", "lacks model-2.safetensors"),
    ],
)
def test_unfit_checkpoints_are_refused_in_a_sentence(tmp_path: Path, tiny: Path, what: str, words: str) -> None:
    folder = tmp_path / "spoilt"
    shutil.copytree(tiny, folder)
    spoil(folder, what)
    with pytest.raises(ExportError, match=words):
        export_llm(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"block_size": 48}, "--block-size: 48"),
        ({"eight_bit_share": 1.5}, "--eight-bit-share: 1.5"),
        ({"precision": "fp16"}, "fp16 needs --device cuda"),
        ({"name": "../x"}, "--name"),
        ({"context_length": 257}, "--context-length: 257 is not allowed; it must be 16 to 256"),
        ({"sample_text": Path("/nowhere")}, "--sample-text"),
    ],
)
def test_options_out_of_range_are_refused(tmp_path: Path, tiny: Path, options: dict[str, Any], words: str) -> None:
    with pytest.raises(ExportError, match=words):
        export_llm(tiny, tmp_path / "out", **options)
