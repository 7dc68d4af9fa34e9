"""Requests for media whose fields must fit together, judged by the rules of a real model of toy size.

What schemathesis makes is rarely near to what could be done. Here most fields have values of which some are right, some
nearly, and some very large; the rest is as schemathesis made it. Nothing is an unhandled error, every answer is one
that the document describes, and what is let through is the same job when it is judged again.

`BRAID_SOAK=1` sends thousands.
"""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import requests
import schemathesis
from conftest import Studio
from hypothesis import given, seed
from hypothesis import strategies as st
from judging_studio import JudgingStudio
from schemathesis import GenerationMode
from test_schema_fuzz import CHECKS, IS_SOAK, cases, generating, named

from braid.diffusion.pipelines.sampler_choice import SAMPLERS
from braid.rest.field_kinds import PIPELINES
from braid.rest.limits import AdmissionLimits
from braid.rest.openapi import document
from braid.rest.operations import OPERATIONS

NUM_EXAMPLES = 600 if IS_SOAK else 15
"""Of each operation."""
NEEDED = {"edit_image": ["image"], "edit_video": ["video", "window"], "extend_video": ["video"]}
"""Without which a request is refused before anything else of it is looked at."""
CREATIONS = [operation.name for operation in OPERATIONS if isinstance(operation.body, tuple)]
LARGE = [0, -1, 2**31, 2**63 - 1, 2**63, -(2**63) - 1, 10**30]
ODD = [0.0, -1.0, 1e-320, 1e-9, 1e9, 1e308, -1e308]


@pytest.fixture(scope="module")
def ruled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Studio]:
    root = tmp_path_factory.mktemp("ruled")
    engine = JudgingStudio(root, tmp_path_factory.mktemp("toy"))
    with Studio(root, AdmissionLimits(queued_jobs=None), engine=engine) as running:
        yield running


@pytest.fixture(scope="module")
def made(ruled: Studio) -> dict[str, str]:
    """The id of a finished job of each kind."""
    film = requests.post(f"{ruled.server.url}/v1/videos", json={"prompt": "x"}, timeout=30).json()["id"]
    sound = requests.post(f"{ruled.server.url}/v1/audio/generations", json={"prompt": "x"}, timeout=30).json()["id"]
    for job_id in (film, sound):
        assert ruled.server.run(ruled.desk.wait(job_id)).status == "completed"
    return {"video": film, "audio": sound}


def usual(right: list[Any], odd: list[Any]) -> Any:
    """Mostly right."""
    return st.sampled_from(right) | st.sampled_from(right) | st.sampled_from([*right, *odd])


