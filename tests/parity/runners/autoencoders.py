"""Everything around the transformer: text connectors, video and audio autoencoders, vocoders, latent upsampler."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from braid.diffusion.models.ltx2 import tiling
from braid.diffusion.models.ltx2.audio_geometry import AudioGeometry, read_audio_geometry
from braid.diffusion.models.ltx2.audio_mel import MelFrontEnd
from braid.diffusion.models.ltx2.audio_vae import AudioDecoder, AudioEncoder
from braid.diffusion.models.ltx2.config import Section
from braid.diffusion.models.ltx2.modules import finish, with_prefix
from braid.diffusion.models.ltx2.statistics import LatentStatistics
from braid.diffusion.models.ltx2.text_projection import TextProjection
from braid.diffusion.models.ltx2.upsampler import LatentUpsampler
from braid.diffusion.models.ltx2.video_geometry import read_video_geometry
from braid.diffusion.models.ltx2.video_vae import TimestepDecoding, VideoDecoder, VideoEncoder
from braid.diffusion.models.ltx2.vocoder import Vocoder
from braid.tests.parity.cases import Case, read_case
from braid.tests.parity.comparison import Comparison

NETWORK_TOLERANCE = 2e-4
EXACT = 0.0


def section(case: Case, name: str) -> Section:
    return Section(Path(f"{case.name}.json"), name, case.info["config"][name])


def tolerance(case: Case) -> float:
    return float(case.info.get("tolerance", NETWORK_TOLERANCE))


def compare(case: Case, name: str, ours: Tensor, expected: Tensor) -> Comparison:
    return Comparison(name, ours.float(), expected, tolerance(case))


def whole(name: str, ours: Any, expected: Any) -> Comparison:
    """Numbers of a case's JSON, which must be equal."""
    as_tensor = [torch.tensor(value, dtype=torch.float64) for value in (ours, expected)]
    return Comparison(name, as_tensor[0], as_tensor[1], EXACT)


def run_video_encode(case: Case) -> Iterator[Comparison]:
    tensors = case.tensors()
    encoder = VideoEncoder(section(case, "vae"), with_prefix(tensors, "w.vae."))
    frames = tensors["in.pixels"][:, :, : encoder.geometry.whole_frames(tensors["in.pixels"].shape[2])]
    latents = torch.cat([encoder.encode(clip) for clip in frames.split(1)])
    yield compare(case, "out.latent", latents, tensors["out.latent"])


def make_decoder(case: Case, tensors: dict[str, Tensor]) -> VideoDecoder:
    default = TimestepDecoding()
    decoding = TimestepDecoding(
        case.info.get("decode_timestep", default.timestep), case.info.get("decode_noise_scale", default.noise_scale)
    )
    return VideoDecoder(section(case, "vae"), with_prefix(tensors, "w.vae."), timestep_decoding=decoding)


def recorded_noise(tensors: dict[str, Tensor]) -> Tensor | None:
    return next((tensor for name, tensor in sorted(tensors.items()) if "noise" in name and name[:2] != "w."), None)


def run_video_decode(case: Case) -> Iterator[Comparison]:
    tensors = case.tensors()
    decoder = make_decoder(case, tensors)
    noise = recorded_noise(tensors)
    generator = torch.Generator().manual_seed(int(case.info.get("seed", 0)))
    clips = [
        finish(decoder.decode(latents, noise=None if noise is None else noise[index : index + 1], generator=generator))
        for index, latents in enumerate(tensors["in.latent"].split(1))
    ]
    yield compare(case, "out.pixels", torch.cat(clips), tensors["out.pixels"])


