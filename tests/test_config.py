"""`BraidConfig` refuses what can never be right, and survives the socket."""

from __future__ import annotations

import msgspec
import pytest

from braid.config import BraidConfig, ServeConfig, VideoConfig
from braid.errors import InvalidRequest


def test_the_default_config_is_the_embedded_model() -> None:
    assert BraidConfig().model == "smollm2"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("model", "  "),
        ("aliases", ("good", "")),
        ("device", "tpu"),
        ("device", "cuda:x"),
        ("device", "cpu:1"),
        ("num_threads", 0),
        ("memory_budget_bytes", -1),
        ("max_waiting_requests", 0),
        ("context_length", 0),
        ("context_length", 1),
    ],
)
def test_a_wrong_field_is_named(field: str, value: object) -> None:
    with pytest.raises(InvalidRequest) as caught:
        BraidConfig(**{field: value})  # type: ignore[arg-type]
    assert caught.value.param == field
    assert field in caught.value.message


@pytest.mark.parametrize("device", ["cpu", "cuda", "cuda:3"])
def test_devices_of_the_documented_forms_are_accepted(device: str) -> None:
    assert BraidConfig(device=device).device == device


def test_a_config_survives_the_socket() -> None:
    config = BraidConfig(model="m", aliases=("a", "b"), num_threads=2, exact=False)
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(config), type=BraidConfig) == config


@pytest.mark.parametrize(
    ("field", "value"),
    [("data_dir", None), ("quota_bytes", 0), ("max_films", 0), ("lease_s", float("nan")), ("max_upload_bytes", 0)],
)
def test_a_wrong_field_of_a_server_is_named(field: str, value: object) -> None:
    fields = {"video": VideoConfig(model="m"), "data_dir": "/data"} | {field: value}
    with pytest.raises(InvalidRequest) as caught:
        ServeConfig(**fields)  # type: ignore[arg-type]
    assert caught.value.param == field


def test_servers_that_share_a_directory_sit_on_their_own_seats() -> None:
    assert ServeConfig().seat("engine") == "engine"
    assert ServeConfig(server_name="left").seat("http") == "http@left"
