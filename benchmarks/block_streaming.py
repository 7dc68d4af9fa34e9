"""What does streaming transformer blocks from the host cost in time and save in memory, are the results the same, and
how good are predictions of peak memory?

Physical limit: a forward cannot be faster than copying its blocks over the bus, nor than computing them; with copies
hidden behind computing it takes the longer of the two. The network has the official sizes of LTX-2.3 but fewer blocks
(all are alike), random weights, and 24 fps.

    python benchmarks/block_streaming.py [--layers 12] [--tokens 1536 6144 24576] [--runs 10]
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from braid.benchmarks import machine
from braid.diffusion.latents import AudioVideo
from braid.diffusion.models.ltx2.block_layout import outside_blocks
from braid.diffusion.models.ltx2.block_streaming import StreamedBlocks, slot_bytes
from braid.diffusion.models.ltx2.forward_memory import StreamShape, forward_bytes
from braid.diffusion.models.ltx2.fp8_cast import fp8_cast
from braid.diffusion.models.ltx2.host_blocks import PinnedBlocks, StagedBlocks
from braid.diffusion.models.ltx2.transfers import CudaTransfers
from braid.diffusion.models.ltx2.transformer import LTX2Transformer, Stream
from braid.diffusion.models.ltx2.transformer_config import StreamConfig, TransformerConfig, expected_tensors

VIDEO = StreamConfig(128, 128, num_heads=32, head_dim=128, context_dim=4096, max_pos=(20.0, 2048.0, 2048.0))
AUDIO = StreamConfig(128, 128, num_heads=32, head_dim=64, context_dim=2048, max_pos=(20.0,))
TEXT_TOKENS, AUDIO_TOKENS, DTYPE = 1024, 126, torch.bfloat16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--tokens", type=int, nargs="+", default=[1536, 6144, 24576])
    parser.add_argument("--runs", type=int, default=10)
    options = parser.parse_args()
    config = TransformerConfig(AudioVideo(VIDEO, AUDIO), num_layers=options.layers)
    weights = random_weights(config)
    transfers = CudaTransfers("cuda")
    hosts = {}
    for name, source in (("pinned", PinnedBlocks), ("staged", StagedBlocks)):
        began = time.perf_counter()
        hosts[name] = source(config, weights, DTYPE, transfers)
        print(f"{name}: packed in {time.perf_counter() - began:.2f} s, {hosts[name].host_bytes / 2**20:.0f} MiB pinned")
    ends = on_gpu(outside_blocks(weights))
    variants: dict[str, Callable[[], LTX2Transformer]] = {
        "resident": lambda: LTX2Transformer(config, on_gpu(weights)),
        "fp8": lambda: LTX2Transformer(config, on_gpu(fp8_cast(weights))),
    }
    for name, host in hosts.items():
        variants[name] = lambda host=host: LTX2Transformer(  # type: ignore[misc]
            config, ends, blocks=StreamedBlocks(config, host, DTYPE, transfers)
        )
    bus = bus_gigabytes(hosts["pinned"], transfers)
    rows = []
    with torch.inference_mode():
        for name, make in variants.items():
            rows += measure(name, make, config, options.tokens, options.runs)
    device = torch.cuda.get_device_name()
    slots = slot_bytes(hosts["pinned"])
    print(json.dumps({**machine.describe(), "device": device, "bus_gb_s": bus, "slot_bytes": slots, "rows": rows}))


REFERENCE: dict[int, AudioVideo[Tensor]] = {}


def measure(
    name: str, make: Callable[[], LTX2Transformer], config: TransformerConfig, sizes: list[int], runs: int
) -> list[dict[str, Any]]:
    """One variant at every size: time, memory beyond what it holds between forwards, and its results."""
    before = torch.cuda.memory_allocated()
    transformer = make()
    rows = []
    for num_tokens in sizes:
        streams = random_streams(num_tokens)
        result = transformer.forward(streams)
        torch.cuda.synchronize()
        held = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        samples = []
        for _ in range(runs):
            began = time.perf_counter()
            transformer.forward(streams)
            torch.cuda.synchronize()
            samples.append((time.perf_counter() - began) * 1e3)
        shapes = AudioVideo(StreamShape(num_tokens, TEXT_TOKENS), StreamShape(AUDIO_TOKENS, TEXT_TOKENS))
        predicted = forward_bytes(config, shapes, DTYPE, device_type="cuda", is_fp8_cast=name == "fp8")
        given = sum(t.nbytes for s in streams.present() for t in (s.latents, s.positions, s.context))
        reference = REFERENCE.setdefault(num_tokens, result)
        rows.append(
            {
                "variant": name,
                "tokens": num_tokens,
                "median_ms": machine.median(samples),
                "p95_ms": machine.p95(samples),
                "weights_mib": (held - before) / 2**20,
                "peak_mib": (torch.cuda.max_memory_allocated() - held + given) / 2**20,
                "predicted_mib": predicted / 2**20,
                "is_equal": all(map(torch.equal, result.present(), reference.present())),
                "relative_error": relative_error(result, reference),
            }
        )
        shown = {key: float(f"{value:.4g}") if isinstance(value, float) else value for key, value in rows[-1].items()}
        print(shown, flush=True)
    return rows


def relative_error(result: AudioVideo[Tensor], reference: AudioVideo[Tensor]) -> float:
    """Of the video velocity, root mean square over root mean square."""
    assert result.video is not None
    assert reference.video is not None
    ours, theirs = result.video.float(), reference.video.float()
    return float((ours - theirs).norm() / theirs.norm())


def bus_gigabytes(host: PinnedBlocks, transfers: CudaTransfers) -> float:
    """GB a second of copies of whole blocks, nothing else going on."""
    target = transfers.empty(slot_bytes(host, 1))
    num_bytes = 0
    mark = host.begin_copy(0, target, after=transfers.now())()
    transfers.finish(mark)
    began = time.perf_counter()
    for index, layout in enumerate(host.layouts):
        mark = host.begin_copy(index, target, after=transfers.now())()
        num_bytes += layout.num_bytes
    transfers.finish(mark)
    return num_bytes / (time.perf_counter() - began) / 1e9


def random_weights(config: TransformerConfig) -> dict[str, Tensor]:
    """On the host; made on the GPU, where drawing them takes no time."""
    generator = torch.Generator("cuda").manual_seed(1)
    return {
        name: (torch.randn(shape, generator=generator, device="cuda") / shape[-1] ** 0.5).to(DTYPE).cpu()
        for name, shape in expected_tensors(config).items()
    }


def on_gpu(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.cuda() for name, tensor in weights.items()}


def random_streams(num_tokens: int) -> AudioVideo[Stream]:
    return AudioVideo(random_stream(VIDEO, num_tokens), random_stream(AUDIO, AUDIO_TOKENS))


def random_stream(config: StreamConfig, num_tokens: int) -> Stream:
    """A tenth of the tokens is kept."""
    generator = torch.Generator("cuda").manual_seed(num_tokens)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device="cuda")

    starts = drawn(1, len(config.max_pos), num_tokens, 1).abs()
    return Stream(
        latents=drawn(1, num_tokens, config.in_channels).to(DTYPE),
        sigma=torch.tensor([0.7]),
        timesteps=(torch.arange(num_tokens) % 10 > 0).float()[None] * 0.7,
        positions=torch.cat((starts, starts + 1), dim=-1),
        context=drawn(1, TEXT_TOKENS, config.context_dim).to(DTYPE),
    )


if __name__ == "__main__":
    main()
