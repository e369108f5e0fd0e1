"""Triton's side of `layout`: many requests in flight, answered late, step by step where a request wants that."""

from nereid.engines.costs import StepCosts
from nereid.engines.digests import fingerprint_of, own_version
from nereid.engines.engine_process import EngineProcess
from nereid.flow.flight_record import FlightRecord
from nereid.flow.metrics import Recorder
from nereid.flow.state_folder import state_file
from nereid.layout.service import LayoutService
from nereid.layout.settings import LayoutLimits, LayoutModel
from nereid.triton import bridge
from nereid_protocol.metrics import LAYOUT_METRICS, LAYOUT_WORKER_DEATHS


class TritonPythonModel:
    """Adapts nereid.layout.service."""

    def initialize(self, args):
        arguments = bridge.ModelArguments.parse(args)
        limits = LayoutLimits.from_parameters(arguments.parameters)
        fingerprint = fingerprint_of(arguments.folder, own_version())
        model = LayoutModel.read(arguments.name, arguments.version_folder, limits, fingerprint)
        recorder = Recorder(bridge.metric_sink(LAYOUT_METRICS, model.name))
        engine = EngineProcess(model.worker_options(), lambda: recorder.record(LAYOUT_WORKER_DEATHS, 1))
        engine.wait_ready()
        self._service = LayoutService(
            model=model,
            engine=engine,
            recorder=recorder,
            costs=StepCosts(state_file(f"{model.name}.costs.json")),
            record=FlightRecord.open(model.name),
        )
        bridge.tell_loaded(model.name)

    def execute(self, requests):
        for request in requests:
            with bridge.handling(request):
                self._service.handle(bridge.read_inputs_and_parameters(request), bridge.Stream.of(request))

    def finalize(self):
        self._service.stop()
