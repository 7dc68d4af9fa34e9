"""`braid jobs`, against a real server with a real (tiny) video model."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from braid.cli import main
from braid.errors import BraidError, InvalidRequest
from braid.job_client import JobClient, JobEvent, url_of
from braid.jobs_command import job_line, show
from braid.tests.diffusion.film_files import write_film_files
from braid.tests.test_serve_films import created, served


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    with served(write_film_files(tmp_path_factory.mktemp("films"))) as (_, client):
        yield client


def braid_jobs(client: httpx.Client, *words: str) -> int:
    return main(["jobs", "--server", str(client.base_url), *words])


def test_a_film_is_listed_followed_and_saved(
    client: httpx.Client, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    film = created(client, prompt="a red fox\nin the snow")
    assert braid_jobs(client, "follow", film, "-o", str(tmp_path / "film.mp4")) == 0
    told = capsys.readouterr()
    assert f"{film}: completed" in told.out
    assert "decode" in told.err
    assert (tmp_path / "film.mp4").read_bytes() == client.get(f"/v1/videos/{film}/content").content
    assert braid_jobs(client, "save", film, str(tmp_path / "first.png"), "--variant", "first_frame") == 0
    assert (tmp_path / "first.png").read_bytes().startswith(b"\x89PNG")
    assert braid_jobs(client, "list", "--kind", "video") == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if film in line]
    assert "completed" in line
    assert line.endswith("a red fox in the snow")


def test_a_film_is_cancelled(client: httpx.Client, capsys: pytest.CaptureFixture[str]) -> None:
    film = created(client, num_inference_steps=200)
    assert braid_jobs(client, "cancel", film) == 0
    assert braid_jobs(client, "follow", film) == 1
    assert f"{film}: cancelled" in capsys.readouterr().out


def test_what_the_server_refuses_is_said_in_its_words(
    client: httpx.Client, capsys: pytest.CaptureFixture[str]
) -> None:
    assert braid_jobs(client, "cancel", "video_0000") == 1
    assert "video_0000" in capsys.readouterr().err


def test_no_server_is_said_with_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["jobs", "--server", "http://127.0.0.1:1", "list"]) == 1
    assert "is `braid serve` running?" in capsys.readouterr().err


@pytest.mark.parametrize("job_id", ["", "video", "video_", "film_12", "video_1/../2", "video_1?x=2"])
def test_what_is_no_id_is_never_asked_for(job_id: str) -> None:
    with pytest.raises(InvalidRequest, match="is no id of a job"):
        url_of(job_id)


def test_an_address_without_a_scheme_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="http://"):
        JobClient("file:///etc/passwd")


def test_a_bar_says_where_a_job_stands_and_a_failure_why() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    out = Terminal()
    waiting = {"status": "queued", "queue_position": 2, "stage": None, "progress": 0, "eta_s": None}
    working = {"status": "in_progress", "queue_position": None, "stage": "stage_1", "progress": 50, "eta_s": 12.2}
    events = [JobEvent("progress", waiting), JobEvent("preview", {}), JobEvent("progress", working)]
    with pytest.raises(BraidError, match="the disk is full"):
        show([*events, JobEvent("error", {"error": {"message": "the disk is full"}})], out)
    assert "queued (2)" in out.getvalue()
    assert "stage_1        [############------------] 50/100  12 s left" in out.getvalue()


def test_a_long_prompt_is_cut_in_the_list() -> None:
    job = {"id": "video_1", "status": "queued", "progress": 0, "created_at": 0, "prompt": "x" * 100}
    assert job_line(job, 7200.0).endswith(f"2 h  {'x' * 57}...")
