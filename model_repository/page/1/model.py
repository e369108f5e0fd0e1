"""Triton's side of `page`: pages from briefs, made by the models beside it, shown on their way where a request wants that."""

from nereid.engines.digests import fingerprint_of, own_version
from nereid.flow.flight_record import FlightRecord
from nereid.flow.metrics import Recorder
from nereid.page.service import PageService
from nereid.page.settings import PageFacts, PageLimits, PageModel
from nereid.page.stages import SiblingStages
from nereid.triton import bridge, calls
from nereid_protocol.metrics import PAGE_METRICS


class TritonPythonModel:
    """Adapts nereid.page.service."""

    def initialize(self, args):
        arguments = bridge.ModelArguments.parse(args)
        model = PageModel(
            name=arguments.name,
            facts=PageFacts.read(arguments.version_folder),
            limits=PageLimits.from_parameters(arguments.parameters),
            fingerprint=fingerprint_of(arguments.folder, own_version()),
        )
        self._service = PageService(
            model=model,
            stages=SiblingStages(model, calls.call_model),
            recorder=Recorder(bridge.metric_sink(PAGE_METRICS, model.name)),
            record=FlightRecord.open(model.name),
        )
        bridge.tell_loaded(model.name)

    def execute(self, requests):
        for request in requests:
            with bridge.handling(request):
                self._service.handle(bridge.read_inputs_and_parameters(request), bridge.Stream.of(request))

    def finalize(self):
        self._service.stop()
