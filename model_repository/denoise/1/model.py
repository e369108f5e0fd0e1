"""Triton's side of `denoise`: many requests in flight, answered late."""

from nereid.diffusion.feature_cache import Variant
from nereid.diffusion.service import DenoiseService
from nereid.diffusion.settings import Limits, Pipeline
from nereid.diffusion.watching import PREVIEW_CALLS
from nereid.engines.costs import StepCosts
from nereid.engines.digests import fingerprint_of, own_version
from nereid.flow.flight_record import FlightRecord
from nereid.flow.metrics import Recorder
from nereid.flow.state_folder import state_file
from nereid.flow.unanswered import processes_of
from nereid.triton import bridge, calls
from nereid_protocol.metrics import IMAGE_METRICS


class TritonPythonModel:
    """Adapts nereid.diffusion.service."""

    def initialize(self, args):
        model = bridge.ModelArguments.parse(args)
        engines = {variant: model.parameters[f"{variant}_model"] for variant in Variant}
        vae_encoder = model.parameters["vae_encoder_model"]
        limits = Limits.from_parameters(model.parameters)
        callers = calls.Callers.of(limits.concurrent_calls, model.tensor_names, limits.on_gpu)
        previewers = calls.Callers.of(PREVIEW_CALLS, model.tensor_names)

        def predict(wanted):
            return callers.submit(engines[wanted.variant], wanted.inputs, wanted.outputs)

        def encode(images):
            made = calls.call_model(vae_encoder, {"image": images}, ["latents_mean", "latents_std"], model.tensor_names)
            return made["latents_mean"], made["latents_std"]

        def decode_preview(latents, seconds):
            tiny = model.parameters["vae_decoder_tiny_model"]
            return previewers.call(tiny, {"latents": latents}, ["image"], timeout=seconds)["image"]

        self._service = DenoiseService(
            pipeline=Pipeline.read(model.version_folder),
            limits=limits,
            predict=predict,
            encode=encode,
            recorder=Recorder(bridge.metric_sink(IMAGE_METRICS, model.name)),
            costs=StepCosts(state_file(f"{model.name}.costs.json")),
            record=FlightRecord.open(model.name),
            fingerprint=fingerprint_of(model.folder, own_version()),
            decoders=lambda: processes_of(model.parameters["image_output_model"]),
            decode_preview=decode_preview,
        )
        bridge.tell_loaded(model.name)

    def execute(self, requests):
        for request in requests:
            with bridge.handling(request):
                self._service.handle(bridge.read_inputs(request), bridge.late_reply(request), request.is_cancelled)

    def finalize(self):
        self._service.stop()
