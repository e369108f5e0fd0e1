"""LoRA adapters of language models: PEFT's logits on both engines, whoever shares the call; and what is refused, by name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("peft")
from peft_adapters import make_adapter, named, peft_logits
from safetensors.torch import load_file, save_file

from nereid.engines.kv_blocks import Piece
from nereid.engines.onnx_causal import OnnxCausalEngine
from nereid.engines.openvino_causal import OpenVinoCausalEngine
from nereid.llm.settings import LlmFacts
from nereid_export.errors import ExportError
from nereid_export.llm import LlmEngine
from nereid_export.llm_adapters import Adapter, read_branches
from nereid_export.llm_checkpoint import LlmCheckpoint

import checkpoints as make
from conftest import export_llm

pytestmark = pytest.mark.torch

ENGINES = [LlmEngine.ONNXRUNTIME, LlmEngine.OPENVINO]
IDS = np.random.default_rng(3).integers(3, 250, 40).tolist()
ERROR = 2e-5
"""Of logits against PEFT's, relative to the largest of them: float32 on both sides, sums in another order."""

Weights = dict[str, Any]


class Rows:
    """The same few calls on either engine: a prompt in chunks, then one token of several rows at once."""

    def __init__(self, repository: Path, engine: LlmEngine) -> None:
        folder = repository / "llm" / "1"
        if engine is LlmEngine.ONNXRUNTIME:
            self.onnx = OnnxCausalEngine.load(folder / "model.onnx", tokens=2048, threads=1)
            self.onnx.arrange(7, 128)
        else:
            self.paged = OpenVinoCausalEngine.load(folder / "model.xml", tokens=2048, threads=1)
        self.engine = engine

    def _table(self, row: int) -> range:
        size = 128 // self.paged.block_size
        return range(1 + row * size, 1 + (row + 1) * size)

    def read(self, row: int, ids: Sequence[int], adapter: int, chunk: int = 64) -> np.ndarray:
        """Logits of every token: tokens x vocabulary."""
        made = []
        for start in range(0, len(ids), chunk):
            part = list(ids[start : start + chunk])
            if self.engine is LlmEngine.ONNXRUNTIME:
                made.append(self.onnx.extend(row, start, part, keep=len(part), adapter=adapter).copy())
            else:
                made.append(self.paged.run([Piece(self._table(row), start, part, len(part), adapter=adapter)]).copy())
        return np.concatenate(made)

    def decode(self, tokens: Sequence[int], lengths: Sequence[int], adapters: Sequence[int]) -> np.ndarray:
        if self.engine is LlmEngine.ONNXRUNTIME:
            return self.onnx.decode(tokens, lengths, adapters).copy()
        rows = enumerate(zip(tokens, lengths, adapters, strict=True))
        pieces = [Piece(self._table(r), length, [t], decoded=True, adapter=a) for r, (t, length, a) in rows]
        return self.paged.run(pieces).copy()


def distance(made: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(made - expected).max() / np.abs(expected).max())


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make.make_llm(tmp_path_factory.mktemp("llm") / "llama", "llama")


