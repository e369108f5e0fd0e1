"""Triton's side of `llm`: many requests in flight, answered token by token."""

from tokenizers import Tokenizer

from nereid.engines.onnx_causal import OnnxCausalEngine
from nereid.flow.metrics import Recorder
from nereid.llm.observer import LLM_METRICS, LlmObserver
from nereid.llm.service import LlmService
from nereid.llm.settings import DRAFT_FOLDER, LlmFacts, LlmLimits
from nereid.llm.structure import StructureFactory
from nereid.triton import bridge


class TritonPythonModel:
    """Adapts nereid.llm.service."""

    def initialize(self, args):
        model = bridge.ModelArguments.parse(args)
        folder = model.version_folder
        facts, limits = LlmFacts.read(folder), LlmLimits.from_parameters(model.parameters)
        tokenizer_file, draft_file = folder / "tokenizer.json", folder / DRAFT_FOLDER / "model.onnx"
        gpu = model.device_id if model.instance_kind == "GPU" else None
        options = {"threads": limits.threads, "gpu": gpu, "batch_invariant": limits.batch_invariant}
        self._service = LlmService(
            facts=facts,
            limits=limits,
            engine=OnnxCausalEngine.load(folder / "model.onnx", tokens=limits.kv_tokens, **options),
            draft_engine=(
                OnnxCausalEngine.load(draft_file, tokens=limits.draft_tokens(facts), **options) if draft_file.is_file() else None
            ),
            tokenizer=Tokenizer.from_file(str(tokenizer_file)),
            structures=StructureFactory.of(tokenizer_file, facts.vocabulary, facts.eos_token_ids),
            observer=LlmObserver(Recorder(bridge.metric_sink(LLM_METRICS, model.name))),
        )

    def execute(self, requests):
        for request in requests:
            self._service.handle(bridge.read_inputs(request), bridge.Stream.of(request))

    def finalize(self):
        self._service.stop()