def run_tiled_decode(case: Case) -> Iterator[Comparison]:
    tensors = case.tensors()
    weights_case = read_case(case.folder, case.info["weights"].split(".safetensors")[0])
    decoder = make_decoder(case, weights_case.tensors())
    latents = tensors["in.latent"]
    geometry = decoder.geometry
    factors = {"time_factor": geometry.time_factor, "space_factor": geometry.space_factor}
    sizes = tiling.TileSizes(
        *(
            tiling.TileSize(length // factor, overlap // factor)
            for (length, overlap), factor in (
                (case.info["tile_size_config"]["frames"], geometry.time_factor),
                (case.info["tile_size_config"]["height"], geometry.space_factor),
                (case.info["tile_size_config"]["width"], geometry.space_factor),
            )
        )
    )
    latent_shape = (latents.shape[2], latents.shape[3], latents.shape[4])
    plan = tiling.make_plan(latent_shape, sizes, **factors)
    yield from compare_tiles(case, plan)
    chunks, carry = [], None
    for group in range(plan.num_groups):
        frames, carry = finish(decoder.decode_group(latents, plan, group, carry=carry))
        chunks.append(frames)
    tiled = torch.cat(chunks, dim=2)
    yield whole("chunk_frames", [chunk.shape[2] for chunk in chunks], case.info["chunk_frames"])
    step = subsampling(case.info.get("subsample", ""))
    whole_clip = finish(decoder.decode_group(latents, tiling.make_plan(latent_shape, None, **factors), 0))[0]
    yield compare(case, "out.tiled_subsampled", tiled[..., ::step, ::step], tensors["out.tiled_subsampled"])
    yield compare(case, "out.untiled_subsampled", whole_clip[..., ::step, ::step], tensors["out.untiled_subsampled"])
    if "out.tiled_frame_mean" in tensors:
        yield compare(case, "out.tiled_frame_mean", tiled.mean(dim=(1, 3, 4)), tensors["out.tiled_frame_mean"])


def subsampling(description: str) -> int:
    """4 of "[..., ::4, ::4]"."""
    return int(description.rstrip("]").rsplit("::", 1)[1]) if "::" in description else 1


def compare_tiles(case: Case, plan: tiling.TilingPlan) -> Iterator[Comparison]:
    tiles = [tile for group in range(plan.num_groups) for tile in plan.tiles(group)]
    yield whole("number of tiles", len(tiles), len(case.info["tiles"]))
    for index, (tile, expected) in enumerate(zip(tiles, case.info["tiles"], strict=False)):
        read = [[part.start, part.end] for part in (tile.frames, tile.row, tile.column)]
        written = [[part.start, part.stop] for part in tile.pixels]
        yield whole(f"tiles[{index}].in", read, expected["in"][2:])
        yield whole(f"tiles[{index}].out", written, expected["out"][2:])
        masks = (
            tiling.time_mask(tile.frames, plan.time_factor),
            tiling.space_mask(tile.row, plan.space_factor),
            tiling.space_mask(tile.column, plan.space_factor),
        )
        for axis, mask, values in zip("thw", masks, expected["masks"], strict=True):
            yield compare(case, f"tiles[{index}].masks.{axis}", mask, torch.tensor(values))


def run_tiling_plan(case: Case) -> Iterator[Comparison]:
    time_factor, space_factor = 8, 32
    if "vae" in case.info.get("config", {}):
        geometry = read_video_geometry(section(case, "vae"))
        time_factor, space_factor = geometry.time_factor, geometry.space_factor
    factors = {"time_factor": time_factor, "space_factor": space_factor}
    for index, row in enumerate(case.info["rows"]):
        height, width = row["height"] // space_factor, row["width"] // space_factor
        sizes = tiling.automatic_sizes(height, width, **factors)
        in_pixels = {
            name: [size.length * factor, size.overlap * factor]
            for name, size, factor in (
                ("frames", sizes.frames, time_factor),
                ("height", sizes.height, space_factor),
                ("width", sizes.width, space_factor),
            )
        }
        for name, value in in_pixels.items():
            yield whole(f"rows[{index}].tile.{name}", value, row["tile"][name])
        plan = tiling.make_plan(((row["frames"] - 1) // time_factor + 1, height, width), sizes, **factors)
        expected = row["latent_intervals[start,end,left_ramp,right_ramp]"]
        for axis, parts in (("t", plan.frames), ("h", plan.rows), ("w", plan.columns)):
            intervals = [[part.start, part.end, part.left_ramp, part.right_ramp] for part in parts]
            yield whole(f"rows[{index}].intervals.{axis}", intervals, expected[axis])
        chunks = tiling.num_announced_chunks(row["frames"], *row["tile"]["frames"])
        yield whole(f"rows[{index}].video_chunks_number", chunks, row["video_chunks_number"])


def run_text(case: Case) -> Iterator[Comparison]:
    tensors = case.tensors()
    projection = TextProjection(section(case, "transformer"), with_prefix(tensors, "w."))
    layers = [tensor for name, tensor in sorted(tensors.items()) if name.startswith("in.hidden_state.")]
    hidden_states, mask = torch.stack(layers, dim=-1), tensors["in.attention_mask"]
    features = projection.features(hidden_states, mask)
    embeds = projection(hidden_states, mask)
    ours = {
        "out.features.video": features["video"],
        "out.features.audio": features["audio"],
        "out.video_encoding": embeds.video,
        "out.audio_encoding": embeds.audio,
        # What the transformer is told of the padding: with registers in its place, nothing is masked.
        "out.attention_mask": torch.ones_like(mask),
    }
    for name, expected in tensors.items():
        if name.startswith(("out.", "rec.")):
            found = ours[name]
            assert found is not None
            yield compare(case, name, found, expected)


def run_audio_encode(case: Case) -> Iterator[Comparison]:
    tensors = case.tensors()
    encoder = AudioEncoder(section(case, "audio_vae"), with_prefix(tensors, "w.audio_vae."))
    latents = torch.cat([encoder.encode(mel) for mel in tensors["in.mel"].split(1)])
    yield compare(case, "out.latent", latents, tensors["out.latent"])


def run_audio_decode(case: Case) -> Iterator[Comparison]:
    tensors = case.tensors()
    decoder = AudioDecoder(section(case, "audio_vae"), with_prefix(tensors, "w.audio_vae."))
    mel = torch.cat([decoder.decode(latents) for latents in tensors["in.latent"].split(1)])
    yield compare(case, "out.mel", mel, tensors["out.mel"])


def run_audio_mel(case: Case) -> Iterator[Comparison]:
    tensors = case.tensors()
    info = case.info
    front_end = MelFrontEnd(
        info.get("target_rate", 16000), info.get("n_fft", 1024), info.get("hop", 160), info.get("n_mels", 64)
    )
    mels = [front_end(waveform, info.get("sample_rate", 16000)) for waveform in tensors["in.waveform"].split(1)]
    yield compare(case, "out.mel", torch.cat(mels), tensors["out.mel"])


def run_vocoder(case: Case) -> Iterator[Comparison]:
    tensors = case.tensors()
    vocoder = Vocoder(section(case, "vocoder"), with_prefix(tensors, "w.vocoder."))
    mels = tensors["in.mel"].split(1)
    yield compare(case, "out.waveform", torch.cat([vocoder(mel) for mel in mels]), tensors["out.waveform"])
    if "out.low_rate_waveform" in tensors:
        low = torch.cat([finish(vocoder.low_rate_pieces(mel)) for mel in mels])
        yield compare(case, "out.low_rate_waveform", low, tensors["out.low_rate_waveform"])


def run_upsampler(case: Case) -> Iterator[Comparison]:
    tensors = case.tensors()
    statistics = LatentStatistics(tensors["stats.mean-of-means"], tensors["stats.std-of-means"])
    config = Section(Path(f"{case.name}.json"), "config", case.info["config"])
    upsampler = LatentUpsampler(config, with_prefix(tensors, "w."), statistics)
    clips = tensors["in.latent"].split(1)
    raw = torch.cat([finish(upsampler.raw_pieces(latents)) for latents in clips])
    yield compare(case, "out.raw", raw, tensors["out.raw"])
    normalised = torch.cat([upsampler(latents) for latents in clips])
    yield compare(case, "out.with_stats", normalised, tensors["out.with_stats"])


def run_audio_length(case: Case) -> Iterator[Comparison]:
    released = AudioGeometry(
        sample_rate=16000,
        hop=160,
        time_factor=4,
        num_channels=8,
        num_latent_bins=16,
        num_mel_bins=64,
        num_sound_channels=2,
    )
    named = "audio_vae" in case.info.get("config", {})
    geometry = read_audio_geometry(section(case, "audio_vae")) if named else released
    for row in case.info["rows"]:
        ours = geometry.num_latents(row["frames"], row["fps"])
        yield whole(f"{row['frames']} frames, {row['fps']} a second", ours, row["audio_latent_frames"])


RUNNERS = {
    "audio length": run_audio_length,
    "audio VAE encode": run_audio_encode,
    "audio VAE decode": run_audio_decode,
    "audio mel frontend": run_audio_mel,
    "vocoder v2": run_vocoder,
    "vocoder BWE": run_vocoder,
    "latent upsampler": run_upsampler,
    "text feature extractor+connector": run_text,
    "video VAE encode": run_video_encode,
    "video VAE decode": run_video_decode,
    "tiled decode": run_tiled_decode,
    "tiling plan": run_tiling_plan,
}
