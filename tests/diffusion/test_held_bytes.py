"""The ledger against the tensors: whatever memory the diffusion side's objects reach is leased."""

from __future__ import annotations

import gc
from collections.abc import Iterable
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from braid.diffusion.models.ltx2.block_layout import BLOCKS
from braid.diffusion.models.ltx2.parts import Part
from braid.diffusion.weight_bytes import UPSAMPLER
from braid.llm_core.memory.arena import Arena
from braid.llm_core.pipeline import Completed
from braid.lora.adapter import AdapterUse
from braid.lora.apply import finish
from braid.tests.diffusion.rig import BUDGET_BYTES, World, film, write_files
from braid.tests.diffusion.test_low_memory import streamed
from braid.tests.tiny_ltx2 import VIDEO_CHANNELS

NOT_FOLLOWED = (type, ModuleType, FunctionType)
"""What leads from a model to everything else there is."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_files(tmp_path_factory.mktemp("toy"))
    factors = load_file(folder / "style.safetensors")
    factors["diffusion_model.patchify_proj.lora_A.weight"] = torch.ones(2, VIDEO_CHANNELS)
    factors["diffusion_model.patchify_proj.lora_B.weight"] = torch.ones(32, 2)
    save_file(factors, folder / "style.safetensors")
    return folder


def storages(roots: Iterable[Any]) -> dict[int, int]:
    """Address and bytes of all tensor memory that can be reached."""
    found: dict[int, int] = {}
    seen: set[int] = set()
    waiting = list(roots)
    while waiting:
        thing = waiting.pop()
        if id(thing) in seen or isinstance(thing, NOT_FOLLOWED):
            continue
        seen.add(id(thing))
        if isinstance(thing, Tensor) and thing.device.type != "meta":
            storage = thing.untyped_storage()
            found[storage.data_ptr()] = storage.nbytes()
        waiting += gc.get_referents(thing)
    return found


def held(*roots: Any) -> int:
    """Bytes of all tensors that are no part of a mapped file."""
    lines = [line for line in Path("/proc/self/maps").read_text().splitlines() if line.endswith(".safetensors")]
    ends = [[int(end, 16) for end in line.split()[0].split("-")] for line in lines]
    files = [range(*pair) for pair in ends]
    found = storages(roots).items()
    return sum(num_bytes for address, num_bytes in found if not any(address in file for file in files))


def leased(arena: Arena, *owners: str) -> int:
    by_owner = arena.usage().by_owner
    return sum(by_owner.get(owner, 0) for owner in owners)


@pytest.mark.parametrize("options", [{}, {"dtype": torch.bfloat16}, {"quantization": "fp8-cast"}], ids=str)
def test_every_network_holds_what_it_leases(folder: Path, options: dict[str, Any]) -> None:
    world = World(folder, **options)
    components = world.diffusion._components
    assert held(world.diffusion._weights) == leased(world.arena, "the transformer")
    with world.diffusion._source.hold(world.diffusion._variants.acquire(())) as make:
        assert held(finish(make())) == leased(world.arena, "the transformer"), "the network copies its weights"
    for part in [*(part for part in Part if part is not Part.TRANSFORMER), UPSAMPLER]:
        with components.using(part) as network:
            constants = 172 if part is Part.VOCODER else 0  # its low-pass filters, which no file has
            assert held(network) == leased(world.arena, f"the {part}") + constants, part
    world.diffusion.close()


@pytest.mark.parametrize("is_pinned", [True, False], ids=["pinned", "staged"])
@pytest.mark.parametrize("adapters", [(), (AdapterUse("style", 1.0),)], ids=["base", "adapter"])
def test_streaming_holds_what_it_leases(
    folder: Path, adapters: tuple[AdapterUse, ...], is_pinned: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("diffusion.transformer_source", "diffusion.models.ltx2.host_blocks"):  # the toy has but two blocks
        monkeypatch.setattr(f"braid.{module}.NUM_STAGES", 1)
    world, host = World(folder), Arena(BUDGET_BYTES)
    source, variants = streamed(world, host), world.diffusion._variants
    if not is_pinned:
        host.lease("others", BUDGET_BYTES - source.host_room_bytes, kind="ballast")
    weights = variants.acquire(adapters)
    merged = leased(world.arena, variants.name)
    assert held(weights.weights) == merged
    with source.hold(weights) as make:
        transformer = finish(make())
        for index in range(len(transformer._blocks)):
            transformer._blocks[index]
        outside = sum(
            tensor.nbytes for name, tensor in weights.weights.items()
            if not name.startswith(BLOCKS) and tensor is not world.diffusion._weights[name]
        )  # fmt: skip
        assert bool(outside) == bool(adapters)
        # On a device these are copies of what was merged; here they are the same tensors.
        moved = leased(world.arena, "streamed blocks of the transformer") - outside
        kept = leased(host, "pinned blocks of the transformer", "staged blocks of the transformer")
        assert held(transformer, source) == merged + moved + kept
    weights.release()
    del transformer
    world.diffusion.close()


def test_a_film_holds_its_latents_and_frames_from_its_first_checkpoint_to_its_end(folder: Path) -> None:
    world = World(folder)
    world.submit("film", film())
    seen = []
    while world.scheduler.run_once():
        if world.states.get("film") and not isinstance(world.events["film"][-1], Completed):
            seen.append(leased(world.arena, "films under way"))
    result = world.result("film")
    assert result.frames is not None
    assert len(set(seen)) == 1 and seen[0] >= result.frames.nbytes + held(result.latents)
    assert leased(world.arena, "films under way") == 0
    world.diffusion.close()


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_cancelled_film_holds_nothing(folder: Path, when: str) -> None:
    world = World(folder)
    world.submit("film", film())
    while when == "after" and not leased(world.arena, "films under way"):
        world.scheduler.run_once()
    world.scheduler.cancel("film")
    world.run()
    assert leased(world.arena, "films under way") == 0
    world.diffusion.close()


def test_films_that_do_not_fit_beside_one_another_come_one_after_the_other(folder: Path) -> None:
    alone = World(folder)
    needs = alone.diffusion._needs(alone.diffusion.resolve(film()))[0][1]
    alone.diffusion.close()
    world = World(folder)
    ballast = world.arena.lasting_bytes - (needs.largest + 2 * needs.kept - 1)
    world.arena.lease("others", ballast, kind="ballast", permanent=True)
    for name in ("one", "two", "three"):
        world.submit(name, film())
    most = 0
    while world.scheduler.run_once():
        most = max(most, leased(world.arena, "films under way"))
    assert most == needs.kept
    for name in ("one", "two", "three"):
        assert world.result(name).frames is not None
    world.diffusion.close()
