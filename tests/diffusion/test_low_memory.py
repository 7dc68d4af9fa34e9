"""Ways to need less memory, through the whole workload: the same bits, or said otherwise; and every byte given back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from braid.diffusion.memory_plan import Offload
from braid.diffusion.models.ltx2.block_streaming import MappedBlocks
from braid.diffusion.models.ltx2.parts import Part
from braid.diffusion.transformer_source import OffloadedTransformer, StreamedTransformer, TransformerSource
from braid.diffusion.weight_bytes import WeightBytes
from braid.errors import CannotFit, InvalidRequest, MemoryPressure
from braid.llm_core.memory.arena import Arena
from braid.lora.adapter import AdapterUse
from braid.lora.apply import finish
from braid.tests.diffusion.models.ltx2.test_block_streaming import FakeTransfers
from braid.tests.diffusion.rig import BUDGET_BYTES, PIECE_MACS, World, digest, film, write_files

MakeSource = Callable[[World, Arena], TransformerSource]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_files(tmp_path_factory.mktemp("toy"))


def small(seed: int = 1, **changes: Any) -> Any:
    return film(seed, output_type="latents", **changes)


@pytest.fixture(scope="module")
def resident(folder: Path) -> dict[int, str]:
    world = World(folder)
    return {seed: digest(world.generate(small(seed))) for seed in (1, 2)}


def close(world: World) -> None:
    world.diffusion.close()
    usage = world.arena.usage()
    assert (usage.leased_bytes, usage.evictable_bytes, usage.by_owner) == (0, 0, {})


@pytest.mark.parametrize("offload", list(Offload))
def test_on_a_cpu_every_way_to_offload_gives_the_same_bits(
    folder: Path, resident: dict[int, str], offload: Offload
) -> None:
    world = World(folder, offload=offload.value)
    assert digest(world.generate(small())) == resident[1]
    close(world)


def test_streaming_on_a_cpu_makes_a_block_when_it_is_computed_with(folder: Path) -> None:
    world = World(folder, offload="stream")
    with world.diffusion._source.hold(world.diffusion._variants.acquire(())) as make:
        blocks = finish(make())._blocks
    assert isinstance(blocks, MappedBlocks)
    assert blocks[0] is not blocks[0]
    close(world)


def streamed(world: World, host: Arena) -> TransformerSource:
    diffusion = world.diffusion
    return StreamedTransformer(
        diffusion.checkpoint.transformer_config(),
        diffusion._weights,
        FakeTransfers(is_late=True),
        world.arena,
        host,
        device="cpu",
        max_piece_macs=PIECE_MACS,
    )


def offloaded(world: World, host: Arena) -> TransformerSource:
    diffusion = world.diffusion
    num_bytes = WeightBytes(diffusion.checkpoint, device_type="cuda").of(Part.TRANSFORMER).on_device
    return OffloadedTransformer(
        diffusion.checkpoint.transformer_config(), world.arena, num_bytes, device="cpu", max_piece_macs=PIECE_MACS
    )


def moved(folder: Path, make: MakeSource, host: Arena, arena: Arena | None = None) -> World:
    """A world whose transformer comes from the host, as on a GPU; both are this machine's memory."""
    world = World(folder, arena=arena)
    world.diffusion._source = world.diffusion.denoiser._source = make(world, host)
    return world


