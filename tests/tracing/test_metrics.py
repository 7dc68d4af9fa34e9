"""What is measured, how Prometheus reads it, and that the dashboard and the docs name what there is."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest
from prometheus_client.parser import text_string_to_metric_families

from braid.tests.tracing.stage import Stage
from braid.tests.tracing.test_trace_builder import play_chat, play_film
from braid.tracing.engine_metrics import METRICS, engine_families
from braid.tracing.gpu_counters import gpu_counters
from braid.tracing.measurements import Measurements
from braid.tracing.metric_catalog import ALL_METRICS
from braid.tracing.metric_families import Family, MetricSpec, Registry, Sample
from braid.tracing.prometheus_text import prometheus_text
from braid.tracing.recorder import Recorder
from braid.tracing.sampling import TraceSampling

DOCS = Path(__file__).parents[2] / "docs"


def read(families: list[Family]) -> dict[tuple[str, str], float]:
    """By name and labels, as Prometheus' own parser sees them."""
    found = {}
    for family in text_string_to_metric_families(prometheus_text(families)):
        for sample in family.samples:
            labels = ",".join(f"{key}={value}" for key, value in sorted(sample.labels.items()))
            found[sample.name, labels] = sample.value
    return found


def measured(play: object, *, attributes: dict[str, str | float] | None = None) -> dict[tuple[str, str], float]:
    stage = Stage()
    opened = stage.recorder.open
    stage.recorder.open = lambda *a: opened(*a, attributes=attributes)  # type: ignore[method-assign,assignment]
    play(stage)  # type: ignore[operator]
    measurements = Measurements()
    measurements.take(stage.recorder.take())
    return read(measurements.families())


def test_a_chat_is_measured_from_its_queue_to_its_last_token() -> None:
    found = measured(play_chat, attributes={"request_class": "interactive", "deadline_s": 0.05})
    interactive = "request_class=interactive"
    assert found["braid_queue_seconds_sum", interactive] == pytest.approx(0.003)
    assert found["braid_time_to_first_token_seconds_sum", interactive] == pytest.approx(0.023)
    assert found["braid_inter_token_seconds_count", interactive] == 5
    assert found["braid_inter_token_seconds_sum", interactive] == pytest.approx(0.055)
    assert found["braid_requests_total", f"{interactive},status=completed"] == 1
    assert found["braid_deadline_misses_total", interactive] == 1
    assert {kind: found["braid_tokens_total", f"kind={kind}"] for kind in ("prompt", "cached", "completion")} == {
        "prompt": 9, "cached": 4, "completion": 6,
    }  # fmt: skip


def test_a_film_is_measured_by_stage_and_by_sampler_step() -> None:
    found = measured(play_film, attributes={"request_class": "batch", "size": "64x64x9"})
    assert found["braid_sampler_step_seconds_count", "size=64x64x9"] == 2
    stages = {labels for name, labels in found if name == "braid_stage_seconds_count"}
    assert stages == {"stage=stage_1", "stage=vae decode", "stage=file write"}
    on_device = [found["braid_stage_device_seconds_sum", f"stage={name}"] for name in ("stage_1", "vae decode")]
    assert on_device == pytest.approx([0.08, 0.07])
    assert not any(name.startswith(("braid_inter_token", "braid_time_to_first")) for name, _ in found)
    assert found["braid_step_device_seconds_sum", "kind=denoise,workload=diffusion"] == pytest.approx(0.08)
    assert found["braid_lane_busy_seconds_total", "lane=device"] == pytest.approx(0.155)


def test_what_nobody_wants_traced_is_measured_all_the_same() -> None:
    recorder = Recorder(TraceSampling(0.0), is_measured=True)
    recorder.open("a", None).end(error="request_cancelled")
    stage = Stage()
    noted = recorder.take()
    assert stage.builder.build(noted, 1e9) == []
    measurements = Measurements()
    measurements.take(noted)
    assert read(measurements.families())["braid_requests_total", "request_class=,status=request_cancelled"] == 1


def test_the_queue_is_as_deep_as_requests_wait_in_it() -> None:
    stage = Stage()
    measurements = Measurements()

    def depth() -> float:
        measurements.take(stage.recorder.take())
        return read(measurements.families())["braid_queued_requests", "request_class="]

    first, second, _ = (stage.open(name) for name in ("a", "b", "c"))
    assert depth() == 3
    first.phase("prefill")
    first.phase("decode")
    second.end(error="request_cancelled")
    first.end()
    assert depth() == 1


def test_a_gpu_tells_what_nvidias_library_tells(monkeypatch: pytest.MonkeyPatch) -> None:
    class NVMLError(Exception): ...

    def unsupported(handle: str) -> float:
        raise NVMLError

    library = SimpleNamespace(
        NVMLError=NVMLError,
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByIndex=lambda index: f"gpu {index}",
        nvmlDeviceGetUtilizationRates=lambda handle: SimpleNamespace(gpu=25 if handle == "gpu 1" else 0),
        nvmlDeviceGetMemoryInfo=lambda handle: SimpleNamespace(used=7),
        nvmlDeviceGetPowerUsage=lambda handle: 300_000,
        nvmlDeviceGetTotalEnergyConsumption=unsupported,
    )
    monkeypatch.setitem(sys.modules, "pynvml", library)
    assert gpu_counters("cuda:1")() == {"utilization_ratio": 0.25, "memory_used_bytes": 7.0, "power_watts": 300.0}
    assert gpu_counters("cpu")() == {}
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert gpu_counters("cuda:1")() == {}


