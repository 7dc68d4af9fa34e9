"""Jobs of a toy checkpoint on the real scheduler: the same bits alone, under load, preempted and restarted."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from braid.diffusion.job import Job
from braid.diffusion.noise import RecordedNoise
from braid.diffusion.params import AdapterChoice, GenerationParams
from braid.diffusion.prompts import LanguageModelFacts
from braid.errors import BraidError, CannotFit
from braid.llm_core.core import Offer, Request, RequestClass, StepResult
from braid.llm_core.encode import EncodeParams
from braid.llm_core.engine.failure import failed
from braid.llm_core.engine.messages import Encoded, Finished, Usage
from braid.llm_core.memory.arena import Arena
from braid.llm_core.pipeline import Progressed
from braid.tests.diffusion.rig import BUDGET_BYTES, World, clip, digest, film, picture, sound, write_files


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_files(tmp_path_factory.mktemp("toy"))


@pytest.fixture(scope="module")
def alone(folder: Path) -> dict[int, str]:
    """What films give when nobody else is there."""
    world = World(folder)
    found = {}
    for seed in (1, 2):
        world.submit(str(seed), small(seed))
        world.run()
        found[seed] = digest(world.result(str(seed)))
    assert found[1] != found[2]
    return found


def small(seed: int, **changes: Any) -> GenerationParams:
    """A film of which only the latents are wanted; the second has another shape and other adapters."""
    if seed == 2:
        changes = {"num_frames": 17, "adapters": (AdapterChoice(name="style", strengths=(0.5, -1.0)),)} | changes
    return film(seed, output_type="latents", **changes)


class Chat:
    """Somebody who always wants the next token."""

    name = "chat"

    def __init__(self) -> None:
        self.requests: dict[str, Request] = {}
        self.left: dict[str, int] = {}

    def accepts(self, params: Any) -> bool:
        return isinstance(params, int)

    def admit(self, request: Request, now: float) -> None:
        self.requests[request.id], self.left[request.id] = request, request.params

    def offers(self, now: float) -> Iterable[Offer]:
        return [Offer(i, self.name, "decode", "k", RequestClass.INTERACTIVE, now + 0.001, 0.1) for i in self.requests]

    def run(self, offers: Sequence[Offer], budget_ms: float) -> StepResult:
        torch.randn(64, 64) @ torch.randn(64, 64)  # other work between, with the global generator too
        for offer in offers:
            self.left[offer.request_id] -= 1
            if not self.left[offer.request_id]:
                self.requests.pop(offer.request_id).sink(Finished(offer.request_id, Usage()))
        return StepResult(tuple(offer.request_id for offer in offers), "decode", len(offers), 0.1)

    def cancel(self, request_id: str, error: BraidError) -> bool:
        request = self.requests.pop(request_id, None)
        if request is not None:
            request.sink(failed(request_id, error))
        return request is not None


def test_jobs_beside_chat_and_each_other_give_the_same_bits(folder: Path, alone: dict[int, str]) -> None:
    world = World(folder, Chat())
    for seed in (1, 2):
        world.submit(str(seed), small(seed))
    world.submit("chat", 400, RequestClass.INTERACTIVE)
    world.run()
    assert {seed: digest(world.result(str(seed))) for seed in (1, 2)} == alone
    owners = [entry.request_ids[0] for entry in world.scheduler.journal.since()]
    first_end = min(max(i for i, owner in enumerate(owners) if owner == name) for name in ("1", "2"))
    assert {"1", "2", "chat"} <= set(owners[:first_end])  # they did run in between each other


def test_jobs_that_change_places_at_every_possible_point_give_the_same_bits(
    folder: Path, alone: dict[int, str]
) -> None:
    """Piece by piece by turns: every point of one job is a point where it was preempted for another."""
    world = World(folder)
    workload = world.diffusion.workload
    for seed in (1, 2):
        world.submit(str(seed), small(seed))
    world.scheduler._open_inbox()
    turn, changes, last = 0, 0, ""
    while offers := sorted(workload.offers(0.0), key=lambda offer: offer.request_id):
        offer = offers[turn % len(offers)]
        changes += offer.request_id != last
        last = offer.request_id
        workload.run([offer], 1e9)
        turn += 1
    assert {seed: digest(world.result(str(seed))) for seed in (1, 2)} == alone
    assert changes > 300


CHILD = """
import json, sys
from pathlib import Path
from braid.diffusion.state import PipelineState
from braid.tests.diffusion.rig import BUDGET_BYTES, World, digest
from braid.tests.diffusion.test_workload import small
folder, states = Path(sys.argv[1]), Path(sys.argv[2])
found = []
world = World(folder)
for i, path in enumerate(sorted(states.iterdir())):
    world.go_on(str(i), small(1), PipelineState.from_bytes(path.read_bytes()))
    world.run()
    found.append((digest(world.result(str(i))), world.kinds().count("denoise")))
