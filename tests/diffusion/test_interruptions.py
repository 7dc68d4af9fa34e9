"""Jobs that end in the middle: cancelled at any piece, failed in any operation, or with numbers that are none."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
import torch

from braid.diffusion.denoising import Denoiser
from braid.diffusion.media_operations import MediaOperations
from braid.diffusion.models.ltx2.video_vae import VideoDecoder
from braid.diffusion.models.ltx2.vocoder import Vocoder
from braid.diffusion.operations import (
    DecodeAudio,
    DecodeFrames,
    Denoise,
    EncodeAudio,
    EncodeImage,
    EncodeVideo,
    UpsampleLatents,
)
from braid.diffusion.params import GenerationParams
from braid.tests.diffusion.rig import World, clip, digest, film, picture, sound, write_files

JOBS = {
    "two stages": film(images=(picture(),), num_inference_steps=1, sampler="euler"),
    "a retake": film(pipeline="retake", video=clip(), waveform=sound(), window=(0.1, 0.2), num_inference_steps=1),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_files(tmp_path_factory.mktemp("toy"))


def held(world: World) -> dict[str, int]:
    """What is leased and nobody can take back: more after a job than before it is lost."""
    usage, reclaimable = world.arena.usage(), world.arena.reclaimable_bytes()
    return {"workspace": usage.by_kind.get("workspace", 0), "lasting": usage.leased_bytes - reclaimable}


def cancel_at(world: World, params: GenerationParams, place: int) -> None:
    """After so many pieces of a job."""
    world.submit("cancelled", params)
    for _ in range(place):
        assert world.scheduler.run_once()
    world.scheduler.cancel("cancelled")
    world.run()
    assert world.error("cancelled").code == "request_cancelled"


@pytest.mark.parametrize("name", JOBS)
def test_a_job_cancelled_in_any_kind_of_piece_gives_its_memory_back(folder: Path, name: str) -> None:
    """After the first piece of each kind; of those which only a first job has, in a world of its own."""
    world = World(folder)
    world.generate(JOBS[name])
    cold = world.kinds()
    world.generate(JOBS[name])
    before, warm = held(world), world.kinds()[len(cold) :]
    for kind in dict.fromkeys(warm):
        cancel_at(world, JOBS[name], min(warm.index(kind) + 1, len(warm) - 1))
        assert held(world) == before, kind
    world.diffusion.close()
    assert world.arena.usage().by_kind == {}
    for kind in set(cold) - set(warm):
        other = World(folder)
        cancel_at(other, JOBS[name], cold.index(kind) + 1)
        assert held(other)["workspace"] == 0, kind
        other.diffusion.close()
        assert other.arena.usage().by_kind == {}, kind


class Broken(Exception):
    """What nobody expects."""


OPERATIONS = {
    "two stages": (EncodeImage, Denoise, UpsampleLatents, DecodeFrames, DecodeAudio),
    "a retake": (EncodeVideo, EncodeAudio),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_that_fails_ends_its_job_alone(
    folder: Path, name: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """After its first piece, when it holds all that it needs."""
    world = World(folder)
    first, before = world.generate(JOBS[name]), held(world)
    for operation in OPERATIONS[name]:
        with monkeypatch.context() as patch:
            break_after_first_piece(world, operation, patch)
            world.submit("failed", JOBS[name])
            world.run()
        assert world.error("failed").status == 500
        assert f"{operation.__name__} on the way" in caplog.text
        assert held(world) == before, operation
    assert digest(world.generate(JOBS[name])) == digest(first)


def break_after_first_piece(world: World, operation: type, patch: pytest.MonkeyPatch) -> None:
    """Of the work of one operation; there is one job, so nothing else runs meanwhile."""
    handler = world.diffusion.workload._handlers[operation]
    owner, method = (Denoiser, "_pass") if operation is Denoise else (MediaOperations, "_run")
    run, run_part = handler._run, getattr(owner, method)  # type: ignore[union-attr]

    def broken(self: Any, *args: Any) -> Generator[Any, Any, Any]:
        yield next(run_part(self, *args))
        raise Broken(f"{operation.__name__} on the way")

    def run_broken(given: Any) -> Generator[Any, Any, Any]:
        patch.setattr(owner, method, broken)
        try:
            return (yield from run(given))
        finally:
            patch.setattr(owner, method, run_part)

    patch.setattr(handler, "_run", run_broken)


def test_latents_that_become_nan_end_the_job_at_the_end_of_their_stage(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(folder)
    before = held(world)
    forward = Denoiser._pass

    def with_nan(self: Denoiser, transformer: Any, *arguments: Any) -> Generator[Any, Any, Any]:
        found = yield from forward(self, transformer, *arguments)
        found.video[0, 0, 0] = float("nan")
        return found

    monkeypatch.setattr(Denoiser, "_pass", with_nan)
    world.submit("film", film(num_inference_steps=1))
    world.run()
    error = world.error("film")
    assert (error.code, error.status) == ("not_finite", 500)
    assert "video latents of stage_1" in error.message
    assert "upsample" not in world.kinds()
    assert held(world)["workspace"] == before["workspace"]


@pytest.mark.parametrize(
    ("network", "method", "params"),
    [
        (VideoDecoder, "_run", film(pipeline="one_stage", num_frames=1)),
        (Vocoder, "_run", film(pipeline="text_to_audio")),
    ],
    ids=["pixels", "sound"],
)
def test_a_decoder_that_gives_nan_is_no_black_film_and_no_silence(
    folder: Path, network: type, method: str, params: GenerationParams, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(folder)
    make = getattr(network, method)

    def spoilt(self: Any, *args: Any) -> Any:
        found = make(self, *args)
        return found * float("nan") if isinstance(found, torch.Tensor) else spoilt_pieces(found)

    def spoilt_pieces(pieces: Any) -> Generator[Any, Any, Any]:
        return (yield from pieces) * float("nan")

    monkeypatch.setattr(network, method, spoilt)
    world.submit("film", params)
    world.run()
    assert world.error("film").code == "not_finite"
