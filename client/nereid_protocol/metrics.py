"""The names of every metric that this project exports, and nothing else: who records and who reads them share this table.

Prometheus conventions: base units, `_total` for counters. `nereid_image_*`, `nereid_layout_*`, `nereid_llm_*` and `nereid_page_*`
stand on Triton's metrics port, `nereid_gateway_*` on the gateway's, `nereid_serve_*` on the supervisor's health port.
"""

from __future__ import annotations

from dataclasses import fields

from nereid_protocol.metric import Kind, LoopMetrics, Metric

_SECONDS = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0),
    *(10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0),
)
_ROWS = (1, 2, 4, 6, 8, 12, 16, 24, 32, 64)


def _counter(name: str, description: str, *labels: str) -> Metric:
    return Metric(name, Kind.COUNTER, description, labels=labels)


def _gauge(name: str, description: str, *labels: str) -> Metric:
    return Metric(name, Kind.GAUGE, description, labels=labels)


def _seconds(name: str, description: str, *labels: str) -> Metric:
    return Metric(name, Kind.HISTOGRAM, description, _SECONDS, labels=labels)


# --- denoise ---

IMAGE_REQUESTS = _counter("nereid_image_requests_total", "Image requests by outcome", "outcome")
IMAGE_REQUEST_SECONDS = _seconds("nereid_image_request_seconds", "Time from arrival at denoise to its answer")
IMAGE_QUEUE_SECONDS = _seconds("nereid_image_queue_seconds", "Time an image request waited to join")
IMAGE_STEP_SECONDS = _seconds("nereid_image_step_seconds", "Time of one call of the UNet")
IMAGE_ROWS_PER_TICK = Metric("nereid_image_rows_per_tick", Kind.HISTOGRAM, "Images moved by one call of the UNet", _ROWS)
IMAGE_ACTIVE_REQUESTS = _gauge("nereid_image_active_requests", "Image requests being denoised")
IMAGE_QUEUED_REQUESTS = _gauge("nereid_image_queued_requests", "Image requests waiting to join")
IMAGES = _counter("nereid_images_total", "Images denoised to the end")
IMAGE_LANE_IMAGES = _gauge(
    "nereid_image_lane_images", "Images by size (width x height in pixels) that run, or wait to join", "size", "state"
)
IMAGE_STEP_COST = _gauge(
    "nereid_image_step_cost_seconds",
    "Learned cost of a call of this size and engine: per call, and per row in it",
    "size",
    "engine",
    "per",
)
IMAGE_STEPS = _counter(
    "nereid_image_steps_total", "Steps of images, by engine: unet_shallow goes on from kept features", "engine"
)
IMAGE_FEATURE_MEMORY = _gauge("nereid_image_feature_memory_bytes", "Features that images in flight keep")
IMAGE_MEMORY_USED = _gauge("nereid_image_memory_used_bytes", "Memory that the admitted requests need at their largest engine")
IMAGE_MEMORY_BUDGET = _gauge("nereid_image_memory_budget_bytes", "Memory that admitted requests may need together")
IMAGE_ENGINE_DEATHS = _counter("nereid_image_engine_deaths_total", "Times that the UNet's process died with calls inside")

IMAGE_METRICS = (
    IMAGE_REQUESTS,
    IMAGE_REQUEST_SECONDS,
    IMAGE_QUEUE_SECONDS,
    IMAGE_STEP_SECONDS,
    IMAGE_ROWS_PER_TICK,
    IMAGE_ACTIVE_REQUESTS,
    IMAGE_QUEUED_REQUESTS,
    IMAGES,
    IMAGE_LANE_IMAGES,
    IMAGE_STEP_COST,
    IMAGE_STEPS,
    IMAGE_FEATURE_MEMORY,
    IMAGE_MEMORY_USED,
    IMAGE_MEMORY_BUDGET,
    IMAGE_ENGINE_DEATHS,
)

