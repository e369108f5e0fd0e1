"""Triton's side of `denoise`: many requests in flight, answered late."""

from nereid.diffusion.images import from_pixels
from nereid.diffusion.service import DenoiseService
from nereid.diffusion.settings import Limits, Pipeline
from nereid.flow.metrics import IMAGE_METRICS, Recorder
from nereid.triton import bridge


class TritonPythonModel:
    """Adapts nereid.diffusion.service."""

    def initialize(self, args):
        model = bridge.ModelArguments.parse(args)
        unet, vae_encoder = model.parameters["unet_model"], model.parameters["vae_encoder_model"]

        def predict(inputs):
            return bridge.call_model(unet, inputs, ["out_sample"])["out_sample"]

        def encode(pixels):
            made = bridge.call_model(vae_encoder, {"image": from_pixels(pixels)[None]}, ["latents_mean", "latents_std"])
            return made["latents_mean"][0], made["latents_std"][0]

        self._service = DenoiseService(
            pipeline=Pipeline.read(model.version_folder),
            limits=Limits.from_parameters(model.parameters),
            predict=predict,
            encode=encode,
            recorder=Recorder(bridge.metric_sink(IMAGE_METRICS, model.name)),
        )

    def execute(self, requests):
        for request in requests:
            self._service.handle(bridge.read_inputs(request), bridge.late_reply(request), request.is_cancelled)

    def finalize(self):
        self._service.stop()
