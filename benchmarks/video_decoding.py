"""What does cutting the video decoder into bounded pieces cost, and how long are they? How does diffusers' decoder do
with the same weights?

The decoder is LTX-2.3's, as wide as the released one (`--base-channels 128`), and the clip is small. It is decoded with
regions of different sizes, without cutting, and by diffusers, one after the other in each of the rounds; a piece's time
is its median over the rounds. The limit is the rate of one large product.

    python benchmarks/video_decoding.py [--threads 2] [--rounds 5] [--latents 2 4 6] [--dtype float32]
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from braid.benchmarks import machine
from braid.benchmarks.dit_forward import product_gflops
from braid.diffusion.models.ltx2 import volumes
from braid.diffusion.models.ltx2.config import Section
from braid.diffusion.models.ltx2.key_maps import official_video_name
from braid.diffusion.models.ltx2.layout import video_decoder_tensors
from braid.diffusion.models.ltx2.video_vae import VideoDecoder

CHANNELS, PATCH, NUM_RUNGS = 128, 4, 4
DECODER_BLOCKS = [
    ["res_x", {"num_layers": 4}], ["compress_space", {"multiplier": 2}],
    ["res_x", {"num_layers": 6}], ["compress_time", {"multiplier": 2}],
    ["res_x", {"num_layers": 4}], ["compress_all", {"multiplier": 1}],
    ["res_x", {"num_layers": 2}], ["compress_all", {"multiplier": 2}],
    ["res_x", {"num_layers": 2}],
]  # fmt: skip
"""Of LTX-2.3, from the output to the bottleneck."""
UNCUT = 1 << 60


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--latents", type=int, nargs=3, default=[2, 4, 6], metavar=("FRAMES", "ROWS", "COLUMNS"))
    parser.add_argument("--base-channels", type=int, default=CHANNELS)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--limits", type=float, nargs="+", default=[0.5e9, 1e9, 2e9, 4e9])
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    dtype = getattr(torch, options.dtype)
    config = section(options.base_channels)
    weights = random_weights(config, dtype)
    decoder, theirs = VideoDecoder(config, weights), diffusers_decoder(options.base_channels, weights)
    latents = torch.randn(1, CHANNELS, *options.latents, generator=torch.Generator().manual_seed(1)).to(dtype)
    rows = measure(decoder, theirs, latents, [int(limit) for limit in options.limits], options.rounds)
    found = {"threads": options.threads, "dtype": options.dtype, "latents": options.latents}
    peak = product_gflops(dtype)
    print(json.dumps({**machine.describe(), "torch": torch.__version__, **found, "peak_gflops": peak, "rows": rows}))


def section(base_channels: int) -> Section:
    """What a checkpoint would say."""
    values: dict[str, Any] = {
        "latent_channels": CHANNELS,
        "patch_size": PATCH,
        "decoder_base_channels": base_channels,
        "decoder_blocks": DECODER_BLOCKS,
        "spatial_padding_mode": "zeros",
        "timestep_conditioning": False,
    }
    return Section(Path("released.safetensors"), "vae", values)


def random_weights(config: Section, dtype: torch.dtype) -> dict[str, Tensor]:
    """Of a size that keeps values near 1."""
    generator = torch.Generator().manual_seed(0)
    weights = {
        name: (torch.randn(*shape, generator=generator) / (shape[1:].numel() or 1) ** 0.5).to(dtype)
        for name, shape in ((name, torch.Size(map(int, shape))) for name, shape in _shapes(config))
    }
    statistics = {"mean-of-means": torch.zeros(CHANNELS), "std-of-means": torch.ones(CHANNELS)}
    return weights | {f"per_channel_statistics.{name}": values.to(dtype) for name, values in statistics.items()}


def _shapes(config: Section) -> list[tuple[str, tuple[int, ...]]]:
    return [(name, tuple(size or 1 for size in shape)) for name, shape in video_decoder_tensors(config).items()]


def diffusers_decoder(base_channels: int, weights: dict[str, Tensor]) -> Any:
    """diffusers' class with our weights."""
    from diffusers.models.autoencoders.autoencoder_kl_ltx2 import LTX2VideoDecoder3d

    decoder = LTX2VideoDecoder3d(
        in_channels=CHANNELS,
        block_out_channels=tuple(base_channels * factor for factor in (2, 4, 4, 8)),
        spatio_temporal_scaling=(True,) * NUM_RUNGS,
        layers_per_block=(4, 6, 4, 2, 2),
        upsample_type=("spatiotemporal", "spatiotemporal", "temporal", "spatial"),
        patch_size=PATCH,
        inject_noise=(False,) * (NUM_RUNGS + 1),
        upsample_residual=(False,) * NUM_RUNGS,
        upsample_factor=(2, 2, 1, 2),  # type: ignore[arg-type]  # bools, it says
        spatial_padding_mode="zeros",
    )
    names = {
        name: official_video_name(f"decoder.{name}", num_down_blocks=NUM_RUNGS) for name in decoder.state_dict()
    }
    decoder.load_state_dict({name: weights[official] for name, official in names.items()})
    return decoder.to(weights["decoder.conv_in.conv.weight"].dtype).eval()


