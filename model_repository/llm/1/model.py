"""Triton's side of `llm`: many requests in flight, answered token by token."""

from nereid.flow.flight_record import FlightRecord
from nereid.flow.metrics import Recorder
from nereid.llm.observer import LlmObserver, Peak
from nereid.llm.service import LlmModel, LlmService
from nereid.llm.settings import LlmLimits
from nereid.triton import bridge
from nereid_protocol.metrics import LLM_METRICS


class TritonPythonModel:
    """Adapts nereid.llm.service."""

    def initialize(self, args):
        model = bridge.ModelArguments.parse(args)
        self._service = LlmService(
            LlmModel.read(
                model.name,
                model.version_folder,
                LlmLimits.from_parameters(model.parameters),
                model.device_id if model.instance_kind == "GPU" else None,
            ),
            LlmObserver(Recorder(bridge.metric_sink(LLM_METRICS, model.name)), Peak(1.0, 1.0)),
            FlightRecord.open(model.name),
        )
        bridge.tell_loaded(model.name)

    def execute(self, requests):
        for request in requests:
            with bridge.handling(request):
                self._service.handle(bridge.read_inputs_and_parameters(request), bridge.Stream.of(request))

    def finalize(self):
        self._service.stop()