def test_buckets_are_cumulated_and_a_bound_belongs_to_its_bucket() -> None:
    registry = Registry([MetricSpec("x_seconds", "histogram", "x", ("a",), (1.0, 2.0))])
    for value in (0.5, 1.0, 1.5, 9.0):
        registry.observe("x_seconds", value, "b")
    found = read(registry.families())
    assert [found["x_seconds_bucket", f"a=b,le={le}"] for le in ("1", "2", "+Inf")] == [2, 3, 4]
    assert (found["x_seconds_count", "a=b"], found["x_seconds_sum", "a=b"]) == (4, 12)


def test_labels_survive_whatever_they_hold_and_are_bounded_in_number() -> None:
    nasty = 'a "quoted"\\ line\nand another'
    registry = Registry([MetricSpec("x_total", "counter", "x\ny", ("a",))], max_series=2)
    for label in (nasty, "b", "c", "d", "b"):
        registry.add("x_total", 1.0, label)
    assert read(registry.families()) == {
        ("x_total", f"a={nasty}"): 1, ("x_total", "a=b"): 2, ("x_total", "a=other"): 2,
    }  # fmt: skip


def test_the_engines_counters_cross_processes_as_metrics() -> None:
    measurements = Measurements()
    stage = Stage()
    play_chat(stage)
    measurements.take(stage.recorder.take())
    values = {
        "requests": {"open": 3, "waiting": 1},
        "memory": {
            "budget_bytes": 100, "leased_bytes": 60, "by_owner": {"weights": 40},
            "reclaimed_bytes": {"cached prefixes": 7},
        },
        "video": {"adapters": {"found": 2, "merged": 1}, "offload": {"copied_bytes": 9}},
        "gpu": {"power_watts": 300.5},
        "language": {"forward_ms": 1500.0},
        METRICS: measurements.families(),
    }
    crossed = msgspec.msgpack.decode(msgspec.msgpack.encode(values))
    found = read(engine_families(crossed))
    assert found["braid_requests_open", ""] == 3
    assert found["braid_memory_owner_bytes", "owner=weights"] == 40
    assert found["braid_memory_reclaimed_bytes_total", "holder=cached prefixes"] == 7
    assert [found["braid_lora_cache_total", f"result={result}"] for result in ("found", "merged")] == [2, 1]
    assert found["braid_offload_bytes_total", ""] == 9 and found["braid_gpu_power_watts", ""] == 300.5
    assert found["braid_language_forward_seconds_total", ""] == 1.5
    assert found["braid_queue_seconds_count", "request_class="] == 1
    assert ("braid_kv_slabs", "") not in found


def test_names_follow_prometheus_rules() -> None:
    assert len({spec.name for spec in ALL_METRICS}) == len(ALL_METRICS)
    for spec in ALL_METRICS:
        assert re.fullmatch(r"braid_[a-z0-9_]+", spec.name)
        assert spec.name.endswith("_total") == (spec.kind == "counter"), spec.name
        assert bool(spec.bounds) == (spec.kind == "histogram") and list(spec.bounds) == sorted(spec.bounds)
        assert spec.help.endswith(".")


def exposed() -> set[str]:
    names: set[str] = set()
    for spec in ALL_METRICS:
        parts = ("_bucket", "_sum", "_count") if spec.kind == "histogram" else ("",)
        names.update(spec.name + part for part in parts)
    return names


def test_the_dashboard_asks_only_for_metrics_and_labels_that_there_are() -> None:
    dashboard = json.loads((DOCS / "grafana.json").read_text())
    queries = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", [])]
    assert len(queries) >= 20
    labels = {label for spec in ALL_METRICS for label in spec.labels} | {"le"}
    for query in queries:
        named = set(re.findall(r"\bbraid_[a-z0-9_]+", query))
        assert named and named <= exposed(), query
        for group in re.findall(r"by ?\(([^)]*)\)", query):
            assert {label.strip() for label in group.split(",")} <= labels, query
    shown = {name for query in queries for name in re.findall(r"\bbraid_[a-z0-9_]+", query)}
    left_out = {spec.name for spec in ALL_METRICS if not any(name.startswith(spec.name) for name in shown)}
    assert not left_out, f"metrics that no panel shows: {left_out}"


def test_the_docs_name_every_metric_and_no_other() -> None:
    text = (DOCS / "metrics.md").read_text()
    assert set(re.findall(r"`(braid_[a-z0-9_]+)`", text)) == {spec.name for spec in ALL_METRICS}


def test_a_sample_is_what_it_was_after_a_journey() -> None:
    family = Family(MetricSpec("x_total", "counter", "x."), [Sample((), 1.5)])
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(family), type=Family) == family