IMAGE_LOOP = LoopMetrics(
    requests=IMAGE_REQUESTS,
    request_seconds=IMAGE_REQUEST_SECONDS,
    queue_seconds=IMAGE_QUEUE_SECONDS,
    step_seconds=IMAGE_STEP_SECONDS,
    rows_per_tick=IMAGE_ROWS_PER_TICK,
    steps=IMAGE_STEPS,
    active_requests=IMAGE_ACTIVE_REQUESTS,
    queued_requests=IMAGE_QUEUED_REQUESTS,
    made=IMAGES,
    engine_deaths=IMAGE_ENGINE_DEATHS,
)

# --- layout ---

LAYOUT_LOOP = LoopMetrics(
    requests=_counter("nereid_layout_requests_total", "Layout requests by outcome", "outcome"),
    request_seconds=_seconds("nereid_layout_request_seconds", "Time from a layout request's arrival to its end in the queue"),
    queue_seconds=_seconds("nereid_layout_queue_seconds", "Time a layout request waited to join"),
    step_seconds=_seconds("nereid_layout_step_seconds", "Time of one call of the layout transformer"),
    rows_per_tick=Metric("nereid_layout_rows_per_tick", Kind.HISTOGRAM, "Layouts moved by one call of the transformer", _ROWS),
    steps=_counter("nereid_layout_steps_total", "Steps of layouts, by engine", "engine"),
    active_requests=_gauge("nereid_layout_active_requests", "Layout requests being drawn"),
    queued_requests=_gauge("nereid_layout_queued_requests", "Layout requests waiting to join"),
    made=_counter("nereid_layouts_total", "Layouts drawn to the end, candidates included"),
    engine_deaths=_counter("nereid_layout_engine_deaths_total", "Times that the transformer's process died with calls inside"),
)
LAYOUT_WORKER_DEATHS = _counter("nereid_layout_worker_deaths_total", "Transformer processes that died and were replaced")
LAYOUT_DEGRADED = _counter(
    "nereid_layout_degraded_total", "Answers worse than asked for: of fewer steps (deadline), or by rules (engine)", "reason"
)
LAYOUT_BRANCHES = _counter(
    "nereid_layout_branches_total",
    "Branches (attention, mlp) of steps of layouts that cache, by whether they were computed or reused from an earlier step",
    "branch",
    "how",
)
LAYOUT_WIDTHS = _counter(
    "nereid_layout_widths_total",
    "Steps of layouts with dynamic width, by the slice of the transformer that computed them (narrow, medium, wide)",
    "width",
)
LAYOUT_TOKENS = _counter(
    "nereid_layout_tokens_total",
    "Tokens at MLPs of steps of layouts with dynamic tokens, by whether the MLP was computed for them or they were skipped",
    "how",
)
LAYOUT_CHECKS = _counter(
    "nereid_layout_answers_total", "Answers by their checks: passed, or with an error left after repair", "passed"
)

LAYOUT_METRICS = (
    *(getattr(LAYOUT_LOOP, field.name) for field in fields(LAYOUT_LOOP)),
    LAYOUT_WORKER_DEATHS,
    LAYOUT_DEGRADED,
    LAYOUT_BRANCHES,
    LAYOUT_WIDTHS,
    LAYOUT_TOKENS,
    LAYOUT_CHECKS,
)

# --- llm ---