print(json.dumps(found))
"""


def test_a_job_restarted_in_a_fresh_process_from_every_checkpoint_gives_the_same_bits(
    folder: Path, alone: dict[int, str], tmp_path: Path
) -> None:
    world = World(folder)
    world.submit("1", small(1))
    world.run()
    states = world.states["1"]
    assert len(states) == 1 + (1 + 2 + 1) + 1 + (1 + 3 + 1)
    for i, state in enumerate(states):
        (tmp_path / f"{i:03}").write_bytes(state.to_bytes())
    child = subprocess.run(
        [sys.executable, "-c", CHILD, str(folder), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert child.returncode == 0, child.stderr
    found = json.loads(child.stdout.splitlines()[-1])
    assert [bits for bits, _ in found] == [alone[1]] * len(states)
    pieces = [b - a for a, b in pairwise([0, *(total for _, total in found)])]
    assert pieces == sorted(pieces, reverse=True) and pieces[-1] == 0  # finished work is not done again


@pytest.mark.parametrize(
    "changes",
    [
        {"images": (picture(), picture(6, 8, strength=0.7))},
        {"pipeline": "a2vid", "waveform": sound()},
        {"pipeline": "retake", "video": clip(), "waveform": sound(), "window": (0.1, 0.3)},
        {"pipeline": "one_stage", "num_frames": 1},
        {"pipeline": "text_to_audio"},
    ],
    ids=["pictures", "a2vid", "retake", "picture", "sound"],
)
def test_a_whole_job_gives_pictures_and_sound(folder: Path, changes: dict[str, Any]) -> None:
    world = World(folder)
    result = world.generate(film(**changes))
    has_video, has_sound = changes.get("pipeline") != "text_to_audio", changes.get("num_frames") != 1
    assert (result.frames is not None, result.waveform is not None) == (has_video, has_sound)
    if result.frames is not None:
        assert result.frames.shape == (changes.get("num_frames", 9), 64, 64, 3)
        assert result.frames.dtype == torch.uint8
        assert len(result.frames.unique()) > 10
    if result.waveform is not None and changes.get("pipeline") != "a2vid":
        assert result.waveform.sample_rate == 48_000
        assert bool(torch.isfinite(result.waveform.samples).all())
    assert (result.seed, result.frame_rate) == (1, 24.0)
    assert result.timings.keys() >= {"encode_prompt", "stage_1"}
    told = [event.stage for event in world.events["film"] if isinstance(event, Progressed)]
    assert list(dict.fromkeys(told)) == list(result.timings)
    world.diffusion.close()
    assert world.arena.usage().by_kind == {}


def test_adapters_change_the_film_and_the_base_stays_as_it_was(folder: Path) -> None:
    world = World(folder)
    plain = small(1, pipeline="one_stage")
    styled = small(1, pipeline="one_stage", adapters=(AdapterChoice(name="style", strengths=(0.7,)),))
    for name, params in (("before", plain), ("with", styled), ("after", plain), ("again", styled)):
        world.submit(name, params)
        world.run()
    bits = {name: digest(world.result(name)) for name in ("before", "with", "after", "again")}
    assert bits["before"] == bits["after"] != bits["with"] == bits["again"]


def test_jobs_that_do_not_fit_beside_each_other_take_turns(folder: Path, alone: dict[int, str]) -> None:
    needed_bytes = []
    for seed in (1, 2):
        world = World(folder)
        world.submit(str(seed), small(seed))
        world.run()
        needed_bytes.append(world.arena.usage().high_water_bytes)
    arena = Arena(BUDGET_BYTES)
    arena.lease("something else", BUDGET_BYTES - max(needed_bytes), kind="ballast", permanent=True)
    world = World(folder, arena=arena)
    for seed in (1, 2):
        world.submit(str(seed), small(seed))
    world.run()
    assert {seed: digest(world.result(str(seed))) for seed in (1, 2)} == alone


def test_a_film_that_never_fits_is_refused_with_the_numbers_and_what_would(folder: Path) -> None:
    world = World(folder, arena=Arena(48 << 20))
    with pytest.raises(CannotFit, match=r"num_frames=\d+ would fit") as caught:
        world.diffusion.resolve(film(height=1024, width=1024, num_frames=121))
    assert caught.value.needed_bytes > caught.value.budget_bytes
    fits = int(str(caught.value).split("num_frames=")[2].split()[0])
    world.diffusion.resolve(film(height=1024, width=1024, num_frames=fits))
    with pytest.raises(CannotFit):
        world.diffusion.resolve(film(height=1024, width=1024, num_frames=fits + 8))


def test_the_server_goes_on_after_a_job_that_fails(folder: Path, alone: dict[int, str]) -> None:
    world = World(folder)
    world.submit("1", small(1))
    world.submit("bad", noiseless(world.diffusion.resolve(small(1))))
    world.run()
    assert world.error("bad").status == 400
    assert digest(world.result("1")) == alone[1]
    world.submit("again", small(1))
    world.run()
    assert digest(world.result("again")) == alone[1]


def noiseless(job: Job) -> Job:
    """A job whose given noise ends too early: found only in the middle of its work."""
    shapes = [(1, job.small_grid.num_tokens, 8), (1, job.num_audio_tokens, 8)]
    draws = [torch.zeros(shape) for shape in shapes]
    return replace(job, params=replace(job.params, noise=lambda: RecordedNoise(draws)))


def test_a_cancelled_job_gives_its_memory_back(folder: Path) -> None:
    world = World(folder)
    world.submit("1", small(1))
    while "workspace" not in world.arena.usage().by_kind:
        assert world.scheduler.run_once()
    world.scheduler.cancel("1")
    world.run()
    assert world.error("1").code == "request_cancelled"
    assert "workspace" not in world.arena.usage().by_kind


class Encoder(Chat):
    """A language model of the toy's width: hidden states of a prompt are its token ids, over and over."""

    name = "language"

    def __init__(self) -> None:
        super().__init__()
        self.encoded: list[tuple[int, ...]] = []

    def accepts(self, params: Any) -> bool:
        return isinstance(params, EncodeParams)

    def run(self, offers: Sequence[Offer], budget_ms: float) -> StepResult:
        for offer in offers:
            request = self.requests.pop(offer.request_id)
            (ids,), length = request.params.prompt_token_ids, request.params.length
            self.encoded.append(ids)
            hidden = torch.zeros(1, length, 576, len(request.params.layers))
            hidden[0, length - len(ids) :] = torch.tensor(ids).float()[:, None, None] / 300
            hidden += torch.arange(576)[:, None] / 576
            mask = torch.zeros(1, length, dtype=torch.int64)
            mask[0, length - len(ids) :] = 1
            request.sink(Encoded(request.id, hidden, mask))
        return StepResult(tuple(offer.request_id for offer in offers), "prefill", 1, 0.1)


class Letters:
    """A tokenizer: a letter is its code point."""

    bos_token_id = 1
    adds_bos = True

    def encode(self, text: str, *, add_special_tokens: bool, parse_special: bool = True) -> list[int]:
        return [ord(letter) for letter in text]


def test_prompts_go_through_the_language_model_once_each(folder: Path) -> None:
    language = Encoder()
    world = World(folder, language, language=LanguageModelFacts(Letters(), None, 64))  # type: ignore[arg-type]
    words = {"prompt_embeds": None, "negative_prompt_embeds": None, "negative_prompt": "b"}
    for name, prompt in (("1", "  ab "), ("2", "ab"), ("3", "abc")):
        world.submit(name, small(1, prompt=prompt, **words))
        world.run()
    assert language.encoded == [(1, 97, 98), (1, 98), (1, 97, 98), (1, 97, 98, 99)]
    bits = [digest(world.result(name)) for name in ("1", "2", "3")]
    assert bits[0] == bits[1] != bits[2]
