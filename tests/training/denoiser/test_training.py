"""Steps go down the gradient, tasks hold what they give, and a later run goes on from what was saved."""

from __future__ import annotations

import dataclasses
import json
import random

import pytest
import torch

from braid.diffusion.latents import AudioVideo, patchify_video
from braid.diffusion.schedules import STAGE_2_SIGMAS
from braid.tests.training.denoiser.conftest import CPU, SHAPE
from braid.training.autoencoders.evaluation import open_autoencoders
from braid.training.autoencoders.run import Log
from braid.training.autoencoders.trainee import StepBudget
from braid.training.denoiser import samples, tasks
from braid.training.denoiser.__main__ import show
from braid.training.denoiser.batches import DRAWN_AT_ONCE, BatchKind, BatchMaker
from braid.training.denoiser.latent_pools import FRAME_RATE, LatentEncoder, PoolPlan, make_pool, sounds_of
from braid.training.denoiser.noise_levels import draw_refining_sigmas, draw_sigmas
from braid.training.denoiser.optimisation import rate_share
from braid.training.denoiser.shards import NUM_SHARDS, read_shards
from braid.training.denoiser.training_run import KINDS, Recipe, TrainingRun
from braid.training.world.judging import untrained_prompts
from braid.training.world.scene import sample_scene
from braid.training.world.sound import render_sound

KIND = BatchKind("small", 16, 17, 8, 1.0)
RECIPE = Recipe(shape=SHAPE, kinds=(KIND,), dtype=torch.float32, learning_rate=0.1)


@pytest.fixture
def run(material, tmp_path):
    return TrainingRun(RECIPE, material, CPU, Log(tmp_path / "log.jsonl"))


@pytest.mark.parametrize("form", ["mixed", "last_frame", "silent", "picture", "sound"])
def test_steps_lower_the_loss_of_every_form_of_batch(run, form):
    kind = dataclasses.replace(KIND, form=form)
    batch = run.batches.draw(kind)
    before = float(run.loss(batch).detach())
    for _ in range(8):
        run.weights.step(run.loss(batch), progress=0.0)
    assert float(run.loss(batch).detach()) < before - 0.005


def test_a_later_run_goes_on_from_the_averages_that_were_saved(run, material, tmp_path):
    run.train(StepBudget(3), tmp_path)
    saved = read_shards(tmp_path)
    assert saved.num_steps == 3 and saved.shape == run.shape
    later = TrainingRun(RECIPE, material, CPU, run.log, saved=saved)
    assert later.num_steps == 3
    assert later.weights.working.keys() == run.weights.averages.keys()
    for name, value in later.weights.working.items():
        assert torch.equal(value.detach(), run.weights.averages[name].bfloat16().float()), name
    batch = later.batches.draw(KIND)
    again = TrainingRun(RECIPE, material, CPU, run.log, saved=saved)
    assert torch.equal(later.loss(batch), again.loss(again.batches.draw(KIND)))
    later.train(StepBudget(2), tmp_path)
    assert read_shards(tmp_path).num_steps == 5


def test_shards_are_of_about_equal_size(run, tmp_path):
    run.save(tmp_path)
    sizes = [path.stat().st_size for path in sorted(tmp_path.glob("denoiser-*.safetensors"))]
    assert len(sizes) == NUM_SHARDS and max(sizes) < 1.5 * min(sizes)


def test_losses_are_logged_by_stream_and_noise_level(run, tmp_path, monkeypatch):
    monkeypatch.setattr("braid.training.denoiser.training_run.LOG_EVERY", 2)
    run.train(StepBudget(2), tmp_path)
    line = json.loads((tmp_path / "log.jsonl").read_text().splitlines()[-1])
    assert line["step"] == 2 and 0.3 < line["video"] < 3 and 0.3 < line["audio"] < 3
    assert len(line["video_by_sigma"]) == 10


def clips(pools) -> tasks.Clips:
    pool = pools[16, 17]
    from braid.diffusion.positions import VideoGrid

    return tasks.Clips(pool.video, pool.audio, pool.last, VideoGrid(*pool.video.shape[2:], 8, 8, 8))


