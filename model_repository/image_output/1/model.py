"""Triton's side of `image_output`: latents to pixels, answered late, for the decoder may be called many times."""

import time
from functools import partial

from nereid.diffusion.decoding import DecodingService, DecodingSettings
from nereid.diffusion.settings import Pipeline
from nereid.flow.request_ids import NamedThreads
from nereid.flow.unanswered import processes_of
from nereid.triton import bridge, calls

ASK_SECONDS = 10.0


class TritonPythonModel:
    """Adapts nereid.diffusion.decoding."""

    def initialize(self, args):
        model = bridge.ModelArguments.parse(args)
        settings = DecodingSettings.from_parameters(model.parameters)
        pipeline = Pipeline.read(model.version_folder)
        self._workers, self._askers = NamedThreads(settings.max_calls, "decode"), calls.Callers.of(settings.max_calls)
        self._service = DecodingService(
            settings=settings,
            vae_scale_factor=pipeline.vae_scale_factor,
            call=partial(calls.call_model, tensor_names=model.tensor_names),
            ask=self._ask,
            decoders=processes_of,
            tiny_decoder=pipeline.tiny_decoder,
        )
        bridge.tell_loaded(model.name)

    def execute(self, requests):
        for request in requests:
            with bridge.handling(request):
                work = bridge.read_inputs(request), request.is_cancelled, bridge.late_reply(request), time.monotonic()
                self._workers.submit(self._serve, *work)

    def _serve(self, inputs, is_cancelled, reply, arrived):
        try:
            reply(self._service.decode(inputs, is_cancelled, arrived), None)
        except Exception as error:
            reply(None, error)

    def _ask(self, *call):
        return self._askers.call(*call, timeout=ASK_SECONDS)

    def finalize(self):
        self._workers.shutdown(wait=True, cancel_futures=True)
