"""`denoise` as plain Python: raw inputs in, named output arrays (or an error) out, many requests in flight."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np

from nereid.diffusion.denoising import Denoiser, Encode, ImageTask, Predict
from nereid.diffusion.requests import Inputs, parse_image_request
from nereid.diffusion.settings import Limits, Pipeline
from nereid.flow.batcher import InFlightBatcher
from nereid.flow.errors import EngineError, RequestError
from nereid.flow.metrics import ImageObserver, Recorder

log = logging.getLogger(__name__)

Reply = Callable[[Mapping[str, np.ndarray] | None, RequestError | None], None]
"""Called once for every request, with its outputs or its error, from any thread."""


@dataclass(slots=True)
class DenoiseService:
    """Owns the batcher and the loop of one `denoise` instance."""

    pipeline: Pipeline
    limits: Limits
    predict: Predict
    encode: Encode
    recorder: Recorder
    _observer: ImageObserver = field(init=False)
    _denoiser: Denoiser = field(init=False)
    _batcher: InFlightBatcher[ImageTask] = field(init=False)
    _preparing: ThreadPoolExecutor = field(init=False)

    def __post_init__(self) -> None:
        self._observer = ImageObserver(self.recorder)
        self._denoiser = Denoiser(self.predict, self.encode, self.limits.unet_max_batch_size, self.limits.rows_per_tick)
        self._batcher = InFlightBatcher(
            self._denoiser.advance,
            self._observer,
            max_inflight=self.limits.max_inflight,
            max_queue=self.limits.max_queue,
            name="denoise",
        )
        self._preparing = ThreadPoolExecutor(max_workers=2, thread_name_prefix="denoise-prepare")

    def handle(self, inputs: Inputs, reply: Reply, is_cancelled: Callable[[], bool]) -> None:
        """Take one request; returns at once, `reply` follows when it is done or refused."""
        try:
            request = parse_image_request(inputs, self.pipeline, self.limits)
        except RequestError as error:
            self._refuse(error, reply)
            return
        except Exception:
            log.exception("a request could not be read")
            self._refuse(EngineError("internal error while reading the request; see the server's log"), reply)
            return

        def answer(task: ImageTask, error: RequestError | None) -> None:
            if error is None:
                self._observer.imaged(sum(run.row.end == run.row.origin + len(run.row.table) for run in task.runs))
            reply(None if error else _outputs(task), error)

        task = ImageTask(request, answer, is_cancelled)
        if any(row.image is not None for row in request.rows):
            self._preparing.submit(self._start, task, reply)
        else:
            self._start(task, reply)

    def _start(self, task: ImageTask, reply: Reply) -> None:
        try:
            self._denoiser.prepare(task)
            self._batcher.submit(task, timeout_seconds=task.request.timeout_seconds)
        except RequestError as error:
            self._refuse(error, reply)
        except Exception:
            log.exception("a request could not be started")
            self._refuse(EngineError("internal error before the first step; see the server's log"), reply)

    def _refuse(self, error: RequestError, reply: Reply) -> None:
        self._observer.refused(error.outcome)
        reply(None, error)

    def stop(self) -> None:
        """Fail what is in flight and release the threads."""
        self._preparing.shutdown(wait=True)
        self._batcher.stop()
        self.recorder.stop()


def _outputs(task: ImageTask) -> dict[str, np.ndarray]:
    count = len(task.runs)
    warnings = "\n".join(task.request.warnings).encode()
    return {
        "latents": np.stack([run.state.sample for run in task.runs]),
        "solver_memory": np.stack([run.state.memory for run in task.runs]),
        "image_seed": np.array([[run.row.seed] for run in task.runs], dtype=np.int64),
        "warnings": np.array([[warnings]] * count, dtype=np.object_),
        "timings": np.array([task.timings] * count, dtype=np.float32),
    }