@pytest.mark.parametrize("is_pinned", [True, False], ids=["pinned", "staged"])
def test_streamed_blocks_give_the_bits_of_resident_ones_alone_and_beside_others(
    folder: Path, resident: dict[int, str], is_pinned: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("diffusion.transformer_source", "diffusion.models.ltx2.host_blocks"):  # the toy has but two blocks
        monkeypatch.setattr(f"braid.{module}.NUM_STAGES", 1)
    host = Arena(BUDGET_BYTES)
    world = moved(folder, streamed, host)
    ballast = host.lease("others", 0, kind="ballast")
    if not is_pinned:  # room for the stage of one evaluation; another with other adapters waits for it
        ballast.resize(BUDGET_BYTES - world.diffusion._source.host_room_bytes)
    for seed in (1, 2):
        world.submit(str(seed), small(seed))
    world.run()
    assert {seed: digest(world.result(str(seed))) for seed in (1, 2)} == resident
    assert "streamed blocks of the transformer" not in world.arena.usage().by_owner
    assert set(host.usage().by_owner) - {"others"} == {
        f"{'pinned' if is_pinned else 'staged'} blocks of the transformer"
    }
    close(world)
    ballast.release()
    assert host.usage().leased_bytes == 0, "pinned copies outlive their variant"


def test_blocks_are_pinned_one_at_a_time_and_once_for_all_who_wait(folder: Path) -> None:
    world = moved(folder, streamed, Arena(BUDGET_BYTES))
    num_blocks = world.diffusion.facts.num_blocks
    source, held = world.diffusion._source, world.diffusion._variants.acquire(())
    with source.hold(held) as make_one, source.hold(held) as make_other:
        one, other = make_one(), make_other()
        pieces = [next(making) for _ in range(2) for making in (one, other)]
        assert pieces[:2] == [0, 0] and pieces[2] == pieces[3] > 0
        assert len(list(one)) == num_blocks - 1
        (host,) = (copy.made for copy in source._pinned._copies)  # type: ignore[attr-defined]
        packed = dict(host._buffers)
        assert list(other) == [], "the other finds everything packed"
        assert list(make_other()) == [0]
        assert all(host._buffers[index] is buffer for index, buffer in packed.items()), "packed again"
    del host, one, other, make_one, make_other
    close(world)


def test_a_copy_of_the_transformer_yields_to_others_and_comes_back_on_use(
    folder: Path, resident: dict[int, str]
) -> None:
    world = moved(folder, offloaded, Arena(BUDGET_BYTES))
    source = world.diffusion._source
    assert isinstance(source, OffloadedTransformer)
    assert digest(world.generate(small(1))) == resident[1]
    assert world.arena.usage().by_owner["the transformer"] >= source.room_bytes
    everything = world.arena.available_bytes + world.arena.reclaimable_bytes()
    with world.arena.lease("a decoder", everything, kind="networks"):
        assert "the transformer" not in world.arena.usage().by_owner
        assert source._copies.reclaimable_bytes() == 0
    assert digest(world.generate(small(2))) == resident[2]
    close(world)


def test_a_copy_that_is_used_does_not_yield(folder: Path) -> None:
    world = moved(folder, offloaded, Arena(BUDGET_BYTES))
    source = world.diffusion._source
    assert isinstance(source, OffloadedTransformer)
    held = world.diffusion._variants.acquire(())
    with source.hold(held) as make:
        assert source._copies.reclaimable_bytes() == source._copies.reclaim(1) == 0
        assert finish(make()) is finish(make()), "copied twice"
    assert source._copies.reclaimable_bytes() == source.room_bytes
    close(world)


def test_evaluations_that_wait_for_the_same_copy_make_it_together(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("braid.diffusion.transformer_source.COPY_BYTES", 40_000)
    world = moved(folder, offloaded, Arena(BUDGET_BYTES))
    source, held = world.diffusion._source, world.diffusion._variants.acquire(())
    with source.hold(held) as make_one, source.hold(held) as make_other:
        one, other = make_one(), make_other()
        copied = [next(pieces) for _ in range(4) for pieces in (one, other)]
        assert all(0 < num_bytes <= 40_000 for num_bytes in copied[2:])
        assert len(list(one)) > 5, "one goes on while the other stands still"
        assert list(other) == [], "the other finds everything copied"
        assert finish(make_one()) is finish(make_other())
    close(world)


def test_where_there_is_room_for_one_copy_those_of_other_adapters_take_turns(folder: Path) -> None:
    world = moved(folder, offloaded, Arena(BUDGET_BYTES))
    source, variants = world.diffusion._source, world.diffusion._variants
    base, styled = variants.acquire(()), variants.acquire((AdapterUse("style", 1.0),))
    ballast = world.arena.lease("others", world.arena.available_bytes - source.room_bytes, kind="ballast")
    with source.hold(base) as make_base:
        finish(make_base())
        with pytest.raises(MemoryPressure):
            source.hold(styled).__enter__()
    with source.hold(styled) as make_styled:
        finish(make_styled())
        assert world.arena.usage().by_owner["the transformer"] == source.room_bytes, "the copy of the base is left"
        assert sum(copy.made is not None for copy in source._copies._copies) == 1, "bytes without a lease"
    styled.release()
    ballast.release()
    close(world)


def test_weights_in_8_bits_give_another_film_and_less_memory_is_needed(
    folder: Path, resident: dict[int, str]
) -> None:
    world = World(folder, quantization="fp8-cast")
    assert world.diffusion.quantization == "fp8-cast"
    stored = {tensor.dtype for tensor in world.diffusion._weights.values()}
    assert torch.float8_e4m3fn in stored
    assert digest(world.generate(small())) != resident[1]
    copied = sum(t.nbytes for t in world.diffusion._weights.values() if t.dtype == torch.float8_e4m3fn)
    assert world.arena.usage().by_owner["the transformer"] == copied
    close(world)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"offload": "disk"}, r"offload='disk' must be one of none, cpu, stream"),
        ({"quantization": "int4"}, r"quantization='int4' must be one of fp8-cast"),
    ],
)
def test_unknown_ways_are_refused_with_those_that_there_are(folder: Path, given: dict[str, str], message: str) -> None:
    with pytest.raises(InvalidRequest, match=message) as caught:
        World(folder, **given)
    assert caught.value.param in given


def test_a_job_too_large_for_the_budget_is_refused_and_takes_nothing(folder: Path) -> None:
    world = World(folder, arena=Arena(48 << 20), offload="stream")
    before = world.arena.usage().leased_bytes
    with pytest.raises(CannotFit, match=r"num_frames=\d+ would fit") as caught:
        world.diffusion.resolve(film(height=1024, width=1024, num_frames=121))
    assert caught.value.needed_bytes > caught.value.budget_bytes == 48 << 20
    assert "offload=" not in str(caught.value), "on a CPU there is nothing to offload from"
    assert world.arena.usage().leased_bytes == before
    close(world)


@pytest.mark.gpu
@pytest.mark.parametrize("offload", list(Offload))
def test_on_a_gpu_every_way_to_offload_gives_the_same_bits(folder: Path, offload: Offload) -> None:
    expected = digest(World(folder, device="cuda").generate(small()))
    host = Arena(BUDGET_BYTES)
    world = World(folder, device="cuda", offload=offload, host_arena=host)
    assert digest(world.generate(small())) == expected
    close(world)
    assert host.usage().leased_bytes == 0


@pytest.mark.gpu
def test_on_a_gpu_weights_in_8_bits_and_streamed_give_a_film(folder: Path) -> None:
    digests = [
        digest(World(folder, device="cuda", quantization="fp8-cast", offload=offload).generate(small()))
        for offload in Offload
    ]
    assert len(set(digests)) == 1
