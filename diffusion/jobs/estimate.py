"""How much work a job is: what it may take on disk, how long, and how far it is; learnt from the stages that ran.

A job's own milliseconds are those of its steps on the device, whatever ran between them.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from braid.diffusion.guidance import passes_needed
from braid.diffusion.job import Job
from braid.diffusion.pipelines.sampler_choice import UNCONDITIONAL_SAMPLERS
from braid.diffusion.schedules import DISTILLED_SIGMAS, STAGE_2_SIGMAS
from braid.llm_core.scheduler.cost import CostModel

_USUAL = {"encode_prompt": 200.0, "denoise": 1.0, "upsampled": 0.2, "decode": 0.5, "decode_audio": 1.0}
"""What a unit of each kind of stage weighs before any was measured; only their ratios mean something."""
_LAST_STAGE = "write_file"
_TRUST_IN_OTHERS = 0.1
"""The pace of other jobs counts as much as this share of the job at its own pace."""
_STATE_TENSORS = 12
"""Tensors of the size of the latents in a state, at most: of the stage under way, its sampler, and finished ones."""
_NUM_CHECKPOINTS = 3
"""Two that are kept, and one that is being written."""
_FILM_BYTES_A_PIXEL = 0.25
_EMBED_TOKENS, _EMBED_WIDTH = 1024, 8192
_FIXED_BYTES = 1 << 20
_NUM_RECALLED = 32
"""Of each kind of stage."""
Observation = tuple[float, float]
"""Units of work, and the milliseconds that they took."""


@dataclass(frozen=True, slots=True)
class StageWork:
    """A stage of a job, by the name in its progress."""

    name: str
    kind: str
    """What it is learnt under."""
    units: float


def stages_of(job: Job) -> tuple[StageWork, ...]:
    """In the order in which they run; what is not named costs next to nothing."""
    is_two_stage = len(job.adapters) > 1
    stages = [StageWork("encode_prompt", "encode_prompt", 1.0), _first_stage(job, is_two_stage=is_two_stage)]
    if is_two_stage:
        num_steps = len(job.stage_2_sigmas or STAGE_2_SIGMAS) - 1
        stages.append(StageWork("upsampled", "upsampled", float(job.small_grid.num_tokens)))
        stages.append(StageWork("stage_2", "denoise", num_steps * _evaluations(job) * _num_tokens(job, is_small=False)))
    if job.has_audio:
        stages.append(StageWork("decode_audio", "decode_audio", float(job.num_audio_tokens)))
    if job.has_video:
        stages.append(StageWork("decode", "decode", float(job.grid().num_tokens)))
    return tuple(stages)


def _first_stage(job: Job, *, is_two_stage: bool) -> StageWork:
    if job.sigmas is not None:
        num_steps = len(job.sigmas) - 1
    else:
        num_steps = len(DISTILLED_SIGMAS) - 1 if job.pipeline == "distilled" else job.num_inference_steps
    num_passes = 1
    if job.pipeline != "distilled":
        needs_unconditional = job.sampler in UNCONDITIONAL_SAMPLERS
        num_passes = len(passes_needed(job.guidance, needs_unconditional=needs_unconditional))
    units = num_steps * _evaluations(job) * num_passes * _num_tokens(job, is_small=is_two_stage)
    return StageWork("stage_1", "denoise", float(units))


def _evaluations(job: Job) -> int:
    """Of the model in one step."""
    return 2 if job.sampler.startswith("res_2s") else 1


def _num_tokens(job: Job, *, is_small: bool) -> float:
    num_tokens = job.num_audio_tokens / 4 if job.has_audio else 0.0  # its stream is a few times narrower
    if job.has_video:
        num_tokens += (job.small_grid if is_small else job.grid()).num_tokens
    return max(num_tokens, 1.0)


def expected_bytes(job: Job) -> int:
    """What checkpoints and results may take on disk together."""
    pixels = job.num_frames * job.height * job.width if job.has_video else 0
    samples = int(job.num_frames / job.frame_rate * job.geometry.output_sample_rate) * 2 if job.has_audio else 0
    latents = 0
    if job.has_video:
        latents += job.grid().num_tokens * job.geometry.video.num_channels
    if job.has_audio:
        latents += job.num_audio_tokens * job.geometry.audio.token_width
    state = 4 * (_STATE_TENSORS * latents + 2 * _EMBED_TOKENS * _EMBED_WIDTH)
    results = int(pixels * _FILM_BYTES_A_PIXEL) + 2 * samples + (3 * job.height * job.width if job.has_video else 0)
    return _NUM_CHECKPOINTS * state + results + _FIXED_BYTES


class WorkModel:
    """What stages take, learnt while jobs run; several threads may use it."""

    def __init__(self) -> None:
        self._costs = CostModel()
        self._seen: dict[str, deque[Observation]] = {}
        self._lock = threading.Lock()

    def observe(self, stage: StageWork, ms: float) -> None:
        """Learn what a whole stage took."""
        self._learn(stage.kind, stage.units, ms)

    def recall(self, seen: Mapping[str, Sequence[Observation]]) -> None:
        """Learn what an earlier process did."""
        for kind, observations in seen.items():
            for units, ms in observations:
                self._learn(kind, units, ms)

    def newest(self) -> dict[str, list[Observation]]:
        """What was learnt last, for `recall`."""
        with self._lock:
            return {kind: list(observations) for kind, observations in self._seen.items()}

    def _learn(self, kind: str, units: float, ms: float) -> None:
        with self._lock:
            self._seen.setdefault(kind, deque(maxlen=_NUM_RECALLED)).append((units, ms))
            self._costs.observe(kind, (1.0, units), ms)

    def weights(self, job: Job) -> dict[str, float]:
        """Of its stages, by name: milliseconds where all of them are known, else a guess of their ratios."""
        stages = stages_of(job)
        if self._knows(stages):
            with self._lock:
                return {stage.name: self._costs.predict(stage.kind, (1.0, stage.units)) for stage in stages}
        return {stage.name: _USUAL[stage.kind] * stage.units for stage in stages}

    def seconds(self, job: Job) -> float | None:
        """Of all stages together, alone on the device; None before such stages were measured."""
        return sum(self.weights(job).values()) / 1000 if self._knows(stages_of(job)) else None

    def _knows(self, stages: tuple[StageWork, ...]) -> bool:
        return all(stage.kind in self._seen for stage in stages)


class JobMeter:
    """How far one run of a job is.

    Args:
        own_ms: what its steps have taken since it was submitted.
    """

    def __init__(
        self,
        job: Job,
        model: WorkModel,
        own_ms: Callable[[], float],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._stages = {stage.name: stage for stage in stages_of(job)}
        self._weights = model.weights(job)
        self._expected_s = model.seconds(job)
        self._model = model
        self._own_ms = own_ms
        self._clock = clock
        self._stage = ""
        self._stage_began_ms = 0.0
        self._is_whole = False
        """The stage under way was begun in this run, not gone on with."""
        self._began_s: float | None = None
        self._began_at = 0.0
        self._fraction = 0.0

    def hear(self, stage: str, step: int, num_steps: int) -> None:
        """Take note of a `Progress`."""
        if stage != self._stage:
            self._learn()
            self._stage, self._stage_began_ms, self._is_whole = stage, self._own_ms(), step == 0
        self._fraction = max(self._fraction, self._fraction_at(stage, step, num_steps))
        if self._began_s is None:
            self._began_s, self._began_at = self._clock(), self._fraction

    @property
    def percent(self) -> int:
        return min(99, int(self._fraction * 100))

    @property
    def eta_s(self) -> float | None:
        """If it goes on as it did, or at first as others did; None before there is something to go by.

        The first hundredths are no measure: a prompt that is known already is encoded in no time.
        """
        if self._began_s is None:
            return None
        done, seconds = self._fraction - self._began_at, self._clock() - self._began_s
        if self._expected_s is not None:
            done, seconds = done + _TRUST_IN_OTHERS, seconds + _TRUST_IN_OTHERS * self._expected_s
        elif done < 0.01:
            return None
        return seconds * (1 - self._fraction) / done

    def end(self) -> None:
        """The job is done: its last stage is over."""
        self._learn()

    def _learn(self) -> None:
        stage = self._stages.get(self._stage)
        if stage is not None and self._is_whole:
            self._model.observe(stage, self._own_ms() - self._stage_began_ms)

    def _fraction_at(self, stage: str, step: int, num_steps: int) -> float:
        """Stages without a weight cost next to nothing."""
        if stage == _LAST_STAGE:
            return 1.0
        if stage not in self._weights:
            return self._fraction
        total = sum(self._weights.values())
        before = 0.0
        for name, weight in self._weights.items():
            if name == stage:
                return (before + weight * step / max(num_steps, 1)) / total
            before += weight
        raise AssertionError(stage)