def values() -> dict[str, Any]:
    """Of fields, by name. `@` and a name stand for a file or a job, as `filled_in` knows them."""
    whole, scale = usual([1, 2, 4, 8, 9], LARGE), usual([0, 0.25, 0.5, 1, 2.5], ODD)
    strengths = scale | st.lists(scale, max_size=3)
    picture = st.sampled_from(["@picture.png", {"id": "@video"}, "@picture.png", "@half of it"])
    clip = st.sampled_from([{"id": "@video"}, "@clip.mp4", {"id": "@video"}, "@sound.wav", {"id": "@audio"}])
    sound = st.sampled_from(["@sound.wav", {"id": "@video"}, {"id": "@audio"}, "@picture.png"])
    condition = {"frame_index": whole, "strength": scale, "crf": usual([0, 23, 51], [52, -1])}
    guidance = dict.fromkeys(("guidance_scale", "stg_scale", "modality_scale", "rescale"), scale)
    guidance |= {"stg_blocks": st.lists(usual([0, 1], [-1, 99]), max_size=3), "skip_step": whole}
    one = st.fixed_dictionaries({}, optional=guidance)
    name = st.sampled_from(["style", "style", "distilled", "none", ""])
    descending = st.lists(usual([1.0, 0.9, 0.5, 0.1, 0.0], ODD), max_size=5).map(lambda some: sorted(some)[::-1])
    sizes = usual([32, 64, 96, 128], [1, 65, 100, 4096, 10**7, *LARGE])
    return {
        "height": sizes,
        "width": sizes,
        "size": usual(["64x64", "auto", "96x32"], ["0x0", "1x99999", "99999x99999"]),
        "num_frames": usual([1, 9, 17, 25], [2, 8, 121, 10**6 * 8 + 1, *LARGE]),
        "frame_rate": usual([12, 24, 23.976, 25.0], ODD),
        "seconds": usual([1, "0.5", 0.1, "2"], [3600, 1e-9, "4"]),
        "seed": usual([0, 1, 7], LARGE),
        "num_inference_steps": usual([1, 2, 4], [1000, *LARGE]),
        "sampler": usual(list(SAMPLERS), ["magic", ""]),
        "pipeline": st.sampled_from(PIPELINES),
        "quality": st.sampled_from(["auto", "low", "hd"]),
        "guidance": st.fixed_dictionaries({}, optional={"video": one, "audio": one}),
        "images": st.lists(st.fixed_dictionaries({"image": picture}, optional=condition) | picture, max_size=3),
        "image": picture,
        "input_reference": picture,
        "strength": usual([0, 0.5, 1], []),
        "video": clip,
        "waveform": sound,
        "window": st.sampled_from([[0, 0.5], [0.25, 1.0], [0.5, 1.4]])
        | st.lists(usual([0, 0.25, 0.5, 1.0], ODD), min_size=1, max_size=3),
        "num_context_frames": usual([1, 9, 17], LARGE),
        "generate_audio": st.booleans(),
        "adapters": st.dictionaries(name, strengths, max_size=2)
        | st.lists(st.fixed_dictionaries({"name": name}, optional={"strengths": strengths}) | name, max_size=2),
        "distilled_adapter": st.fixed_dictionaries({"name": name, "strengths": strengths}),
        "enhance_prompt": st.booleans(),
        "sigmas": descending,
        "stage_2_sigmas": descending,
        "n": st.sampled_from([1, 2]),
        "output_format": st.sampled_from(["png", "webp", "jpeg"]),
        "output_compression": usual([0, 100], []),
        "negative_prompt": st.sampled_from(["", "rain", "\u0000"]),
    }


def some_of(known: dict[str, Any], needed: list[str]) -> Any:
    """Bodies of a few fields."""

    def of(names: list[str]) -> Any:
        return st.fixed_dictionaries({"prompt": st.just("x")} | {name: known[name] for name in [*needed, *names]})

    return st.lists(st.sampled_from(sorted(known)), unique=True, max_size=6).flatmap(of)


def filled_in(value: Any, words: dict[str, str]) -> Any:
    """With what is meant in the place of `@` and a name."""
    if isinstance(value, dict):
        return {key: filled_in(inner, words) for key, inner in value.items()}
    if isinstance(value, list):
        return [filled_in(inner, words) for inner in value]
    return words[value[1:]] if isinstance(value, str) and value.startswith("@") else value


def words_of(files: dict[str, bytes], made: dict[str, str]) -> dict[str, str]:
    coded = {name: base64.b64encode(data).decode() for name, data in files.items()}
    return coded | made | {"half of it": coded["picture.png"][:80]}


@pytest.mark.parametrize("name", CREATIONS)
def test_fields_that_must_fit_together_are_judged_and_never_break_anything(
    ruled: Studio, made: dict[str, str], name: str
) -> None:
    described = schemathesis.openapi.from_dict(document())
    assert isinstance(ruled.engine, JudgingStudio)
    words = words_of(ruled.engine.files, made)
    fields = named(name).body
    assert isinstance(fields, tuple)
    known = {field.name: kind for field in fields if (kind := values().get(field.name)) is not None}
    bodies = some_of(known, NEEDED.get(name, []))
    told: Counter[str] = Counter()

    @seed(1)
    @generating(NUM_EXAMPLES)
    @given(
        case=cases(described, name, GenerationMode.POSITIVE, [made["video"]]),
        body=st.none() | bodies | bodies | bodies,
    )
    def run(case: Any, body: dict[str, Any] | None) -> None:
        if body is not None:
            case.media_type, case.body = "application/json", filled_in(body, words)
            case.headers.pop("Content-Type", None)
            case.headers.pop("Idempotency-Key", None)
            if case.path_parameters:
                case.path_parameters["id"] = made["video"]
        response = case.call(ruled.server.url, timeout=60)
        case.validate_response(response, checks=CHECKS)
        told["200" if response.status_code == 200 else response.json()["error"]["code"]] += 1

    run()
    print(f"\n{name}: {dict(told)}")
    assert "internal_error" not in told
