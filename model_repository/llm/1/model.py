"""Triton's side of `llm`: many requests in flight, answered token by token."""

from tokenizers import Tokenizer

from nereid.backends import bridge
from nereid.backends.onnx_causal import OnnxCausalEngine
from nereid.runtime.llm.observer import LLM_METRICS, LlmObserver
from nereid.runtime.llm.service import LlmService
from nereid.runtime.llm.settings import DRAFT_FOLDER, LlmFacts, LlmLimits
from nereid.runtime.llm.structure import StructureFactory
from nereid.runtime.metrics import Recorder


class TritonPythonModel:
    """Adapts nereid.runtime.llm.service."""

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
