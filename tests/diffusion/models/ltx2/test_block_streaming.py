"""Streamed blocks: the bits of resident ones, whatever the copies do and whoever comes between."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from braid.diffusion.latents import AudioVideo
from braid.diffusion.models.ltx2.block_layout import ALIGNMENT, block_layouts, outside_blocks
from braid.diffusion.models.ltx2.block_streaming import MappedBlocks, ReadAhead, StreamedBlocks, slot_bytes
from braid.diffusion.models.ltx2.checkpoint import open_ltx2
from braid.diffusion.models.ltx2.fp8_cast import fp8_cast
from braid.diffusion.models.ltx2.host_blocks import HostBlocks, PinnedBlocks, StagedBlocks
from braid.diffusion.models.ltx2.parts import Part
from braid.diffusion.models.ltx2.transfers import CudaTransfers, Transfers
from braid.diffusion.models.ltx2.transformer import LTX2Transformer
from braid.diffusion.models.ltx2.transformer_config import TransformerConfig
from braid.errors import ModelFileError
from braid.llm_core.memory.arena import Arena
from braid.lora.adapter import AdapterUse
from braid.lora.apply import merged
from braid.lora.store import AdapterStore
from braid.lora.targets import Targets
from braid.tests.diffusion.models.ltx2.test_transformer import (
    AUDIO,
    VIDEO,
    assert_equal,
    random_stream,
    random_streams,
    random_weights,
)
from braid.tests.tiny_ltx2 import write_checkpoint, write_distilled_lora

CONFIG = TransformerConfig(AudioVideo(VIDEO, AUDIO), num_layers=5)
POISON = 0xFF
"""A byte that makes a NaN of every number."""
Source = Callable[[TransformerConfig, Mapping[str, Tensor], torch.dtype, Transfers], HostBlocks]
SOURCES = [PinnedBlocks, StagedBlocks]


class FakeTransfers:
    """Copies as late as is allowed, when somebody waits for them, or as early, when they are asked for."""

    def __init__(self, *, is_late: bool) -> None:
        self._is_late = is_late
        self._pending: list[tuple[Tensor, Tensor, bool]] = []
        self._num_done = self._num_asked = 0
        self.num_buffers = 0

    def empty(self, num_bytes: int) -> Tensor:
        self.num_buffers += 1
        return torch.full((num_bytes,), POISON, dtype=torch.uint8)

    def pinned(self, num_bytes: int) -> Tensor:
        return torch.full((num_bytes,), POISON, dtype=torch.uint8)

    def now(self) -> int:
        return 0

    def copy(self, target: Tensor, source: Tensor, *, after: int) -> int:
        self._pending.append((target, source, torch.is_inference_mode_enabled()))
        self._num_asked += 1
        if not self._is_late:
            self.wait(self._num_asked)
        return self._num_asked

    def wait(self, mark: int) -> None:
        while self._num_done < mark:
            target, source, is_inference = self._pending.pop(0)
            with torch.inference_mode(is_inference):
                target.fill_(POISON)
                target.copy_(source)
            self._num_done += 1

    finish = wait


def streamed(
    weights: Mapping[str, Tensor], transfers: Transfers, source: Source = PinnedBlocks, num_slots: int = 2
) -> LTX2Transformer:
    dtype = weights["patchify_proj.weight"].dtype
    host = source(CONFIG, weights, dtype, transfers)
    blocks = StreamedBlocks(CONFIG, host, dtype, transfers, num_slots=num_slots)
    return LTX2Transformer(CONFIG, outside_blocks(weights), blocks=blocks, max_piece_macs=20_000)


def resident(weights: Mapping[str, Tensor]) -> LTX2Transformer:
    return LTX2Transformer(CONFIG, weights, max_piece_macs=20_000)


@pytest.mark.parametrize("is_late", [False, True], ids=["early", "late"])
@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("num_slots", [2, 9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_streamed_blocks_give_the_bits_of_resident_ones(
    dtype: torch.dtype, num_slots: int, source: Source, is_late: bool
) -> None:
    weights = random_weights(CONFIG, dtype)
    transfers = FakeTransfers(is_late=is_late)
    transformer = streamed(weights, transfers, source, num_slots)
    for num_tokens in (1, 23):
        streams = random_streams(video_tokens=num_tokens)
        assert_equal(transformer.forward(streams), resident(weights).forward(streams))
    assert transfers.num_buffers == min(num_slots, CONFIG.num_layers)


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("is_late", [False, True], ids=["early", "late"])
def test_forwards_that_take_turns_do_not_disturb_each_other(is_late: bool, source: Source) -> None:
    weights = random_weights(CONFIG)
    transfers = FakeTransfers(is_late=is_late)
    transformer = streamed(weights, transfers, source)
    inputs = [random_streams(video_tokens=num_tokens) for num_tokens in (9, 33, 57)]
    forwards = [transformer.begin(streams) for streams in inputs]
    while any(forward.next_units is not None for forward in forwards):
        for forward in forwards:
            forward.advance()
    for forward, streams in zip(forwards, inputs, strict=True):
        assert_equal(forward.result(), resident(weights).forward(streams))
    assert transfers.num_buffers > 2


@pytest.mark.parametrize("source", SOURCES)
def test_slots_that_are_made_in_inference_mode_can_be_used_outside_and_the_other_way_round(source: Source) -> None:
    weights, streams = random_weights(CONFIG), random_streams()
    expected = resident(weights).forward(streams)
    with torch.inference_mode():
        inside = streamed(weights, FakeTransfers(is_late=True), source)
        assert_equal(inside.forward(streams), expected)
    assert_equal(inside.forward(streams), expected)
    outside = streamed(weights, FakeTransfers(is_late=False), source)
    with torch.inference_mode():
        assert_equal(outside.forward(streams), expected)


def test_a_forward_that_is_abandoned_does_not_disturb_the_next() -> None:
    weights = random_weights(CONFIG)
    transfers = FakeTransfers(is_late=True)
    transformer = streamed(weights, transfers)
    streams = random_streams(video_tokens=40)
    for num_pieces in (1, 9, 17):
        abandoned = transformer.begin(streams)
        for _ in range(num_pieces):
            abandoned.advance()
        abandoned.close()
        assert_equal(transformer.forward(streams), resident(weights).forward(streams))
    assert transfers.num_buffers == 2


def test_tables_and_norms_are_packed_in_the_dtype_of_the_network() -> None:
    weights = random_weights(CONFIG, torch.bfloat16)
    mixed = {
        name: tensor.float() if "scale_shift_table" in name or "_norm." in name else tensor
        for name, tensor in weights.items()
    }
    streams = random_streams(video_tokens=8)
    assert_equal(
        streamed(mixed, FakeTransfers(is_late=True)).forward(streams), resident(mixed).forward(streams)
    )
    (layout, *_) = block_layouts(CONFIG, mixed, torch.bfloat16)
    assert {tensor.dtype for tensor in layout.tensors} == {torch.bfloat16}
    assert all(tensor.offset % ALIGNMENT == 0 for tensor in layout.tensors)


@pytest.mark.parametrize("source", SOURCES)
def test_fp8_weights_are_streamed_as_they_are_stored(source: Source) -> None:
    weights = fp8_cast(random_weights(CONFIG, torch.bfloat16))
    scaled = "transformer_blocks.3.attn1.to_q"  # only this block's layout has scales
    weights |= {f"{scaled}.weight_scale": torch.tensor(0.5), f"{scaled}.input_scale": torch.tensor([0.25])}
    transfers = FakeTransfers(is_late=True)
    transformer = streamed(weights, transfers, source)
    streams = random_streams(video_tokens=8)
    assert_equal(transformer.forward(streams), resident(weights).forward(streams))


def test_slots_are_as_large_as_the_largest_block_and_host_memory_as_all_of_them() -> None:
    weights = random_weights(CONFIG)
    transfers = FakeTransfers(is_late=False)
    pinned = PinnedBlocks(CONFIG, weights, torch.float32, transfers)
    stored = sum(tensor.nbytes for name, tensor in weights.items() if name.startswith("transformer_blocks."))
    padding = ALIGNMENT * len(weights)
    assert stored <= pinned.host_bytes <= stored + padding
    assert slot_bytes(pinned, 3) == 3 * max(layout.num_bytes for layout in pinned.layouts)
    staged = StagedBlocks(CONFIG, weights, torch.float32, transfers)
    assert staged.host_bytes == 2 * max(layout.num_bytes for layout in staged.layouts)


def test_blocks_that_do_not_fit_the_config_are_refused() -> None:
    weights = random_weights(CONFIG)
    transfers = FakeTransfers(is_late=False)
    missing = {name: tensor for name, tensor in weights.items() if name != "transformer_blocks.4.ff.net.2.bias"}
    with pytest.raises(ModelFileError, match=r"transformer_blocks\.4\.ff\.net\.2\.bias is missing"):
        PinnedBlocks(CONFIG, missing, torch.float32, transfers)
    misshapen = weights | {"transformer_blocks.1.attn1.to_q.weight": torch.zeros(3, 3)}
    with pytest.raises(ModelFileError, match=r"to_q\.weight is \(3, 3\) and must be"):
        StagedBlocks(CONFIG, misshapen, torch.float32, transfers)
    with pytest.raises(ValueError, match="num_slots=1"):
        streamed(weights, transfers, num_slots=1)


def test_a_mapped_file_is_read_ahead_of_the_block_that_comes_next(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "model.safetensors")
    checkpoint = open_ltx2(tmp_path / "model.safetensors")
    config, weights = checkpoint.transformer_config(), checkpoint.weights(Part.TRANSFORMER)
    asked: list[int] = []
    read_ahead = ReadAhead(checkpoint.parts[Part.TRANSFORMER].values())

    def will_need(index: int) -> None:
        asked.append(index)
        read_ahead(index)

    blocks = MappedBlocks(config, weights, torch.float32, will_need=will_need)
    name = "transformer_blocks.1.attn1.to_q.weight"
    assert blocks[1].streams.video.self_attention.to_q.weight.data_ptr() == weights[name].data_ptr()  # type: ignore
    assert blocks[0].index == 0
    assert asked == [0, 1]
    assert len(blocks) == config.num_layers


def test_merged_adapters_are_packed_once_and_the_base_stays(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "model.safetensors")
    write_distilled_lora(tmp_path / "lora.safetensors")
    checkpoint = open_ltx2(tmp_path / "model.safetensors")
    config, base = checkpoint.transformer_config(), checkpoint.weights(Part.TRANSFORMER)
    before = {name: tensor.clone() for name, tensor in base.items()}
    targets = Targets(base)
    store = AdapterStore(targets, arena=Arena(1 << 30))
    store.add("distilled", tmp_path / "lora.safetensors")
    variant = merged(base, targets, store.active([AdapterUse("distilled", 0.5)]))
    transfers = FakeTransfers(is_late=True)
    host = PinnedBlocks(config, variant, torch.float32, transfers)
    blocks = StreamedBlocks(config, host, torch.float32, transfers)
    for index in range(config.num_layers):
        streams = blocks[index].streams
        assert streams.video is not None
        name = f"transformer_blocks.{index}.attn1.to_q.weight"
        ours = streams.video.self_attention.to_q.weight  # type: ignore[attr-defined]
        assert torch.equal(ours, variant[name])
        assert not torch.equal(ours, base[name])
    assert all(torch.equal(base[name], tensor) for name, tensor in before.items())


# -- on a GPU ----------------------------------------------------------------------------------------------------------


def on_gpu(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.cuda() for name, tensor in weights.items()}


@pytest.mark.gpu
@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_on_a_gpu_streamed_blocks_give_the_bits_of_resident_ones(dtype: torch.dtype, source: Source) -> None:
    video = replace(VIDEO, num_heads=8, head_dim=64, context_dim=512)
    audio = replace(AUDIO, num_heads=8, head_dim=32, context_dim=256)
    config = TransformerConfig(AudioVideo(video, audio), num_layers=12)
    weights, transfers = random_weights(config, dtype), CudaTransfers("cuda")
    host = source(config, weights, dtype, transfers)
    blocks = StreamedBlocks(config, host, dtype, transfers)
    ours = LTX2Transformer(config, on_gpu(outside_blocks(weights)), blocks=blocks)
    theirs = LTX2Transformer(config, on_gpu(weights))
    for num_tokens in (5, 700):
        streams = AudioVideo(random_stream(video, 1, num_tokens), random_stream(audio, 1, 9))
        for _ in range(3):
            assert_equal(ours.forward(streams), theirs.forward(streams))