LLM_REQUESTS = _counter("nereid_llm_requests_total", "Requests by outcome", "outcome")
LLM_ADAPTER_REQUESTS = _counter("nereid_llm_adapter_requests_total", "Requests for an adapter by outcome", "adapter", "outcome")
LLM_ADAPTER_TOKENS = _counter("nereid_llm_adapter_generation_tokens_total", "Tokens written by an adapter", "adapter")
LLM_EMBEDDINGS = _counter("nereid_llm_embeddings_total", "Prompts embedded")
LLM_EMBEDDED_TOKENS = _counter("nereid_llm_embedded_tokens_total", "Tokens of prompts embedded")
LLM_TIME_TO_FIRST_TOKEN = _seconds("nereid_llm_time_to_first_token_seconds", "Arrival to first token")
LLM_INTER_TOKEN_LATENCY = _seconds("nereid_llm_inter_token_latency_seconds", "Between two tokens of a request (sampled)")
LLM_TIME_PER_OUTPUT_TOKEN = _seconds("nereid_llm_time_per_output_token_seconds", "Mean time between an answer's tokens")
LLM_E2E_LATENCY = _seconds("nereid_llm_e2e_request_latency_seconds", "Arrival to last token")
LLM_QUEUE_SECONDS = _seconds("nereid_llm_request_queue_seconds", "Time a request waited to join")
LLM_PROMPT_TOKENS = _counter("nereid_llm_prompt_tokens_total", "Prompt tokens computed")
LLM_GENERATION_TOKENS = _counter("nereid_llm_generation_tokens_total", "Tokens written")
LLM_TICK_SECONDS = _seconds("nereid_llm_tick_seconds", "Time of one tick (sampled)")
LLM_BATCH_SIZE = Metric("nereid_llm_batch_size", Kind.HISTOGRAM, "Rows of one decode call (sampled)", _ROWS)
LLM_RUNNING = _gauge("nereid_llm_requests_running", "Requests being answered")
LLM_WAITING = _gauge("nereid_llm_requests_waiting", "Requests waiting to join")
LLM_KV_USAGE = _gauge("nereid_llm_kv_cache_usage_ratio", "Share of the KV cache in use")
LLM_PREFIX_QUERIES = _counter("nereid_llm_prefix_cache_queried_tokens_total", "Prompt tokens looked up")
LLM_PREFIX_HITS = _counter("nereid_llm_prefix_cache_hit_tokens_total", "Prompt tokens found")
LLM_DRAFT_TOKENS = _counter("nereid_llm_draft_tokens_total", "Draft tokens proposed in speculative decoding")
LLM_ACCEPTED_TOKENS = _counter("nereid_llm_accepted_draft_tokens_total", "Draft tokens accepted")
LLM_PREEMPTIONS = _counter("nereid_llm_preemptions_total", "Sequences preempted for lack of KV cache")
LLM_WORKER_DEATHS = _counter("nereid_llm_worker_deaths_total", "Worker processes that died and were replaced")
LLM_REPLAYS = _counter("nereid_llm_replayed_requests_total", "Requests given to a new worker after a death")
LLM_BANDWIDTH_UTILISATION = _gauge(
    "nereid_llm_model_bandwidth_utilization_ratio", "Bytes read in a decode call against the measured peak"
)
LLM_FLOP_UTILISATION = _gauge("nereid_llm_model_flop_utilization_ratio", "FLOPs of a decode call against the measured peak")

LLM_METRICS = tuple(
    metric for metric in list(globals().values()) if isinstance(metric, Metric) and metric.name.startswith("nereid_llm_")
)

# --- page ---

PAGE_REQUESTS = _counter("nereid_page_requests_total", "Page requests by outcome", "outcome")
PAGE_REQUEST_SECONDS = _seconds("nereid_page_request_seconds", "Time from a page's begin to its end")
PAGE_FIRST_SECTION_SECONDS = _seconds("nereid_page_first_section_seconds", "Time until a page's first section can be seen")
PAGE_STAGE_SECONDS = _seconds(
    "nereid_page_stage_seconds", "Time of one call of a stage: plan, sections, layouts or pictures", "stage"
)
PAGE_DEGRADED = _counter("nereid_page_degraded_total", "Pieces of pages that were worse than asked for, by stage", "stage")
PAGE_CHECKS = _counter("nereid_page_answers_total", "Pages by their checks: passed, or with an error", "passed")
PAGE_ACTIVE_REQUESTS = _gauge("nereid_page_active_requests", "Pages being made")

PAGE_METRICS = (
    PAGE_REQUESTS,
    PAGE_REQUEST_SECONDS,
    PAGE_FIRST_SECTION_SECONDS,
    PAGE_STAGE_SECONDS,
    PAGE_DEGRADED,
    PAGE_CHECKS,
    PAGE_ACTIVE_REQUESTS,
)

# --- the gateway ---