@pytest.fixture(scope="module")
def adapters(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two of different layers and ranks: one of a list of names, with patterns; one of an expression, the tied head with it."""
    folder = tmp_path_factory.mktemp("adapters")
    first = make_adapter(
        llama,
        folder / "sql",
        seed=1,
        target_modules=["q_proj", "v_proj", "down_proj"],
        rank_pattern={"down_proj": 2, r"layers\.1\.self_attn\.q_proj": 6},
        alpha_pattern={"v_proj": 3},
    )
    expression = r"lm_head|.*\.(k_proj|o_proj|gate_proj|up_proj)"
    second = make_adapter(llama, folder / "poems", seed=2, size=0.2, r=5, target_modules=expression, use_rslora=True)
    return {"sql": first, "poems": second}


@pytest.fixture(scope="module")
def exported(
    llama: Path, adapters: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[LlmEngine, str, bool], Path]:
    """Repositories with the adapters, and without."""

    @cache
    def repository(engine: LlmEngine, precision: str, adapted: bool = True) -> Path:
        out = tmp_path_factory.mktemp(f"{engine}-{precision}") / "out"
        export_llm(llama, out, precision, engine=engine, adapters=named(**adapters) if adapted else ())
        return out

    return repository


@pytest.mark.parametrize("engine", ENGINES)
def test_logits_are_pefts(exported: Callable[..., Path], llama: Path, adapters: dict[str, Path], engine: LlmEngine) -> None:
    """Of prompts, and token by token behind them; the three differ from one another."""
    rows = Rows(exported(engine, "fp32"), engine)
    expected = [peft_logits(llama, folder, IDS) for folder in (None, *adapters.values())]
    for adapter, logits in enumerate(expected):
        assert distance(rows.read(0, IDS, adapter, chunk=16), logits) < ERROR
        rows.read(1, IDS[:30], adapter)
        for place in range(30, 40):
            rows.read(0, IDS[:place], adapter)
            assert distance(rows.decode([IDS[place]], [place], [adapter])[0], logits[place]) < ERROR
    assert min(distance(a, b) for i, a in enumerate(expected) for b in expected[:i]) > 0.05


@pytest.mark.parametrize("precision", ["fp32", "int4", "int8"])
@pytest.mark.parametrize("engine", ENGINES)
def test_rows_of_several_adapters_in_one_call_are_each_as_alone(
    exported: Callable[..., Path], engine: LlmEngine, precision: str
) -> None:
    """Bit for bit, decoded and read, in chunks of any size."""
    rows = Rows(exported(engine, precision), engine)
    order, lengths = [0, 2, 1, 1, 0, 2], [40, 17, 33, 8, 26, 39]
    alone = []
    for adapter, length in zip(order, lengths, strict=True):
        read = rows.read(0, IDS[:length], adapter)
        alone.append((read, rows.decode([5], [length], [adapter])[0]))
        for chunk in (1, 7, 16):
            assert np.array_equal(rows.read(0, IDS[:length], adapter, chunk)[-1], read[-1])
    for row, (adapter, length) in enumerate(zip(order, lengths, strict=True)):
        assert np.array_equal(rows.read(row, IDS[:length], adapter), alone[row][0])
    together = rows.decode([5] * 6, lengths, order)
    for row in range(6):
        assert np.array_equal(together[row], alone[row][1])


@pytest.mark.parametrize("precision", ["fp32", "int4"])
@pytest.mark.parametrize("engine", ENGINES)
def test_the_model_itself_gives_the_bytes_of_an_export_without_adapters(
    exported: Callable[..., Path], engine: LlmEngine, precision: str
) -> None:
    """Of an adapter a row without one gets exact zeros."""
    made = []
    for adapted in (True, False):
        rows = Rows(exported(engine, precision, adapted), engine)
        read = rows.read(0, IDS, 0)
        rows.read(1, IDS[:20], 0)
        made.append((read, rows.decode([5, 6], [40, 20], [0, 0])))
    assert np.array_equal(made[0][0], made[1][0])
    assert np.array_equal(made[0][1], made[1][1])


@pytest.mark.parametrize("engine", ENGINES)
def test_rounded_matrices_keep_their_adapters_whole(exported: Callable[..., Path], engine: LlmEngine) -> None:
    """What the manifest says of each: rounding moves the adapter's logits about as far as the model's own."""
    repository = exported(engine, "int4")
    manifest = json.loads((repository / "llm" / "manifest.json").read_text())
    told = {item["name"]: item for item in manifest["engine"]["adapters"]}
    assert [(name, item["layers"], item["rank"]) for name, item in told.items()] == [("sql", 6, 6), ("poems", 9, 5)]
    for item in told.values():
        assert item["unquantised_error"] < 1e-5
        assert 0 < item["logits_error"] < 3 * manifest["engine"]["logits_error"]
        assert len(item["sha256"]) == 64
    assert LlmFacts.read(repository / "llm" / "1").adapters == ("sql", "poems")
    assert "adapters" not in manifest["arguments"]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("family", ["phi3", "qwen2", "qwen3", "gemma"])
def test_layers_of_each_family_find_their_products(tmp_path: Path, family: str, engine: LlmEngine) -> None:
    """Fused weights (Phi-3), biases (Qwen2), norms of queries and keys (Qwen3), a scaled embedding (Gemma)."""
    checkpoint = make.make_llm(tmp_path / family, family)
    fused = ["qkv_proj", "gate_up_proj", "o_proj"] if family == "phi3" else ["k_proj", "v_proj", "up_proj", "down_proj"]
    folder = make_adapter(checkpoint, tmp_path / "adapter", target_modules=fused)
    export_llm(checkpoint, tmp_path / "out", "fp32", engine=engine, adapters=named(one=folder))
    rows = Rows(tmp_path / "out", engine)
    for adapter, of in ((1, folder), (0, None)):
        assert distance(rows.read(0, IDS, adapter), peft_logits(checkpoint, of, IDS)) < ERROR


def test_another_adapter_is_another_engine_and_the_same_one_is_built_once(
    llama: Path, adapters: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An interrupted export goes on where it was, with the very adapters that it was asked for."""
    from nereid_export import llm

    built: list[int] = []
    builder = llm.BUILDERS[LlmEngine.OPENVINO]
    build = type(builder).build

    def noted(self: Any, checkpoint: Any, options: Any, *rest: Any) -> Any:
        built.append(len(options.adapters))
        return build(self, checkpoint, options, *rest)

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(type(builder), "build", noted)
    with monkeypatch.context() as stopping:
        stopping.setattr(llm, "publish", interrupted)
        for given in (adapters["sql"], adapters["sql"], adapters["poems"]):
            with pytest.raises(KeyboardInterrupt):
                export_llm(llama, tmp_path / "out", "fp32", engine=LlmEngine.OPENVINO, adapters=named(one=given))
    assert built == [1, 1]
    export_llm(llama, tmp_path / "out", "fp32", engine=LlmEngine.OPENVINO, adapters=named(other=adapters["poems"]))
    assert built == [1, 1, 1]


def test_a_draft_model_is_built_without_them(llama: Path, adapters: dict[str, Path], tmp_path: Path) -> None:
    export_llm(llama, tmp_path / "out", "fp32", draft=llama, adapters=named(sql=adapters["sql"]))
    version = tmp_path / "out" / "llm" / "1"
    loads = [OnnxCausalEngine.load(file, tokens=512) for file in (version / "model.onnx", version / "draft" / "model.onnx")]
    assert [engine.has_adapters for engine in loads] == [True, False]


def test_a_graph_that_is_not_pefts_is_not_published(
    llama: Path, adapters: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from nereid_export import llm_figures

    @contextmanager
    def unadapted(*_: object) -> Iterator[None]:
        yield

    monkeypatch.setattr(llm_figures, "adapted", unadapted)
    with pytest.raises(ExportError, match=r"^--adapter sql: relative error .* of the logits against PyTorch is above the bound"):
        export_llm(llama, tmp_path / "out", "fp32", engine=LlmEngine.OPENVINO, adapters=named(sql=adapters["sql"]))
    assert not (tmp_path / "out").exists()


# --- what is refused ---


def changed(source: Path, target: Path, tensors: Callable[[Weights], Weights] | None, settings: dict[str, Any]) -> Path:
    shutil.copytree(source, target)
    file, config = target / "adapter_model.safetensors", target / "adapter_config.json"
    if tensors is not None:
        save_file({name: value.contiguous() for name, value in tensors(load_file(file)).items()}, file)
    config.write_text(json.dumps({**json.loads(config.read_text()), **settings}))
    return target


def renamed(old: str, new: str) -> Callable[[Weights], Weights]:
    return lambda tensors: {name.replace(old, new): value for name, value in tensors.items()}


FIRST = "base_model.model.model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize(
    ("tensors", "settings", "words"),
    [
        (None, {"modules_to_save": ["lm_head"]}, r"modules_to_save \['lm_head'\] is not supported, which are layers trained"),
        (None, {"use_dora": True}, "use_dora is not supported; it must be plain LoRA"),
        (None, {"trainable_token_indices": [3]}, r"trainable_token_indices \[3\] is not supported"),
        (None, {"target_parameters": ["a"]}, "target_parameters .* is not supported"),
        (None, {"lora_bias": True}, "lora_bias True is not supported, which adds biases"),
        (None, {"peft_type": "IA3"}, "peft_type IA3 is not supported; it must be LORA"),
        (None, {"init_lora_weights": "pissa"}, "init_lora_weights 'pissa' is not supported"),
        (None, {"r": 7}, "has rank 4, and its settings .* 7"),
        (None, {"target_modules": ["q_proj"]}, r"down_proj.lora_A.weight is not among its target_modules \['q_proj'\]"),
        (
            None,
            {"target_modules": ["q_proj", "v_proj", "down_proj", "o_proj"]},
            "has nothing for model.layers.0.self_attn.o_proj, which is among its target_modules",
        ),
        (None, {"layers_to_transform": [0]}, "layers.1.* is not among its target_modules"),
        (None, {"exclude_modules": ["v_proj"]}, "v_proj.* is not among its target_modules"),
        (renamed("layers.1.", "layers.7."), {}, "is for model.layers.7.mlp.down_proj, which llama has not among its linear"),
        (renamed("q_proj", "x_proj"), {}, "x_proj.* which llama has not among its linear layers"),
        (renamed("base_model.model.", ""), {}, "is not supported; names of PEFT's begin with base_model.model."),
        (lambda all: {**all, f"{FIRST}.lora_magnitude_vector": torch.ones(3)}, {}, "is of DoRA, which is not supported"),
        (
            lambda all: {**all, "base_model.model.lm_head.base_layer.weight": torch.ones(320, 64)},
            {},
            "lm_head.base_layer.weight is not the checkpoint's; embeddings of its own are not supported",
        ),
        (lambda all: {**all, f"{FIRST}.base_layer.weight": torch.ones(64, 64)}, {}, "q_proj.base_layer.weight is not supported"),
        (
            lambda all: {**all, "base_model.model.model.embed_tokens.lora_embedding_A": torch.ones(3, 4)},
            {},
            "embed_tokens.lora_embedding_A is not supported",
        ),
        (
            lambda all: {name: torch.cat([value] * 2, 1) if "lora_A" in name else value for name, value in all.items()},
            {},
            r"lora_A.weight does not fit model.layers.0.mlp.down_proj: .* for a weight of shape \(64, 96\)",
        ),
        (
            lambda all: {name: value for name, value in all.items() if "1.self_attn.v_proj.lora_B" not in name},
            {},
            "model.layers.1.self_attn.v_proj.lora_A.weight has no counterpart",
        ),
        (lambda all: {name: value / 0 for name, value in all.items()}, {}, "holds NaN or infinite values"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(
    llama: Path,
    adapters: dict[str, Path],
    tmp_path: Path,
    tensors: Callable[[Weights], Weights] | None,
    settings: dict[str, Any],
    words: str,
) -> None:
    plain = make_adapter(llama, tmp_path / "plain", target_modules=["q_proj", "v_proj", "down_proj"])
    folder = changed(plain, tmp_path / "odd", tensors, settings)
    with pytest.raises(ExportError, match=words) as caught:
        export_llm(llama, tmp_path / "out", "fp32", adapters=named(odd=folder))
    assert str(folder / "adapter_model.safetensors") in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("bias", ["all", "lora_only"])
def test_biases_are_trained_only_where_there_are_some(llama: Path, tmp_path: Path, bias: str) -> None:
    """PEFT's maintainer has people write "none" into the settings of such an adapter
    (https://github.com/huggingface/peft/issues/2112); where there are biases, PEFT may have lost what was trained
    (https://github.com/huggingface/peft/issues/3306).
    """
    folder = make_adapter(llama, tmp_path / "adapter", bias=bias)
    (made,) = named(a=folder)
    plain = Adapter.parse(f"b={make_adapter(llama, tmp_path / 'plain')}")
    checkpoint = LlmCheckpoint.open(llama)
    found, expected = made.layers(checkpoint), plain.layers(checkpoint)
    assert found.keys() == expected.keys()
    assert all(np.array_equal(found[path].up, expected[path].up) for path in found)
    qwen = make.make_llm(tmp_path / "qwen", "qwen2")
    (made,) = named(a=make_adapter(qwen, tmp_path / "biased", bias=bias))
    with pytest.raises(ExportError, match=f"bias '{bias}' is not supported, whose training changes biases; it must be LoRA of"):
        made.layers(LlmCheckpoint.open(qwen))


def test_a_head_that_is_saved_beside_is_the_table_where_the_checkpoint_says_nothing_of_it(llama: Path, tmp_path: Path) -> None:
    """PEFT saves the embeddings of an adapter of the head, too (https://github.com/vllm-project/vllm/issues/3404); of families
    whose head is tied by default config.json does not say so.
    """
    folder = make_adapter(llama, tmp_path / "adapter", target_modules=["q_proj", "lm_head"])
    copied = tmp_path / "llama"
    shutil.copytree(llama, copied)
    settings = json.loads((copied / "config.json").read_text())
    del settings["tie_word_embeddings"]
    (copied / "config.json").write_text(json.dumps(settings))
    checkpoint = LlmCheckpoint.open(copied)
    table = checkpoint.tensor("model.embed_tokens.weight")
    beside = changed(folder, tmp_path / "beside", lambda all: {**all, "base_model.model.lm_head.base_layer.weight": table}, {})
    assert named(a=beside)[0].layers(checkpoint).keys() == named(a=folder)[0].layers(checkpoint).keys()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("sql", "--adapter: 'sql' is not allowed; it must be NAME=FOLDER"),
        ("a b={folder}", "--adapter: 'a b=.*' is not allowed"),
        ("={folder}", "is not allowed; it must be NAME=FOLDER"),
        ("sql={folder}/nowhere", "nowhere is not there"),
        ("sql={empty}", "has no adapter_model.safetensors"),
        ("sql={pickle}", "is not a safetensors file; others can run code"),
    ],
)
def test_what_is_no_adapter_is_refused_by_name(adapters: dict[str, Path], tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "adapter_model.bin").write_bytes(b"")
    given = text.format(folder=adapters["sql"], empty=tmp_path, pickle=tmp_path / "adapter_model.bin")
    with pytest.raises(ExportError, match=words):
        Adapter.parse(given)


@pytest.mark.parametrize(("names", "words"), [(("a", "a"), "'a' is not allowed, it is another"), (("llm",), "the model's own")])
def test_names_must_differ(llama: Path, adapters: dict[str, Path], tmp_path: Path, names: tuple[str, ...], words: str) -> None:
    given = tuple(Adapter.parse(f"{name}={adapters['sql']}") for name in names)
    with pytest.raises(ExportError, match=words):
        export_llm(llama, tmp_path / "out", "fp32", adapters=given)


@pytest.mark.parametrize(
    "settings",
    [
        {"target_modules": "all-linear"},
        {"target_modules": r".*\.layers\.1\..*_proj"},
        {"target_modules": ["q_proj", "mlp.up_proj"], "layers_to_transform": 1},
        {"target_modules": ["q_proj"], "layers_to_transform": [0], "layers_pattern": "layers"},
        {"target_modules": ["q_proj", "v_proj"], "exclude_modules": r".*\.0\.self_attn\.v_proj"},
        {"target_modules": ["q_proj", "v_proj"], "rank_pattern": {"^model.layers.1.*q_proj": 2}},
    ],
)
def test_settings_of_which_layers_are_read_as_peft_reads_them(llama: Path, tmp_path: Path, settings: dict[str, Any]) -> None:
    """PEFT has written what they mean: nothing of it is refused, and nothing left out."""
    folder = make_adapter(llama, tmp_path / "adapter", **settings)
    config = folder / "adapter_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), **settings}))
    branches = read_branches(LlmCheckpoint.open(llama), named(one=folder))
    weights = load_file(folder / "adapter_model.safetensors")
    assert {f"base_model.model.{path}.lora_A.weight" for path in branches} == {name for name in weights if "lora_A" in name}