@pytest.mark.parametrize(
    ("task", "held"),
    [
        (tasks.free, (0, 0)), (tasks.first_frame, (4, 0)), (tasks.given_sound, (0, 18)), (tasks.given_film, (12, 0)),
        (tasks.last_frame, None), (tasks.prefix, None), (tasks.window, None),
    ],
)  # fmt: skip
def test_a_task_holds_true_tokens_and_leaves_some_free(pools, task, held):
    given = clips(pools)
    streams = task(given, torch.Generator().manual_seed(2))
    masks = streams.map(lambda state: (state.denoise_mask == 0)[0].sum().item())
    if held is not None:
        assert (masks.video, masks.audio) == held
    else:
        assert masks.video > 0
    truth = tasks.free(given, torch.Generator())
    assert torch.equal(streams.video.clean_latents[:, :12], truth.video.clean_latents)
    assert torch.equal(streams.audio.clean_latents, truth.audio.clean_latents)
    assert any(bool((state.denoise_mask > 0).any()) for state in streams.present())


@pytest.mark.parametrize("form", ["mixed", "last_frame", "silent", "picture"])
def test_held_tokens_are_seen_clean_and_free_ones_noised(pools, form):
    maker = BatchMaker((KIND,), pools, torch.Generator().manual_seed(1))
    kind = dataclasses.replace(KIND, form=form, num_clips=40)
    batch = maker.draw(kind)
    for state in batch.streams.present():
        clean = state.latents.float() - state.sigma[:, None, None] * state.target.float()
        is_held = ~state.is_free[..., 0]
        pool = pools[16, 17]
        known = torch.cat([pool.video.flatten(2).transpose(1, 2), pool.last.flatten(2).transpose(1, 2)], 1)
        if state.latents.shape[2] == known.shape[2] and bool(is_held.any()):
            distance = torch.cdist(state.latents[is_held].float(), known.flatten(0, 1).float())
            assert float(distance.min(1).values.max()) < 1e-3
        free = state.is_free.squeeze(-1)
        assert float((clean - state.latents.float())[free].abs().mean()) > 0.05


def test_batches_that_are_drawn_together_differ_and_have_every_task(pools):
    maker = BatchMaker((KIND,), pools, torch.Generator().manual_seed(1))
    kind = dataclasses.replace(KIND, num_clips=40)
    batches = [maker.draw(kind) for _ in range(2 * DRAWN_AT_ONCE)]
    sigmas = {tuple(batch.streams.video.sigma.tolist()) for batch in batches}
    assert len(sigmas) == len(batches) and all(len(batch.tokens) == 40 for batch in batches)
    for batch in batches:
        num_held = (~batch.streams.video.is_free[..., 0]).sum(1)
        assert (num_held == 0).sum() >= 24 and len(set(num_held.tolist())) >= 3


@pytest.fixture(scope="module")
def large_pool(autoencoders, language_model):
    plan = PoolPlan(128, 9, 2)
    return make_pool(plan, LatentEncoder(autoencoders, CPU), language_model.words, random.Random(3))


@pytest.mark.parametrize("form", ["mixed", "picture"])
def test_a_second_stage_learns_the_way_from_what_a_first_one_leaves(large_pool, form):
    kind = BatchKind("large", 128, 9, 6, 1.0, form)
    first = STAGE_2_SIGMAS[0]

    def draw(pool):
        levels = torch.full((kind.num_clips * DRAWN_AT_ONCE,), first)
        generator = torch.Generator().manual_seed(1)
        maker = BatchMaker((kind,), {(128, 9): pool}, generator, levels=lambda *_: (levels, levels))
        return [maker.draw(kind).streams.video for _ in range(DRAWN_AT_ONCE)]

    plain = dataclasses.replace(large_pool, begun=large_pool.video, begun_still=large_pool.still)
    begun, truth = (large_pool.begun_still, large_pool.still) if form == "picture" else (
        large_pool.begun, large_pool.video
    )  # fmt: skip
    steps = (1 - first) * patchify_video(begun.float() - truth.float())  # (2, T, C)
    num_changed = total = 0
    for ours, theirs in zip(draw(large_pool), draw(plain), strict=True):
        for change, is_free in zip(ours.latents.float() - theirs.latents.float(), ours.is_free, strict=True):
            total += 1
            if bool((change != 0).any()):
                num_changed += 1
                # latents are bfloat16
                nearest = min(float((change - step * is_free).square().mean()) for step in steps)
                assert nearest < 0.1 * float(change.square().mean())
    assert 0.35 < num_changed / total < 0.8


