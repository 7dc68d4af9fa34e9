"""Is one forward of the LTX-2.3 transformer on this CPU slower than diffusers' with the same weights, and where does
its time go? What does computing AdaLN once per distinct timestep save?

Runs of both alternate, after one of each to warm up; outputs are compared first. The limit is the rate of one large
matrix product of the same dtype. The baseline of AdaLN is ours with as many distinct timesteps as tokens, which is the
work that an implementation per token does.

    python benchmarks/dit_forward.py [--threads 2] [--runs 11] [--tokens 512 2048] [--dtypes float32 bfloat16]
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from braid.benchmarks import machine
from braid.diffusion.latents import AudioVideo
from braid.diffusion.models.ltx2.key_maps import official_transformer_name
from braid.diffusion.models.ltx2.transformer import LTX2Transformer, Stream
from braid.diffusion.models.ltx2.transformer_config import StreamConfig, TransformerConfig, expected_tensors

CHANNELS, HEADS, TEXT_TOKENS, AUDIO_TOKENS = 128, 6, 128, 26
SIGMA, GRID_ROWS, GRID_COLUMNS = 0.7, 8, 8
PARTS = {
    "products": ("addmm", "mkldnn_linear", "_linear", "mm", "linear"),
    "attention": ("_scaled_dot_product_flash_attention_for_cpu",),
    "gelu": ("gelu",),
    "norms": ("_fused_rms_norm", "rms_norm", "native_layer_norm", "rsqrt", "mean", "pow"),
}


@dataclass(frozen=True)
class Problem:
    """One size: what both are given."""

    name: str
    config: TransformerConfig
    streams: AudioVideo[Stream]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--runs", type=int, default=11)
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--tokens", type=int, nargs="+", default=[512, 2048])
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    config = make_config(options.width, options.layers)
    rows = []
    with torch.inference_mode():
        for name in options.dtypes:
            rows += measure_dtype(config, getattr(torch, name), options.tokens, options.runs)
    print(json.dumps({**machine.describe(), "torch": torch.__version__, "threads": options.threads, "rows": rows}))


def measure_dtype(config: TransformerConfig, dtype: torch.dtype, sizes: list[int], runs: int) -> list[dict[str, Any]]:
    """Every size and kind of timesteps, with one pair of models."""
    weights = random_weights(config, dtype)
    theirs, ours = diffusers_model(config, weights), LTX2Transformer(config, weights)
    peak = product_gflops(dtype)
    rows = []
    for num_tokens in sizes:
        for problem in (text_to_video(config, num_tokens), image_to_video(config, num_tokens)):
            row = compare(problem, ours, theirs, runs) | {"dtype": str(dtype).removeprefix("torch."), "peak": peak}
            rows.append(row)
            print(
                {key: float(f"{value:.4g}") if isinstance(value, float) else value for key, value in row.items()},
                flush=True,
            )
    return rows


def compare(problem: Problem, ours: LTX2Transformer, theirs: Any, runs: int) -> dict[str, Any]:
    """Times in ms, medians of alternating runs."""
    spread = spread_timesteps(problem.streams)
    calls: dict[str, Callable[[], Any]] = {
        "ours_ms": lambda: ours.forward(problem.streams),
        "diffusers_ms": lambda: call_diffusers(theirs, problem.streams),
        "per_token_adaln_ms": lambda: ours.forward(spread),
    }
    velocities, expected = calls["ours_ms"](), calls["diffusers_ms"]()
    pairs = zip(velocities.present(), expected, strict=True)
    difference = max(float((mine - other).abs().max()) for mine, other in pairs)
    times = alternate(calls, runs)
    macs = count_macs(ours, problem.streams)
    return {
        "case": problem.name,
        **times,
        "speedup": times["diffusers_ms"] / times["ours_ms"],
        "max_difference": difference,
        "gflops": 2e-6 * macs / times["ours_ms"],
        "parts": time_by_part(calls["ours_ms"]),
        "diffusers_parts": time_by_part(calls["diffusers_ms"]),
    }


def alternate(calls: dict[str, Callable[[], Any]], runs: int) -> dict[str, float]:
    """The median time of each, in ms, all of them run in turn."""
    samples: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(runs + 1):
        for name, call in calls.items():
            began = time.perf_counter()
            call()
            samples[name].append((time.perf_counter() - began) * 1e3)
    return {name: machine.median(times[1:]) for name, times in samples.items()}


def time_by_part(call: Callable[[], Any]) -> dict[str, float]:
    """Which share of a forward its kinds of operator take."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        call()
    shares = dict.fromkeys((*PARTS, "elementwise and rest"), 0.0)
    total = sum(event.self_cpu_time_total for event in profile.key_averages())
    for event in profile.key_averages():
        name = event.key.removeprefix("aten::")
        part = next((part for part, names in PARTS.items() if name in names), "elementwise and rest")
        shares[part] += event.self_cpu_time_total / total
    return {part: round(share, 3) for part, share in shares.items()}


def count_macs(ours: LTX2Transformer, streams: AudioVideo[Stream]) -> int:
    """Multiply-adds of a forward, as its pieces say."""
    forward_pass, total = ours.begin(streams), 0
    while macs := forward_pass.advance():
        total += macs
    return total


def product_gflops(dtype: torch.dtype) -> float:
    """The machine's rate in one large linear layer, the best of a few."""
    x, weight = torch.randn(2048, 1536).to(dtype), torch.randn(1536, 1536).to(dtype)
    best = 0.0
    for _ in range(8):
        began = time.perf_counter()
        torch.nn.functional.linear(x, weight)
        best = max(best, 2e-9 * 2048 * 1536 * 1536 / (time.perf_counter() - began))
    return best


