"""Training goes down its gradient, what is written is what the loader builds, and a later run goes on from it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from braid.diffusion.models.ltx2.checkpoint import open_ltx2
from braid.diffusion.models.ltx2.modules import finish
from braid.diffusion.models.ltx2.parts import Part
from braid.diffusion.models.ltx2.upsampler import LatentUpsampler
from braid.diffusion.models.ltx2.video_vae import VideoDecoder, VideoEncoder
from braid.diffusion.models.ltx2.vocoder import Vocoder
from braid.tests.training.autoencoders.toy_recipe import toy_recipe
from braid.training.autoencoders import evaluation, files
from braid.training.autoencoders.configs import video_section
from braid.training.autoencoders.run import Run, show, time_budgets
from braid.training.autoencoders.trainee import StepBudget, TimeBudget, learning_rate_share
from braid.training.autoencoders.video import VideoAutoencoder, importance

CPU = torch.device("cpu")
MAX_RESUME_BYTES = 15 * 2**20


def rounded(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """As a file keeps it."""
    return {name: tensor.bfloat16().float() for name, tensor in state.items()}


@pytest.mark.parametrize("name", files.NETWORKS)
def test_a_step_lowers_the_loss(trained: tuple[Run, Path], tmp_path: Path, name: str) -> None:
    run = Run(toy_recipe(), tmp_path, CPU, resume=trained[1])
    run.__dict__.update({"clips": trained[0].clips, "sounds": trained[0].sounds})
    training = run._training(name)
    torch.manual_seed(3)
    _, batch = training.draw()

    def loss() -> Tensor:
        return training.loss_of(*batch)[0]

    before = loss()
    for _ in range(3):
        training.trainee.begin_step(0.0)
        training.trainee.descend(loss())
        training.trainee.end_step()
    assert float(loss().detach()) < float(before.detach())


def test_a_resumed_run_has_the_state_that_was_written(trained: tuple[Run, Path], tmp_path: Path) -> None:
    run, folder = trained
    resumed = Run(toy_recipe(), tmp_path, CPU, resume=folder)
    for name, trainee in run.trainees.items():
        again = resumed.trainees[name]
        assert again.num_steps == trainee.num_steps == 2
        torch.testing.assert_close(dict(again.network.state_dict()), rounded(dict(trainee.network.state_dict())))
        torch.testing.assert_close(again.averaged_state(), rounded(trainee.averaged_state()))
        differing = [
            not torch.equal(again.averaged_state()[key], value) for key, value in again.network.state_dict().items()
        ]
        assert any(differing), "weights and their average are two things"
    for name, statistics in run.statistics.items():
        assert torch.equal(resumed.statistics[name].mean, statistics.mean.bfloat16().float())
        assert torch.equal(resumed.statistics[name].std, statistics.std.bfloat16().float())


def test_a_resumed_run_keeps_the_average(trained: tuple[Run, Path], tmp_path: Path) -> None:
    resumed = Run(toy_recipe(), tmp_path, CPU, resume=trained[1])
    resumed.__dict__["sounds"] = trained[0].sounds
    before = resumed.trainees["audio"].averaged_state()["encoder.conv_in.conv.weight"].clone()
    resumed.train({"audio": lambda: StepBudget(1)})
    after = resumed.trainees["audio"].averaged_state()["encoder.conv_in.conv.weight"]
    now = resumed.trainees["audio"].network.state_dict()["encoder.conv_in.conv.weight"]
    torch.testing.assert_close(after, before + (now - before) * (1 - 3 / 12))  # the third step
    assert resumed.trainees["audio"].num_steps == 3


def test_a_network_that_is_restarted_begins_anew(trained: tuple[Run, Path], tmp_path: Path) -> None:
    again = Run(toy_recipe(), tmp_path, CPU, resume=trained[1], restart=["audio"])
    assert {name: trainee.num_steps for name, trainee in again.trainees.items()} == {
        "video": 2, "upsampler": 2, "audio": 0, "vocoder": 2, "extension": 2,
    }  # fmt: skip
    assert torch.equal(again.statistics["audio"].std, torch.ones(128))
    assert not torch.equal(again.statistics["video"].std, torch.ones(8))


def test_what_moves_counts_more_than_what_stands_still() -> None:
    frames = torch.zeros(1, 3, 5, 16, 16)
    frames[:, :, 3:, 4, 4] = 1.0  # appears in frame 3
    weights = importance(frames)
    assert weights.shape == (1, 1, 5, 16, 16)
    assert float(weights.mean()) == pytest.approx(1.0)
    assert (weights[0, 0, :, 4, 4] / weights[0, 0, :, 12, 12]).tolist() == pytest.approx([1, 1, 9, 9, 1])
    assert torch.equal(importance(frames[:, :, :1]), torch.ones(1, 1, 1, 16, 16))


@pytest.mark.parametrize("time_factor", [4, 8])
def test_frames_of_a_latent_frame_can_be_chosen(time_factor: int) -> None:
    network = VideoAutoencoder(video_section(latent_channels=8, base_channels=8, num_layers=1, time_factor=time_factor))
    with torch.no_grad():
        latents, _ = network.encode(torch.zeros(1, 3, 17, 16, 16))
        assert latents.shape == (1, 8, 16 // time_factor + 1, 2, 2)
        assert network.decode(latents).shape == (1, 3, 17, 16, 16)


def test_an_interrupted_write_leaves_the_files_before(trained: tuple[Run, Path], tmp_path: Path) -> None:
    run, folder = trained
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)

    class Broken(dict[str, Tensor]):
        def items(self) -> object:  # type: ignore[override]
            raise KeyboardInterrupt

    run.trainees["video"].averaged_state, kept = lambda: Broken(), run.trainees["video"].averaged_state  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        files.write(copy, toy_recipe().sections, run.trainees, run.statistics)
    run.trainees["video"].averaged_state = kept  # type: ignore[method-assign]
    Run(toy_recipe(), tmp_path, CPU, resume=copy)


def test_the_loader_opens_what_was_written(trained: tuple[Run, Path]) -> None:
    _, folder = trained
    checkpoint = open_ltx2(
        folder / "video_vae.safetensors",
        split_files=[folder / "audio.safetensors"],
        upsampler=folder / "upsampler.safetensors",
    )
    models = evaluation.open_autoencoders(folder, CPU)
    assert models.video_encoder.geometry.time_factor == models.video_decoder.geometry.space_factor == 8
    assert models.audio_decoder.geometry.latents_per_second == 25
    assert models.vocoder.sample_rate == 48_000
    parts = {Part.VIDEO_ENCODER, Part.VIDEO_DECODER, Part.AUDIO_ENCODER, Part.AUDIO_DECODER, Part.VOCODER}
    assert set(checkpoint.parts) == parts
    checkpoint.check_finite(parts)


def test_what_is_trained_is_what_is_loaded(trained: tuple[Run, Path], tmp_path: Path) -> None:
    folder = trained[1]
    resumed = Run(toy_recipe(), tmp_path, CPU, resume=folder)  # the same rounded numbers as the files
    networks = {name: trainee.average.eval() for name, trainee in resumed.trainees.items()}
    checkpoint = open_ltx2(
        folder / "video_vae.safetensors",
        split_files=[folder / "audio.safetensors"],
        upsampler=folder / "upsampler.safetensors",
    )
    weights = {part: checkpoint.weights(part, torch.float32) for part in checkpoint.parts}
    encoder = VideoEncoder(checkpoint.section(Part.VIDEO_ENCODER), weights[Part.VIDEO_ENCODER])
    decoder = VideoDecoder(checkpoint.section(Part.VIDEO_DECODER), weights[Part.VIDEO_DECODER])
    frames = trained[0].clips[9].batch(64, 9, 1, torch.Generator().manual_seed(0))
    with torch.no_grad():
        latents = networks["video"].encode(frames)[0]
        statistics = resumed.statistics["video"]
        torch.testing.assert_close(encoder.encode(frames), statistics.normalise(latents))
        decoded = finish(decoder.decode(statistics.normalise(latents)))
        torch.testing.assert_close(decoded, networks["video"].decode(latents), rtol=1e-4, atol=1e-5)
        assert checkpoint.upsampler is not None
        tensors = checkpoint.upsampler.weights(torch.float32)
        upsampler = LatentUpsampler(checkpoint.upsampler.section, tensors, encoder.statistics)
        enlarged = statistics.normalise(networks["upsampler"](latents))
        torch.testing.assert_close(upsampler(statistics.normalise(latents)), enlarged, rtol=1e-4, atol=1e-4)
        mel = resumed_mels(trained[0])[:1, :, :20]
        sound = networks["vocoder"](mel).clamp(-1, 1)
        vocoder = Vocoder(checkpoint.section(Part.VOCODER), weights[Part.VOCODER])
        torch.testing.assert_close(finish(vocoder.low_rate_pieces(mel)), sound, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(vocoder(mel), networks["extension"](sound).clamp(-1, 1), rtol=1e-3, atol=1e-4)


def resumed_mels(run: Run) -> Tensor:
    return run._mels[25]


def test_the_audio_autoencoder_is_what_is_loaded(trained: tuple[Run, Path], tmp_path: Path) -> None:
    resumed = Run(toy_recipe(), tmp_path, CPU, resume=trained[1])
    models = evaluation.open_autoencoders(trained[1], CPU)
    network, statistics = resumed.trainees["audio"].average.eval(), resumed.statistics["audio"]
    network.bfloat16()  # type: ignore[no-untyped-call]
    mel = resumed_mels(trained[0])[:1].bfloat16()
    with torch.no_grad():
        latents = network.encode(mel)[0]
        tokens = statistics.normalise(latents.transpose(1, 2).flatten(2))
        loaded = models.audio_encoder.encode(mel).transpose(1, 2).flatten(2).float()
        torch.testing.assert_close(loaded, tokens, rtol=0.02, atol=0.05)
        decoded = models.audio_decoder.decode(models.audio_encoder.encode(mel)).float()
        assert decoded.shape == mel.shape
        assert (decoded - network.decode(latents.bfloat16())).abs().mean() < 0.1


def test_a_run_leaves_a_flat_folder_of_at_most_eight_small_files(trained: tuple[Run, Path]) -> None:
    run, folder = trained
    show(folder, CPU, run.log, num_scenes=1, num_shown=4)
    written = sorted(folder.iterdir())
    assert len(written) <= 8
    assert all(path.is_file() and path.stat().st_size <= MAX_RESUME_BYTES for path in written)
    assert {"samples.png", "spectrograms.png", "log.jsonl"} <= {path.name for path in written}
    last = json.loads((folder / "log.jsonl").read_text().splitlines()[-1])
    assert last["claims_right"]["drawn_128"]["all"] > last["claims_right"]["decoded_128"]["all"]


def test_the_shipped_networks_fit_their_budget(tmp_path: Path) -> None:
    from braid.training.autoencoders.recipe import Recipe
    from braid.training.autoencoders.run import _networks

    sizes = {name: sum(p.numel() for p in net.parameters()) for name, net in _networks(Recipe()).items()}
    assert sizes["video"] <= 7_000_000
    assert 2 * sum(sizes.values()) < 24_000_000  # bytes
    assert 2 * sizes["video"] < MAX_RESUME_BYTES


def test_metadata_counts_steps(trained: tuple[Run, Path]) -> None:
    with safe_open(trained[1] / "audio.safetensors", framework="pt") as file:
        assert json.loads(file.metadata()[files.STEPS]) == dict.fromkeys(files.NETWORKS, 2)


def test_time_is_divided_by_share_and_counted_from_the_start_of_each() -> None:
    budgets = time_budgets({"video": 3.0, "audio": 1.0}, 8.0)
    video = budgets["video"]()
    assert isinstance(video, TimeBudget)
    assert video.seconds == 6.0
    now = [0.0]
    budget = TimeBudget(2.0, clock=lambda: now[0])
    now[0] = 1.5
    assert budget.progress(10) == 0.75
    assert TimeBudget(-1.0).progress(0) == 1.0
    assert StepBudget(0).progress(0) == 1.0


def test_the_learning_rate_rises_and_falls() -> None:
    assert learning_rate_share(0, 0.0) == 0.01
    assert learning_rate_share(500, 0.0) == 1.0
    assert learning_rate_share(500, 1.0) == pytest.approx(0.02)
