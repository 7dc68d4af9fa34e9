"""How far a job is, and how long it takes, from stages that a test times itself."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from braid.diffusion.job import Job
from braid.diffusion.jobs.estimate import JobMeter, WorkModel, expected_bytes, stages_of
from braid.diffusion.jobs.estimate_file import keep_estimates, recall_estimates
from braid.diffusion.jobs.storage import JobStorage
from braid.diffusion.params import GenerationParams
from braid.diffusion.validation import resolve
from braid.tests.diffusion.rig import film, open_diffusion, write_files

HOUR = {"encode_prompt": 1.0, "stage_1": 60.0, "upsampled": 1.0, "stage_2": 30.0, "decode_audio": 2.0, "decode": 6.0}
"""Seconds of the stages of a film."""


class Work:
    """A clock that stages move on; others' work passes on it, too."""

    def __init__(self, others: float = 1.0) -> None:
        self.own_ms = 0.0
        self.now = 0.0
        self._others = others

    def do(self, seconds: float) -> None:
        self.own_ms += 1000 * seconds
        self.now += seconds * self._others


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Job]:
    diffusion = open_diffusion(write_files(tmp_path_factory.mktemp("toy")))
    facts = replace(diffusion.facts, has_language_model=True)
    yield resolve(film(num_inference_steps=10), facts)
    diffusion.close()


def made(job: Job, model: WorkModel, work: Work, until: str = "write_file") -> JobMeter:
    """A job's run, up to the begin of a stage."""
    meter = JobMeter(job, model, lambda: work.own_ms, lambda: work.now)
    for name, seconds in HOUR.items():
        if name == until:
            break
        for step in range(10):
            meter.hear(name, step, 10)
            work.do(seconds / 10)
    else:
        meter.hear("write_file", 0, 1)
    return meter


def test_nothing_is_estimated_before_every_kind_of_stage_was_seen(job: Job) -> None:
    model = WorkModel()
    assert model.seconds(job) is None
    made(job, model, Work(), until="decode").end()
    assert model.seconds(job) is None
    made(job, model, Work()).end()
    seconds = model.seconds(job)
    assert seconds == pytest.approx(sum(HOUR.values()), rel=0.25)


def test_what_others_do_meanwhile_is_not_counted_as_a_jobs_own(job: Job) -> None:
    alone, beside = WorkModel(), WorkModel()
    made(job, alone, Work()).end()
    made(job, beside, Work(others=3.0)).end()
    assert alone.seconds(job) == beside.seconds(job)


def test_a_stage_that_was_gone_on_with_teaches_nothing(job: Job) -> None:
    model, work = WorkModel(), Work()
    made(job, model, work).end()
    before = model.seconds(job)
    meter = JobMeter(job, model, lambda: work.own_ms, lambda: work.now)
    meter.hear("stage_2", 9, 10)
    work.do(0.001)
    meter.hear("decode_audio", 0, 1)
    assert model.seconds(job) == before


def test_progress_only_rises_and_the_rest_follows_from_the_pace(job: Job) -> None:
    model = WorkModel()
    made(job, model, Work()).end()
    work = Work(others=2.0)
    meter = made(job, model, work, until="stage_2")
    meter.hear("stage_2", 0, 10)
    assert 40 < meter.percent < 80
    left_s = sum(HOUR[name] for name in ("stage_2", "decode_audio", "decode"))
    assert meter.eta_s == pytest.approx(2 * left_s, rel=0.5)
    percent = meter.percent
    meter.hear("encode_prompt", 0, 1)
    assert meter.percent == percent
    meter.hear("write_file", 0, 1)
    assert meter.percent == 99


def test_the_rest_of_a_job_is_that_of_others_before_it_has_a_pace_of_its_own(job: Job) -> None:
    model, work = WorkModel(), Work()
    made(job, model, work)
    expected_s = model.seconds(job)
    assert expected_s is not None
    meter = JobMeter(job, model, lambda: work.own_ms, lambda: work.now)
    meter.hear("encode_prompt", 0, 1)
    assert meter.eta_s == pytest.approx(expected_s, rel=0.1)
    work.now += 0.001  # the prompt was known
    meter.hear("stage_1", 0, 8)
    assert meter.eta_s == pytest.approx(expected_s, rel=0.6)


def test_there_is_no_rest_before_anything_was_done(job: Job) -> None:
    meter = JobMeter(job, WorkModel(), lambda: 0.0)
    assert meter.eta_s is None
    meter.hear("encode_prompt", 0, 1)
    assert meter.eta_s is None


def test_a_longer_film_has_more_of_everything(job: Job) -> None:
    longer = replace(job, num_frames=17, params=GenerationParams())
    assert expected_bytes(longer) > expected_bytes(job)
    for one, other in zip(stages_of(job)[1:], stages_of(longer)[1:], strict=True):
        assert other.units > one.units


def test_what_was_learnt_is_known_to_the_next_engine_of_the_same_model(
    job: Job, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    facts = {"model": {"name": "toy"}, "num_threads": 2}
    model = WorkModel()
    with JobStorage.open(tmp_path, seat="engine") as storage:
        recall_estimates(storage.directory, facts, model)
        assert model.seconds(job) is None
        made(job, model, Work()).end()
        keep_estimates(storage.directory, facts, model)
    with JobStorage.open(tmp_path, seat="engine") as storage:
        again, other = WorkModel(), WorkModel()
        recall_estimates(storage.directory, facts, again)
        assert again.seconds(job) == model.seconds(job)
        recall_estimates(storage.directory, facts | {"num_threads": 4}, other)
        assert other.seconds(job) is None
        storage.directory.keep("estimates", b"{")
        recall_estimates(storage.directory, facts, other)
        assert other.seconds(job) is None
    assert "cannot be read" in caplog.text
