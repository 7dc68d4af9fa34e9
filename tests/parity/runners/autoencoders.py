"""Everything around the transformer: text connectors, video and audio autoencoders, vocoders, latent upsampler."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
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
from braid.tests.parity.cases import Case
from braid.tests.parity.comparison import Comparison, results

NETWORK_TOLERANCE = 2e-4
EXACT = 0.0


def section(case: Case, name: str) -> Section:
    """Of the case's config, or of that of the weights that it names."""
    config = case.info.get("config") or case.weights().info["config"]
    return Section(Path(f"{case.name}.json"), name, config[name])


def compare(case: Case, name: str, ours: Tensor, expected: Tensor) -> Comparison:
    return Comparison(name, ours.float(), expected, case.tolerance(NETWORK_TOLERANCE))


def compare_made(case: Case, tensors: Mapping[str, Tensor], **made: Callable[[], Tensor]) -> Iterator[Comparison]:
    """Every `out.NAME` that the case recorded, with what is made for that name."""
    for name, expected in with_prefix(tensors, "out.").items():
        make = made.get(name)
        assert make is not None, f"nobody knows what out.{name} is"
        yield compare(case, f"out.{name}", make(), expected)


def whole(name: str, ours: Any, expected: Any) -> Comparison:
    """Numbers of a case's JSON, which must be equal."""
    as_tensor = [torch.tensor(value, dtype=torch.float64) for value in (ours, expected)]
    return Comparison(name, as_tensor[0], as_tensor[1], EXACT)


def run_video_encode(case: Case) -> Iterator[Comparison]:
    tensors = case.tensors()
    encoder = VideoEncoder(section(case, "vae"), with_prefix(tensors, "w.vae."))
    frames = tensors["in.pixels"][:, :, : encoder.geometry.whole_frames(tensors["in.pixels"].shape[2])]
    yield from compare_made(case, tensors, latent=lambda: torch.cat([encoder.encode(clip) for clip in frames.split(1)]))


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
    pixels = torch.cat([
        finish(decoder.decode(latents, noise=None if noise is None else noise[index : index + 1], generator=generator))
        for index, latents in enumerate(tensors["in.latent"].split(1))
    ])  # fmt: skip
    made = {"pixels": lambda: pixels, "rgb": lambda: ((pixels + 1) / 2).clamp(0, 1)}
    yield from compare_made(case, tensors, **made)


def tile_sizes(case: Case, latent_shape: tuple[int, int, int], factors: tuple[int, int, int]) -> tiling.TileSizes:
    """Of the case, in latents; an axis that is not cut has null."""
    told = [case.info["tile_size_config"][axis] for axis in ("frames", "height", "width")]
    return tiling.TileSizes(*(
        tiling.TileSize(length, 0) if one is None else tiling.TileSize(one[0] // factor, one[1] // factor)
        for one, length, factor in zip(told, latent_shape, factors, strict=True)
    ))  # fmt: skip


def run_tiled_decode(case: Case) -> Iterator[Comparison]:
    tensors = case.tensors()
    decoder = make_decoder(case, case.weights().tensors())
    latents, geometry = tensors["in.latent"], decoder.geometry
    factors = {"time_factor": geometry.time_factor, "space_factor": geometry.space_factor}
    latent_shape = (latents.shape[2], latents.shape[3], latents.shape[4])
    sizes = tile_sizes(case, latent_shape, (geometry.time_factor, geometry.space_factor, geometry.space_factor))
    plan = tiling.make_plan(latent_shape, sizes, **factors)
    if "tiles" in case.info:
        yield from compare_tiles(case, plan)
    chunks, carry = [], None
    for group in range(plan.num_groups):
        frames, carry = finish(decoder.decode_group(latents, plan, group, carry=carry))
        chunks.append(frames)
    if "chunk_frames" in case.info:
        yield whole("chunk_frames", [chunk.shape[2] for chunk in chunks], case.info["chunk_frames"])
    tiled, step = torch.cat(chunks, dim=2), subsampling(case.info.get("subsample", ""))

    def untiled() -> Tensor:
        return finish(decoder.decode_group(latents, tiling.make_plan(latent_shape, None, **factors), 0))[0]

    yield from compare_made(
        case,
        tensors,
        tiled=lambda: tiled,
        untiled=untiled,
        tiled_subsampled=lambda: tiled[..., ::step, ::step],
        untiled_subsampled=lambda: untiled()[..., ::step, ::step],
        tiled_frame_mean=lambda: tiled.mean(dim=(1, 3, 4)),
    )


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
        "out.features.video": features.get("video"),
        "out.features.audio": features.get("audio"),
        "out.video_encoding": embeds.video,
        "out.audio_encoding": embeds.audio,
        # What the transformer is told of the padding: with registers in its place, nothing is masked.
        "out.attention_mask": torch.ones_like(mask),
    }
    for name, expected in results(tensors).items():
        found = ours.get(name)
        assert found is not None, f"nobody knows what {name} is"
        yield compare(case, name, found, expected)