GATEWAY_REQUESTS = _counter("nereid_gateway_requests_total", "Requests by route and HTTP status", "route", "status")
GATEWAY_KEY_REQUESTS = _counter(
    "nereid_gateway_requests_by_key_total", "Requests by the name of their API key and HTTP status", "key", "status"
)
GATEWAY_REQUEST_SECONDS = _seconds("nereid_gateway_request_seconds", "Time from a request's head to its answer's end", "route")
GATEWAY_FIRST_TOKEN_SECONDS = _seconds(
    "nereid_gateway_time_to_first_token_seconds", "Time from a request's head to the first event of a stream", "route"
)
GATEWAY_IN_FLIGHT = _gauge("nereid_gateway_requests_in_flight", "Requests being answered", "route")
GATEWAY_RETRIES = _counter("nereid_gateway_retries_total", "Requests sent to Triton again after a refusal", "pipeline")
GATEWAY_REPLAYS = _counter("nereid_gateway_replays_total", "Requests sent to Triton again after a death", "pipeline")
GATEWAY_LOST = _counter("nereid_gateway_lost_requests_total", "Requests given up after their last replay", "pipeline")
GATEWAY_PICTURES = _gauge("nereid_gateway_pictures", "Pictures that can be fetched by their address")
GATEWAY_PICTURE_BYTES = _gauge("nereid_gateway_picture_bytes", "Memory that they take")
GATEWAY_BATCHES = _gauge("nereid_gateway_batches", "Batches by state", "state")
GATEWAY_BATCH_REQUESTS = _counter(
    "nereid_gateway_batch_requests_total",
    "Requests of batches by outcome: completed, failed, or unanswered by the end; counted since the folder was made",
    "outcome",
)
GATEWAY_BATCH_WAITING = _gauge("nereid_gateway_batch_requests_waiting", "Requests of open batches that are not answered")
GATEWAY_BATCH_RUNNING = _gauge("nereid_gateway_batch_requests_running", "Requests of batches being answered")
GATEWAY_BATCH_PUT_BACK = _counter("nereid_gateway_batch_requests_put_back_total", "Times that one was put back for somebody")
GATEWAY_FILES = _gauge("nereid_gateway_files", "Files of all keys")
GATEWAY_FILE_BYTES = _gauge("nereid_gateway_file_bytes", "What they, and requests and answers of open batches, take on disk")

GATEWAY_METRICS = (
    GATEWAY_REQUESTS,
    GATEWAY_KEY_REQUESTS,
    GATEWAY_REQUEST_SECONDS,
    GATEWAY_FIRST_TOKEN_SECONDS,
    GATEWAY_IN_FLIGHT,
    GATEWAY_RETRIES,
    GATEWAY_REPLAYS,
    GATEWAY_LOST,
    GATEWAY_PICTURES,
    GATEWAY_PICTURE_BYTES,
)

GATEWAY_BATCH_METRICS = (
    GATEWAY_BATCHES,
    GATEWAY_BATCH_REQUESTS,
    GATEWAY_BATCH_WAITING,
    GATEWAY_BATCH_RUNNING,
    GATEWAY_BATCH_PUT_BACK,
    GATEWAY_FILES,
    GATEWAY_FILE_BYTES,
)

# --- the supervisor ---

SERVE_READY = _gauge("nereid_serve_ready", "1 where /ready says 200")
SERVE_TRITON_RESTARTS = _counter("nereid_serve_triton_restarts_total", "Times that Triton was started again")
SERVE_MODEL_DEATHS = _counter("nereid_serve_model_deaths_total", "Deaths of a model's Python process", "model")
SERVE_SERVICE_DEATHS = _counter("nereid_serve_service_deaths_total", "Deaths of a process beside Triton: the gateway", "service")
SERVE_MODEL_READY = _gauge("nereid_serve_model_ready", "1 where the model answers", "model")
SERVE_MEMORY = _gauge("nereid_serve_resident_memory_bytes", "Resident memory of a process of this serve", "process")

SERVE_METRICS = (SERVE_READY, SERVE_TRITON_RESTARTS, SERVE_MODEL_DEATHS, SERVE_SERVICE_DEATHS, SERVE_MODEL_READY, SERVE_MEMORY)

ALL_METRICS = (
    *IMAGE_METRICS,
    *LAYOUT_METRICS,
    *LLM_METRICS,
    *PAGE_METRICS,
    *GATEWAY_METRICS,
    *GATEWAY_BATCH_METRICS,
    *SERVE_METRICS,
)