def make_config(width: int, num_layers: int) -> TransformerConfig:
    """LTX-2.3 in small; with the cross-modal rule that diffusers has."""
    video = StreamConfig(CHANNELS, CHANNELS, HEADS, width // HEADS, width, (20.0, 2048.0, 2048.0))
    audio = StreamConfig(CHANNELS, CHANNELS, HEADS, width // HEADS // 2, width // 2, (20.0,))
    return TransformerConfig(AudioVideo(video, audio), num_layers, cross_modal_rule="other_sigma")


def random_weights(config: TransformerConfig, dtype: torch.dtype) -> dict[str, Tensor]:
    """Of a size that keeps hidden states near 1."""
    generator = torch.Generator().manual_seed(0)
    return {
        name: (torch.randn(shape, generator=generator) / shape[-1] ** 0.5 + (1.0 if "_norm." in name else 0.0)).to(
            dtype
        )
        for name, shape in expected_tensors(config).items()
    }


def text_to_video(config: TransformerConfig, num_tokens: int) -> Problem:
    """One timestep for all tokens."""
    sigma = torch.full((1,), SIGMA)
    video = _stream(config.streams.video, sigma, _grid(num_tokens))
    seconds = torch.arange(AUDIO_TOKENS, dtype=torch.float32) / 25
    audio = _stream(config.streams.audio, sigma, torch.stack((seconds, seconds + 0.04), -1)[None, None])
    return Problem(f"t2v {num_tokens}", config, AudioVideo(video, audio))


def image_to_video(config: TransformerConfig, num_tokens: int) -> Problem:
    """The first latent frame is kept, so that video tokens have two timesteps."""
    problem = text_to_video(config, num_tokens)
    video = problem.streams.video
    assert video is not None
    timesteps = video.timesteps.clone()
    timesteps[:, : GRID_ROWS * GRID_COLUMNS] = 0
    return Problem(f"i2v {num_tokens}", config, replace(problem.streams, video=replace(video, timesteps=timesteps)))


def spread_timesteps(streams: AudioVideo[Stream]) -> AudioVideo[Stream]:
    """Each token with a timestep of its own."""

    def spread(stream: Stream) -> Stream:
        return replace(stream, timesteps=torch.linspace(0.1, SIGMA, stream.timesteps.numel()).view_as(stream.timesteps))

    return AudioVideo(*(None if one is None else spread(one) for one in (streams.video, streams.audio)))


def _stream(config: StreamConfig | None, sigma: Tensor, positions: Tensor) -> Stream:
    assert config is not None
    num_tokens = positions.shape[2]
    generator = torch.Generator().manual_seed(num_tokens)
    return Stream(
        latents=torch.randn(1, num_tokens, config.in_channels, generator=generator),
        sigma=sigma,
        timesteps=sigma.expand(1, num_tokens, 1),
        positions=positions,
        context=torch.randn(1, TEXT_TOKENS, config.context_dim, generator=generator),
    )


def _grid(num_tokens: int) -> Tensor:
    """(1, 3, T, 2) positions, frame by frame."""
    frames = num_tokens // (GRID_ROWS * GRID_COLUMNS)
    axes = torch.meshgrid(*(torch.arange(n).float() for n in (frames, GRID_ROWS, GRID_COLUMNS)), indexing="ij")
    starts = torch.stack([axis.flatten() for axis in axes])
    scale = torch.tensor([8 / 24, 32, 32])[:, None]
    return torch.stack((starts * scale, (starts + 1) * scale), dim=-1)[None]


def diffusers_model(config: TransformerConfig, weights: dict[str, Tensor]) -> Any:
    """diffusers' class with our weights."""
    from diffusers.models.transformers.transformer_ltx2 import LTX2VideoTransformer3DModel

    video, audio = config.streams.video, config.streams.audio
    assert video is not None and audio is not None
    model = LTX2VideoTransformer3DModel(
        in_channels=video.in_channels,
        out_channels=video.out_channels,
        num_attention_heads=video.num_heads,
        attention_head_dim=video.head_dim,
        cross_attention_dim=video.context_dim,
        audio_in_channels=audio.in_channels,
        audio_out_channels=audio.out_channels,
        audio_num_attention_heads=audio.num_heads,
        audio_attention_head_dim=audio.head_dim,
        audio_cross_attention_dim=audio.context_dim,
        num_layers=config.num_layers,
        rope_type="split",
        gated_attn=True,
        cross_attn_mod=True,
        audio_gated_attn=True,
        audio_cross_attn_mod=True,
        use_prompt_embeddings=False,
        perturbed_attn=True,
    )
    names = {name: official_transformer_name(name) for name in model.state_dict()}
    model = model.to(next(iter(weights.values())).dtype).eval()
    model.load_state_dict({name: weights[official] for name, official in names.items()})
    return model


def call_diffusers(model: Any, streams: AudioVideo[Stream]) -> Any:
    video, audio = streams.video, streams.audio
    assert video is not None and audio is not None
    dtype = model.dtype
    return model(
        hidden_states=video.latents.to(dtype),
        audio_hidden_states=audio.latents.to(dtype),
        encoder_hidden_states=video.context.to(dtype),
        audio_encoder_hidden_states=audio.context.to(dtype),
        timestep=video.timesteps.flatten(1) * 1000,
        audio_timestep=audio.timesteps.flatten(1) * 1000,
        sigma=video.sigma * 1000,
        audio_sigma=audio.sigma * 1000,
        video_coords=video.positions,
        audio_coords=audio.positions,
        use_cross_timestep=True,
        return_dict=False,
    )


if __name__ == "__main__":
    main()
