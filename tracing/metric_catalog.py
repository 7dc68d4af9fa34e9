"""Every metric there is: name, kind, labels and meaning. `docs/metrics.md` and the dashboard are checked against it."""

from __future__ import annotations

from braid.tracing.metric_families import MetricSpec

_SHORT = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
_LONG = (0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0)
_RATIO = (0.25, 0.5, 0.75, 0.9, 1.1, 1.25, 1.5, 2.0, 4.0)

STEPS = "braid_steps_total"
STEP_DEVICE = "braid_step_device_seconds"
STEP_ERRORS = "braid_step_errors_total"
LANE_BUSY = "braid_lane_busy_seconds_total"
PREDICTION = "braid_prediction_ratio"
QUEUE = "braid_queue_seconds"
QUEUED = "braid_queued_requests"
FIRST_TOKEN = "braid_time_to_first_token_seconds"
INTER_TOKEN = "braid_inter_token_seconds"
REQUEST = "braid_request_seconds"
REQUESTS = "braid_requests_total"
STAGE = "braid_stage_seconds"
STAGE_DEVICE = "braid_stage_device_seconds"
SAMPLER_STEP = "braid_sampler_step_seconds"
TOKENS = "braid_tokens_total"
PREEMPTIONS = "braid_preemptions_total"
DEADLINE_MISSES = "braid_deadline_misses_total"

STEP_METRICS = (
    MetricSpec(STEPS, "counter", "Steps of the device.", ("workload", "kind")),
    MetricSpec(STEP_DEVICE, "histogram", "Device time of a step.", ("workload", "kind"), _SHORT),
    MetricSpec(STEP_ERRORS, "counter", "Steps that failed.", ("workload", "kind")),
    MetricSpec(LANE_BUSY, "counter", "Device time of all steps of a lane.", ("lane",)),
    MetricSpec(PREDICTION, "histogram", "Predicted over measured device time of a step.", ("workload",), _RATIO),
)

REQUEST_METRICS = (
    MetricSpec(QUEUE, "histogram", "From submission to the first step.", ("request_class",), _LONG),
    MetricSpec(QUEUED, "gauge", "Requests whose first step has not run.", ("request_class",)),
    MetricSpec(FIRST_TOKEN, "histogram", "From submission to the first token of a chat.", ("request_class",), _LONG),
    MetricSpec(INTER_TOKEN, "histogram", "Between two tokens of a chat.", ("request_class",), _SHORT),
    MetricSpec(REQUEST, "histogram", "From submission to the last event.", ("request_class",), _LONG),
    MetricSpec(REQUESTS, "counter", "Requests that ended, by how.", ("request_class", "status")),
    MetricSpec(STAGE, "histogram", "A stage of a picture, film or sound, other requests' steps included.", ("stage",),
               _LONG),
    MetricSpec(STAGE_DEVICE, "histogram", "Of that, what the device was its own.", ("stage",), _LONG),
    MetricSpec(SAMPLER_STEP, "histogram", "A step of a sampler, by size of the result.", ("size",), _LONG),
    MetricSpec(TOKENS, "counter", "Tokens of ended phases: prompt, cached (a part of those) or completion.", ("kind",)),
    MetricSpec(PREEMPTIONS, "counter", "Requests that had to yield what they held.", ("cause",)),
    MetricSpec(DEADLINE_MISSES, "counter", "Requests that ended after their deadline.", ("request_class",)),
)  # fmt: skip

ENGINE_METRICS = (
    MetricSpec("braid_requests_open", "gauge", "Requests in the engine."),
    MetricSpec("braid_requests_waiting", "gauge", "Of those, the ones whose first step has not run."),
    MetricSpec("braid_memory_budget_bytes", "gauge", "What may be leased."),
    MetricSpec("braid_memory_leased_bytes", "gauge", "What is leased."),
    MetricSpec("braid_memory_evictable_bytes", "gauge", "Of that, what can be given back at once."),
    MetricSpec("braid_memory_high_water_bytes", "gauge", "The most that was ever leased."),
    MetricSpec("braid_memory_owner_bytes", "gauge", "What is leased, by owner.", ("owner",)),
    MetricSpec("braid_memory_reclaimed_bytes_total", "counter", "What its holder gave back because others needed it.",
               ("holder",)),
    MetricSpec("braid_kv_evicted_pages_total", "counter", "Cached pages that were forgotten to make room."),
    MetricSpec("braid_lora_cache_total", "counter", "Merged adapters that were asked for, by whether they were there.",
               ("result",)),
    MetricSpec("braid_offload_bytes_total", "counter", "Weights of the video model copied to the device."),
    MetricSpec("braid_gpu_utilization_ratio", "gauge", "Part of the last moments in which the GPU ran something."),
    MetricSpec("braid_gpu_memory_used_bytes", "gauge", "Memory of the GPU that is used, by whomever."),
    MetricSpec("braid_gpu_power_watts", "gauge", "What the GPU draws."),
    MetricSpec("braid_gpu_energy_joules_total", "counter", "What the GPU has drawn since its driver started."),
    MetricSpec("braid_kv_pages", "gauge", "Pages of keys and values.", ("state",)),
    MetricSpec("braid_kv_slabs", "gauge", "Slabs that pages come from."),
    MetricSpec("braid_prefix_cache_hit_tokens_total", "counter", "Prompt tokens that were in the prefix cache."),
    MetricSpec("braid_language_tokens_total", "counter", "Tokens computed by the language model.", ("kind",)),
    MetricSpec("braid_language_forward_seconds_total", "counter", "Time in the language model."),
    MetricSpec("braid_language_sampling_seconds_total", "counter", "Time choosing tokens."),
    MetricSpec("braid_language_requests_total", "counter", "Language requests that ended.", ("status",)),
    MetricSpec("braid_kv_preemptions_total", "counter", "Sequences that yielded their keys and values."),
    MetricSpec("braid_spans_total", "counter", "Spans given away by the engine."),
)  # fmt: skip

HTTP_METRICS = (
    MetricSpec("braid_http_requests_total", "counter", "HTTP responses.", ("method", "route", "status")),
    MetricSpec("braid_http_request_seconds", "histogram", "From the header to the end of a response.", ("route",),
               _LONG),
    MetricSpec("braid_jobs_total", "counter", "Jobs that ended, by how.", ("kind", "status")),
    MetricSpec("braid_engine_up", "gauge", "Whether there is an engine."),
    MetricSpec("braid_engine_generation", "gauge", "How many engines there were."),
    MetricSpec("braid_model_info", "gauge", "Always 1; a loaded model and what runs it.",
               ("model", "architecture", "device", "kernels")),
)  # fmt: skip

ALL_METRICS = STEP_METRICS + REQUEST_METRICS + ENGINE_METRICS + HTTP_METRICS
