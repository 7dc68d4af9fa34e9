"""The engine's own counters, as it tells them for `/stats`, as metrics. What it does not tell is left out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from braid.tracing.metric_catalog import ENGINE_METRICS
from braid.tracing.metric_families import Family, Registry

METRICS = "metrics"
"""Under this name the engine's `Measurements` come among its counters."""

_PLAIN = (
    ("braid_requests_open", ("requests", "open"), 1.0, ()),
    ("braid_requests_waiting", ("requests", "waiting"), 1.0, ()),
    ("braid_memory_budget_bytes", ("memory", "budget_bytes"), 1.0, ()),
    ("braid_memory_leased_bytes", ("memory", "leased_bytes"), 1.0, ()),
    ("braid_memory_evictable_bytes", ("memory", "evictable_bytes"), 1.0, ()),
    ("braid_memory_high_water_bytes", ("memory", "high_water_bytes"), 1.0, ()),
    ("braid_kv_pages", ("kv_pages", "used"), 1.0, ("used",)),
    ("braid_kv_pages", ("kv_pages", "cached"), 1.0, ("cached",)),
    ("braid_kv_pages", ("kv_pages", "free"), 1.0, ("free",)),
    ("braid_kv_slabs", ("kv_pages", "slabs"), 1.0, ()),
    ("braid_prefix_cache_hit_tokens_total", ("language", "cached_tokens"), 1.0, ()),
    ("braid_language_tokens_total", ("language", "decode_tokens"), 1.0, ("decode",)),
    ("braid_language_tokens_total", ("language", "prefill_tokens"), 1.0, ("prefill",)),
    ("braid_language_forward_seconds_total", ("language", "forward_ms"), 1e-3, ()),
    ("braid_language_sampling_seconds_total", ("language", "sampling_ms"), 1e-3, ()),
    ("braid_language_requests_total", ("language", "finished"), 1.0, ("finished",)),
    ("braid_language_requests_total", ("language", "failed"), 1.0, ("failed",)),
    ("braid_kv_preemptions_total", ("language", "preemptions"), 1.0, ()),
    ("braid_kv_evicted_pages_total", ("kv_pages", "evicted"), 1.0, ()),
    ("braid_lora_cache_total", ("video", "adapters", "found"), 1.0, ("found",)),
    ("braid_lora_cache_total", ("video", "adapters", "merged"), 1.0, ("merged",)),
    ("braid_offload_bytes_total", ("video", "offload", "copied_bytes"), 1.0, ()),
    ("braid_gpu_utilization_ratio", ("gpu", "utilization_ratio"), 1.0, ()),
    ("braid_gpu_memory_used_bytes", ("gpu", "memory_used_bytes"), 1.0, ()),
    ("braid_gpu_power_watts", ("gpu", "power_watts"), 1.0, ()),
    ("braid_gpu_energy_joules_total", ("gpu", "energy_joules"), 1.0, ()),
    ("braid_spans_total", ("spans",), 1.0, ()),
)
"""(metric, where its value is, what to multiply it by, its labels)"""

_BY_HOLDER = (
    ("braid_memory_owner_bytes", "by_owner"),
    ("braid_memory_reclaimed_bytes_total", "reclaimed_bytes"),
)
"""(metric, which part of the memory's counters)"""


def engine_families(values: Mapping[str, Any]) -> list[Family]:
    """Metrics of the engine's counters, and those that it measured itself."""
    registry = Registry(ENGINE_METRICS)
    for name, path, factor, labels in _PLAIN:
        value = _at(values, path)
        if value is not None:
            registry.set(name, value * factor, *labels)
    for name, part in _BY_HOLDER:
        holders = values.get("memory", {}).get(part, {})
        for holder, num_bytes in holders.items() if isinstance(holders, Mapping) else ():
            registry.set(name, num_bytes, str(holder))
    measured = msgspec.convert(values.get(METRICS, []), list[Family])
    return registry.families() + measured


def _at(values: Mapping[str, Any], path: tuple[str, ...]) -> float | None:
    found: Any = values
    for name in path:
        found = found.get(name) if isinstance(found, Mapping) else None
    return float(found) if isinstance(found, int | float) else None