def measure(
    decoder: VideoDecoder, theirs: Any, latents: Tensor, limits: list[int], rounds: int
) -> list[dict[str, Any]]:
    """One row a way of decoding."""
    with torch.inference_mode():
        expected: Tensor = theirs(latents)
    runs: dict[str, Callable[[], tuple[Tensor, list[tuple[float, int]]]]] = {
        "diffusers": partial(_whole, theirs, latents),
        "uncut": partial(_in_pieces, decoder, latents, UNCUT),
        **{f"{limit / 1e9:g}e9": partial(_in_pieces, decoder, latents, limit) for limit in limits},
    }
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    pieces: dict[str, list[list[tuple[float, int]]]] = {name: [] for name in runs}
    differences: dict[str, float] = {}
    for _ in range(rounds + 1):
        for name, run in runs.items():
            made, taken = run()
            seconds[name].append(sum(one for one, _ in taken))
            pieces[name].append(taken)
            differences[name] = float((made.float() - expected.float()).abs().max())
    rows = [_row(name, seconds[name][1:], pieces[name][1:], differences[name]) for name in runs]
    uncut = next(row["seconds"] for row in rows if row["regions"] == "uncut")
    for row in rows:
        row["over_uncut"] = round(row["seconds"] / uncut, 3)
        print(row, flush=True)
    return rows


def _row(
    name: str, seconds: list[float], rounds: list[list[tuple[float, int]]], difference: float
) -> dict[str, Any]:
    """Each piece's time is its median over the rounds."""
    medians = [machine.median([one[index][0] for one in rounds]) * 1e3 for index in range(len(rounds[0]))]
    longest = max(range(len(medians)), key=medians.__getitem__)
    macs = sum(work for _, work in rounds[0])
    return {
        "regions": name,
        "seconds": round(machine.median(seconds), 3),
        "gmacs_a_second": round(macs / machine.median(seconds) / 1e9, 1),
        "pieces": len(medians),
        "longest_ms": round(medians[longest], 1),
        "longest_macs": rounds[0][longest][1],
        "pieces_over_60_ms": sum(ms > 60 for ms in medians),
        "max_difference": difference,
    }


def _in_pieces(decoder: VideoDecoder, latents: Tensor, limit: int) -> tuple[Tensor, list[tuple[float, int]]]:
    """The pixels, and (seconds, multiply-adds) of each piece."""
    kept, volumes.MAX_REGION_MACS["cpu"] = volumes.MAX_REGION_MACS["cpu"], limit
    taken: list[tuple[float, int]] = []
    try:
        pieces = decoder.decode(latents)
        macs = next(pieces)
        while True:
            began = time.perf_counter()
            try:
                following = next(pieces)
            except StopIteration as end:
                return end.value, [*taken, (time.perf_counter() - began, macs)]
            taken.append((time.perf_counter() - began, macs))
            macs = following
    finally:
        volumes.MAX_REGION_MACS["cpu"] = kept


def _whole(theirs: Any, latents: Tensor) -> tuple[Tensor, list[tuple[float, int]]]:
    began = time.perf_counter()
    with torch.inference_mode():
        pixels = theirs(latents)
    return pixels, [(time.perf_counter() - began, 0)]


if __name__ == "__main__":
    main()
