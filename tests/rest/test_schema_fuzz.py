"""Requests that schemathesis makes of our OpenAPI document, sent to a server with a scripted engine.

Three things are watched: nothing is an unhandled error, every answer is one that the document describes, and a request
that the document allows is refused only by a rule that JSON Schema cannot say, each of which is listed in `ACROSS`.
Event streams of jobs are fuzzed apart, on jobs that have ended, since those of others have no end.

`BRAID_SOAK=1` sends thousands.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from typing import Any

import pytest
import requests
import schemathesis
from conftest import Studio
from hypothesis import HealthCheck, Phase, given, reject, seed, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from braid.rest.limits import AdmissionLimits
from braid.rest.openapi import document
from braid.rest.operations import EVENTS, OPERATIONS, Operation

pytestmark = pytest.mark.filterwarnings("ignore:Do not use the .random. module inside strategies")
"""The server draws random numbers on other threads of this process while an example is made."""
IS_SOAK = bool(os.environ.get("BRAID_SOAK"))
NUM_EXAMPLES = 150 if IS_SOAK else 3
"""Of each operation, once as the document allows and once as it does not."""
MAX_URL = 60_000
"""Longer ones are refused by the HTTP parser before they are ours."""
CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
FINISHED = {"video": "/v1/videos", "image": "/v1/images/generations", "audio": "/v1/audio/generations"}
STREAMS = [operation.name for operation in OPERATIONS if operation.media_types == (EVENTS,)]
OTHERS = [operation.name for operation in OPERATIONS if operation.name not in STREAMS]
CAN_BE_WRONG = [operation.name for operation in OPERATIONS if operation.body is not None or operation.query]
"""An id can be any text, so where there is nothing else, there is no request that the document does not allow."""

IN_FORMS = "a form has text only: what JSON is in it is not looked at by whoever makes the examples"
ACROSS = {
    r"unsupported_parameter ": "OpenAI's fields that change the answer and cannot be done here, and what is turned off",
    r"invalid_value partial_images: .* only for stream=true": "for streams only",
    r"invalid_value output_compression: output_compression is for": "for formats that compress",
    r"invalid_value seed: .* must be at most": "pictures of one request have seeds that follow each other",
    r"invalid_value (before|after): .* cannot both be given": "a page begins behind one job, or ends in front of one",
    r"invalid_value \w+: \w+ and \w+ (say the same thing|both have a picture|are both given)": "said twice",
    r"missing_required_parameter (input_reference|image|window):": "needed only where something else is (not) given",
    r"invalid_value input_reference_strength: .* no meaning beside a window": "it is for films without a window",
    r"invalid_value images: image and images": "said twice",
    r"invalid_value stream_options: .* only for stream=true": "for streams only",
    r"invalid_value top_logprobs: top_logprobs needs logprobs=true": "how many of what is not asked for",
    r"invalid_value (after|before): ": "a cursor that names no job",
    r"\w+ (seconds|guidance|images?|window|\w*adapters?|\w*sigmas|video|waveform|input_reference)\b": IN_FORMS,
    r"invalid_value \w+(\.\d+)?(\.\w+)?: there is no \w+ of job": "a job that has no such file",
    r"invalid_value \w+(\.\d+)?(\.\w+)?: job '\w+' makes": "a job of another kind",
    r"invalid_type stop_token_ids|invalid_type prompt": "token ids are written without a point",
    r"invalid_value response_format": "only text",
}
"""What a request that the document allows is refused for with 400, and why a JSON schema cannot say so."""


@pytest.fixture(scope="module")
def described() -> schemathesis.BaseSchema:
    return schemathesis.openapi.from_dict(document())


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Studio]:
    with Studio(tmp_path_factory.mktemp("fuzzed"), AdmissionLimits(queued_jobs=None)) as running:
        yield running


@pytest.fixture(scope="module")
def finished(fuzzed: Studio) -> dict[str, str]:
    """The id of a finished job of each kind."""
    jobs = {}
    for kind, url in FINISHED.items():
        answer = requests.post(fuzzed.server.url + url, json={"prompt": "x"}, timeout=30).json()
        jobs[kind] = answer["data"][0]["id"] if kind == "image" else answer["id"]
        fuzzed.server.run(fuzzed.desk.wait(jobs[kind]))
    return jobs


@schemathesis.serializer("application/x-protobuf")
def protobuf(ctx: Any, value: Any) -> bytes:
    """Bytes are sent as they are."""
    return value if isinstance(value, bytes) else str(value).encode()


def named(name: str) -> Operation:
    return next(operation for operation in OPERATIONS if operation.name == name)


@st.composite
def judged(draw: st.DrawFn, made: Any) -> Any:
    """What schemathesis makes, but for wrong forms with a file in them that it cannot judge itself."""
    try:
        return draw(made)
    except ValueError as error:
        if "Unsupported type: 'Binary'" not in str(error):
            raise
        reject()


def cases(described: schemathesis.BaseSchema, name: str, mode: GenerationMode, job_ids: list[str]) -> Any:
    """Cases of an operation; where a job is named, it is often one that there is."""
    operation = described.find_operation_by_id(name)
    made = judged(operation.as_strategy(generation_mode=mode))
    if not named(name).is_job:
        return made

    def of_job(case: Any, job_id: str | None) -> Any:
        if job_id is not None:
            case.path_parameters["id"] = job_id
        return case

    return st.builds(of_job, made, st.sampled_from([*job_ids, *job_ids, None]))


def generating(num_examples: int) -> settings:
    """Examples are made and checked, and neither kept nor made smaller."""
    return settings(
        max_examples=num_examples,
        deadline=None,
        database=None,
        phases=(Phase.generate,),
        suppress_health_check=list(HealthCheck),
    )


def each(strategy: Any, check: Any) -> None:
    """Run a check on examples: the same ones in every ordinary run."""

    @seed(0)
    @generating(NUM_EXAMPLES)
    @given(case=strategy)
    def run(case: Any) -> None:
        check(case)

    run()


@pytest.fixture(scope="module")
def session() -> Iterator[requests.Session]:
    with requests.Session() as session:
        yield session


def reason(error: dict[str, str], *, is_form: bool) -> str | None:
    """Why an allowed request was refused; None is a rule that is not listed."""
    text = f"{error['code']} {error['param']}: {error['message']}"
    for rule, why in ACROSS.items():
        if re.match(rule, text) and (why != IN_FORMS or is_form):
            return why
    return None


@pytest.mark.parametrize("name", OTHERS)
def test_what_the_document_allows_is_done_or_refused_by_a_listed_rule(
    described: Any, fuzzed: Studio, finished: dict[str, str], session: requests.Session, name: str
) -> None:
    def check(case: Any) -> None:
        response = case.call(fuzzed.server.url, session=session, timeout=30)
        case.validate_response(response, checks=CHECKS)
        if response.status_code == 400:
            error = response.json()["error"]
            is_form = "multipart" in response.request.headers.get("content-type", "")
            assert reason(error, is_form=is_form) is not None, error
        assert response.status_code not in (413, 415), response.text

    each(cases(described, name, GenerationMode.POSITIVE, list(finished.values())), check)


@pytest.mark.parametrize("name", [name for name in CAN_BE_WRONG if name not in STREAMS])
def test_what_the_document_does_not_allow_is_answered_as_described(
    described: Any, fuzzed: Studio, finished: dict[str, str], session: requests.Session, name: str
) -> None:
    def check(case: Any) -> None:
        response = case.call(fuzzed.server.url, session=session, timeout=30)
        if len(response.request.url) <= MAX_URL:
            case.validate_response(response, checks=CHECKS)

    each(cases(described, name, GenerationMode.NEGATIVE, list(finished.values())), check)


@pytest.mark.parametrize("name", STREAMS)
def test_streams_of_jobs_that_have_ended_end(
    described: Any, fuzzed: Studio, finished: dict[str, str], session: requests.Session, name: str
) -> None:
    def check(case: Any) -> None:
        response = case.call(fuzzed.server.url, session=session, timeout=30)
        case.validate_response(response, checks=[not_a_server_error, status_code_conformance, content_type_conformance])
        if response.status_code == 200:
            assert "event: done" in response.content.decode()

    each(cases(described, name, GenerationMode.POSITIVE, list(finished.values())), check)