def run_audio_encode(case: Case) -> Iterator[Comparison]:
    tensors = case.tensors()
    encoder = AudioEncoder(section(case, "audio_vae"), with_prefix(tensors, "w.audio_vae."))
    mels = tensors["in.mel"].split(1)
    yield from compare_made(case, tensors, latent=lambda: torch.cat([encoder.encode(mel) for mel in mels]))


def run_audio_decode(case: Case) -> Iterator[Comparison]:
    tensors = case.tensors()
    decoder = AudioDecoder(section(case, "audio_vae"), with_prefix(tensors, "w.audio_vae."))
    sounds = tensors["in.latent"].split(1)
    yield from compare_made(case, tensors, mel=lambda: torch.cat([decoder.decode(latents) for latents in sounds]))


def run_audio_mel(case: Case) -> Iterator[Comparison]:
    tensors = case.tensors()
    info = case.info
    front_end = MelFrontEnd(
        info.get("target_rate", 16000), info.get("n_fft", 1024), info.get("hop", 160), info.get("n_mels", 64)
    )
    mels = [front_end(waveform, info.get("sample_rate", 16000)) for waveform in tensors["in.waveform"].split(1)]
    yield from compare_made(case, tensors, mel=lambda: torch.cat(mels))


def run_vocoder(case: Case) -> Iterator[Comparison]:
    tensors = case.tensors()
    vocoder = Vocoder(section(case, "vocoder"), with_prefix(tensors, "w.vocoder."))
    mels = tensors["in.mel"].split(1)
    yield from compare_made(
        case,
        tensors,
        waveform=lambda: torch.cat([vocoder(mel) for mel in mels]),
        low_rate_waveform=lambda: torch.cat([finish(vocoder.low_rate_pieces(mel)) for mel in mels]),
    )


def run_upsampler(case: Case) -> Iterator[Comparison]:
    tensors = case.tensors()
    num_channels = tensors["in.latent"].shape[1]
    statistics = LatentStatistics(
        tensors.get("stats.mean-of-means", torch.zeros(num_channels)),
        tensors.get("stats.std-of-means", torch.ones(num_channels)),
    )
    config = Section(Path(f"{case.name}.json"), "config", case.info["config"])
    upsampler = LatentUpsampler(config, with_prefix(tensors, "w."), statistics)
    clips = tensors["in.latent"].split(1)
    yield from compare_made(
        case,
        tensors,
        raw=lambda: torch.cat([finish(upsampler.raw_pieces(latents)) for latents in clips]),
        with_stats=lambda: torch.cat([upsampler(latents) for latents in clips]),
    )


def run_audio_length(case: Case) -> Iterator[Comparison]:
    named = "audio_vae" in case.info.get("config", {})
    geometry = read_audio_geometry(section(case, "audio_vae")) if named else AudioGeometry()
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