def test_a_pool_of_a_first_stage_has_nothing_begun(pools, large_pool):
    assert pools[16, 17].begun is None
    assert large_pool.begun.shape == large_pool.video.shape and not torch.equal(large_pool.begun, large_pool.video)
    assert large_pool.begun_still.shape == large_pool.still.shape


def test_captions_are_sometimes_left_away(pools):
    maker = BatchMaker((KIND,), pools, torch.Generator().manual_seed(1))
    lengths = maker.draw(dataclasses.replace(KIND, num_clips=400)).lengths
    assert 0.04 < float((lengths == 0).float().mean()) < 0.18


def test_more_tokens_are_trained_at_more_noise():
    generator = torch.Generator().manual_seed(0)
    few, many = (draw_sigmas(20_000, tokens, generator).mean() for tokens in (64, 4096))
    assert 0.5 < few < many - 0.1
    assert float((draw_refining_sigmas(20_000, generator) < 0.91).float().mean()) > 0.95


def test_the_learning_rate_rises_stays_and_falls():
    assert rate_share(0, 0.0) < 0.01 and rate_share(1000, 0.5) == 1.0 and rate_share(1000, 0.9) < 0.5


def test_sounds_made_together_are_those_of_the_world():
    rng = random.Random(3)
    scenes = [sample_scene(rng) for _ in range(12)]
    theirs = render_sound(scenes, 17, FRAME_RATE)
    torch.testing.assert_close(sounds_of(scenes, 17, CPU), theirs, rtol=0, atol=2e-3)


def test_every_kind_of_batch_has_its_pool():
    recipe = Recipe()
    planned = {(plan.size, plan.num_frames) for plan in recipe.pools}
    assert all((kind.size, kind.num_frames) in planned for kind in KINDS)


def test_prompts_become_films_that_the_checker_reads(run, autoencoders, language_model, tmp_path):
    models = open_autoencoders(autoencoders, CPU)
    weights = {name: value.bfloat16().float() for name, value in run.weights.averages.items()}
    sampler = samples.Sampler(run.shape, weights, language_model, models, CPU)
    prompts = untrained_prompts(2, seed=1)
    settings = samples.Settings(size=16, num_frames=17, num_steps=2, batch_size=1)
    first = sampler.sample([prompt.text for prompt in prompts], settings)
    begun = sampler.upsampled(first)
    refined = sampler.sample(
        [prompt.text for prompt in prompts], dataclasses.replace(settings, size=32), begun=begun
    )
    assert refined.video.shape[-2:] == (4, 4)
    assert not torch.equal(refined.audio, first.audio)
    films = sampler.films(AudioVideo(first.video, first.audio))
    assert films[0].frames.shape == (17, 16, 16, 3)
    assert 0 <= samples.claims_right(prompts, [dataclasses.replace(f, frames=f.frames) for f in films])["all"] <= 1


def test_a_run_ends_with_sheets_and_the_claims_that_hold(run, autoencoders, language_model, tmp_path):
    models = open_autoencoders(autoencoders, CPU)
    weights = {name: value.bfloat16().float() for name, value in run.weights.averages.items()}
    sampler = samples.Sampler(run.shape, weights, language_model, models, CPU)
    show(sampler, tmp_path, run.log, num_prompts=2, settings=samples.Settings(size=16, num_steps=2, batch_size=2))
    assert (tmp_path / "sheet-small.png").exists() and (tmp_path / "sheet-large.png").exists()
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["pixels"] for line in lines] == [16, 32]
    assert all(0 <= line["right"]["all"] <= 1 for line in lines)
