"""The networks of one checkpoint: each is built when it is first wanted, and forgotten when its bytes are.

What is mapped yields by itself. Copies (on a device, or in another dtype) are leased; those of networks that nobody
uses now are given back to whoever is short of memory, and made again from the file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from torch import Tensor

from braid.diffusion.models.ltx2.block_layout import in_entry_dtype
from braid.diffusion.models.ltx2.config import Section
from braid.diffusion.models.ltx2.fp8_cast import fp8_cast
from braid.diffusion.models.ltx2.parts import SECTIONS, Part
from braid.diffusion.models.ltx2.statistics import LatentStatistics, read_statistics
from braid.diffusion.weight_bytes import WeightBytes
from braid.llm_core.memory.arena import Arena, Lease

RECLAIM_ORDER = 10
_MODELS = "braid.diffusion.models.ltx2"
_BUILDERS = {
    Part.TEXT_PROJECTION: (f"{_MODELS}.text_projection", "TextProjection"),
    Part.VIDEO_ENCODER: (f"{_MODELS}.video_vae", "VideoEncoder"),
    Part.VIDEO_DECODER: (f"{_MODELS}.video_vae", "VideoDecoder"),
    Part.AUDIO_ENCODER: (f"{_MODELS}.audio_vae", "AudioEncoder"),
    Part.AUDIO_DECODER: (f"{_MODELS}.audio_vae", "AudioDecoder"),
    Part.VOCODER: (f"{_MODELS}.vocoder", "Vocoder"),
}
"""Module and class of each, imported when they are wanted: some take seconds."""


@dataclass(slots=True)
class _Resident:
    """A network in memory, its bytes, and how many are using it."""

    network: Any
    leases: tuple[Lease, ...]
    num_copied: int
    num_users: int = 0


class Components:
    """Args:
    sizes: of the checkpoint's networks, as they are computed with.
    arena: of the device.
    host_arena: for what is mapped or copied on the host; the same on a CPU.
    device: where the networks run.
    """

    name = "idle networks of the video model"

    def __init__(self, sizes: WeightBytes, arena: Arena, host_arena: Arena, *, device: str = "cpu") -> None:
        self.checkpoint = sizes.checkpoint
        self.device = device
        self.dtype = sizes.dtype
        self._sizes = sizes
        self._arena = arena
        self._host_arena = host_arena
        self._resident: dict[str, _Resident] = {}
        self._kept: list[Lease] = []
        self.copied_bytes = 0
        """From the host to the device, ever."""
        arena.add_reclaimer(self, order=RECLAIM_ORDER)

    @contextmanager
    def using(self, part: Part | str) -> Iterator[Any]:
        """A network, which stays where it is inside the context.

        Raises:
            ModelFileError: the files do not have it.
            CannotFit, MemoryPressure: its copies do not fit, or not now.
        """
        found = self._resident.get(part) or self._load(part)
        with self._arena.lock:
            found.num_users += 1
        try:
            yield found.network
        finally:
            with self._arena.lock:
                found.num_users -= 1

    def is_resident(self, part: Part | str) -> bool:
        """Whether `using` will not have to load it."""
        return part in self._resident

    def transformer_weights(self, lasting_bytes: int, *, is_on_host: bool = False) -> dict[str, Tensor]:
        """Of the transformer, fp8 left as it is where it can be computed with; leased, and never given back.

        Args:
            lasting_bytes: what of it stays on the device until `close`.
            is_on_host: leave the tensors there, for a `TransformerSource` that moves them.
        """
        part = Part.TRANSFORMER
        self._kept.append(self._arena.lease("the transformer", lasting_bytes, kind="networks", permanent=True))
        self._kept.append(self._lease_file(part))
        if is_on_host:
            copied = self._sizes.of(part).copied
            self._kept.append(self._host_arena.lease("the transformer", copied, kind="host copies", permanent=True))
        with self._loading(part, stays_on_host=is_on_host):
            weights = self.checkpoint.weights(part, self.dtype, keep_float8=not self._sizes.is_fp8_cast)
            if self._sizes.is_fp8_cast:
                weights = fp8_cast(weights)
            weights = in_entry_dtype(weights)
            return weights if is_on_host else self._on_device(weights)

    def weights(self, part: Part) -> dict[str, Tensor]:
        """The tensors of a part where they are computed with; not kept here."""
        return self._on_device(self.checkpoint.weights(part, self._sizes.dtype_of(part)))

    def video_statistics(self) -> LatentStatistics:
        """By which video latents are normalised."""
        part = next(part for part in (Part.VIDEO_DECODER, Part.VIDEO_ENCODER) if self.checkpoint.has(part))
        num_channels = self.checkpoint.geometry.video.num_channels
        return read_statistics("the video autoencoder", self.checkpoint.weights(part), num_channels)

    # -- memory --------------------------------------------------------------------------------------------------------

    def reclaimable_bytes(self) -> int:
        return sum(found.num_copied for found in self._resident.values() if not found.num_users)

    def reclaim(self, num_bytes: int) -> int:
        released = 0
        for part in [part for part, found in self._resident.items() if not found.num_users and found.num_copied]:
            if released >= num_bytes:
                break
            released += self._resident[part].num_copied
            self._drop(part)
        return released

    def close(self) -> None:
        """Forget all networks."""
        with self._arena.lock:
            self._arena.remove_reclaimer(self)
            for part in list(self._resident):
                self._drop(part)
            for lease in self._kept:
                lease.release()

    def _drop(self, part: str) -> None:
        found = self._resident.pop(part)
        found.network = None
        for lease in found.leases:
            lease.release()

    def _load(self, part: Part | str) -> _Resident:
        copied = self._sizes.of(part).on_device
        leases = [self._arena.lease(f"the {_name(part)}", copied, kind="networks")]
        try:
            leases.append(self._lease_file(part))
            with self._loading(part):
                found = _Resident(self._build(part), tuple(leases), copied)
        except BaseException:
            for lease in leases:
                lease.release()
            raise
        with self._arena.lock:
            self._resident[part] = found
        return found

    def _lease_file(self, part: Part | str) -> Lease:
        """What is mapped; of a file larger than the host's memory, the system keeps what there is room for."""
        arena, num_bytes = self._host_arena, self._sizes.of(part).in_file
        if arena is not self._arena:
            num_bytes = min(num_bytes, arena.budget_bytes)
        return arena.lease(f"the file of the {_name(part)}", num_bytes, kind="mapped weights", evictable=True)

    def _loading(self, part: Part | str, *, stays_on_host: bool = False) -> Lease:
        """What is on the host until the network is where it computes."""
        found = self._sizes.of(part)
        num_bytes = found.passing if stays_on_host or self.device == "cpu" else found.passing + found.copied
        return self._host_arena.lease(f"loading the {_name(part)}", num_bytes, kind="host copies")

    # -- building ------------------------------------------------------------------------------------------------------

    def _build(self, part: Part | str) -> Any:
        if not isinstance(part, Part):
            return self._build_upsampler()
        section = self.checkpoint.config.section(SECTIONS[part])
        return builder(part)(section, self.weights(part))

    def _build_upsampler(self) -> Any:
        from braid.diffusion.models.ltx2.upsampler import LatentUpsampler

        self.checkpoint.require((), upsampler=True)
        upsampler = self.checkpoint.upsampler
        assert upsampler is not None
        weights = self._on_device(upsampler.weights(self.dtype))
        return LatentUpsampler(upsampler.section, weights, self.video_statistics())

    def _on_device(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        if self.device == "cpu":
            return weights
        self.copied_bytes += sum(tensor.nbytes for tensor in weights.values())
        return {name: tensor.to(self.device) for name, tensor in weights.items()}


def _name(part: Part | str) -> str:
    return part.value if isinstance(part, Part) else part


def builder(part: Part) -> Callable[[Section, dict[str, Tensor]], Any]:
    """What makes a network of its section of the config and its weights."""
    module, name = _BUILDERS[part]
    found: Callable[[Section, dict[str, Tensor]], Any] = getattr(import_module(module), name)
    return found
