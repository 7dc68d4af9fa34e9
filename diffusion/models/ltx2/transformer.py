"""The LTX-2 and LTX-2.3 transformer: latents of both streams to their velocities.

`LTX2Transformer(config, weights)` takes official tensors by name and never writes to them. `forward` runs at once;
`begin` gives the same computation in bounded pieces, and any grouping of the pieces gives the same bits, because what
is cut is decided by shapes alone. Samples of a batch are computed one after the other unless `together` is asked for,
so a guidance pass has the same bits alone and beside others. Knows no sampler, no guidance and no scheduler.

Source: specs of LTX-2, sections a.4 and a.5.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence

import torch
from torch import Tensor

from braid.diffusion.latents import AudioVideo
from braid.diffusion.models.ltx2.block import Block, StreamState, make_block, run_block
from braid.diffusion.models.ltx2.block_layout import BLOCKS
from braid.diffusion.models.ltx2.entry import Entry, Stream, StreamEnds, check_streams, make_ends
from braid.diffusion.models.ltx2.perturbation import ISOLATED, UNPERTURBED, Perturbation
from braid.diffusion.models.ltx2.transformer_config import TransformerConfig, check_tensors
from braid.errors import InvalidRequest

__all__ = ["ISOLATED", "UNPERTURBED", "ForwardPass", "LTX2Transformer", "Perturbation", "Stream", "denoised"]

MAX_PIECE_MACS = {"cpu": 2_000_000_000, "cuda": 3_000_000_000_000}
"""Multiply-adds of one piece, by type of device: about 40 ms of two CPU cores, 15 ms of a large GPU."""
Result = AudioVideo[Tensor]
Progress = Generator[int, None, Result]


def denoised(latents: Tensor, timesteps: Tensor, velocity: Tensor) -> Tensor:
    """The x0 estimate, latents - timesteps * velocity in float32, in the dtype of the latents.

    Args:
        timesteps: (B, T, 1); a token with 0 keeps its value.
    """
    return (latents.float() - timesteps.float() * velocity.float()).to(latents.dtype)


class ForwardPass:
    """A forward that is under way, and what lies between its pieces."""

    def __init__(self, pieces: Progress) -> None:
        self._pieces = pieces
        self._next_units: int | None = None
        self._result: Result | None = None
        self._step()

    @property
    def next_units(self) -> int | None:
        """Multiply-adds of the next piece; None once all are done, or after `close`."""
        return self._next_units

    def advance(self, max_units: int = 0) -> int:
        """Run the next piece, and further ones while all together stay within `max_units`.

        Returns:
            The multiply-adds that were done.
        """
        units = 0
        while self._next_units is not None and (units == 0 or units + self._next_units <= max_units):
            units += self._next_units
            self._step()
        return units

    def result(self) -> Result:
        """The velocities (B, T, out_channels) of each stream that was given; asked when all pieces are done."""
        assert self._result is not None, "pieces of the forward are left"
        return self._result

    def close(self) -> None:
        """Free what is held; the forward is no longer wanted."""
        self._pieces.close()
        self._next_units, self._result = None, None

    def _step(self) -> None:
        try:
            self._next_units = next(self._pieces)
        except StopIteration as stop:
            self._next_units, self._result = None, stop.value


class LTX2Transformer:
    """The network.

    Args:
        weights: by official names without prefix, as `expected_tensors(config)` lists them; fp8 may have scales.
        blocks: instead of those in `weights`: made by `make_block`, maybe only when they are asked for.
        max_piece_macs: of `ForwardPass` pieces, roughly; part of what decides the bits. None is by device.
    Raises:
        ModelFileError: tensors are missing or of another shape.
    """

    def __init__(
        self,
        config: TransformerConfig,
        weights: Mapping[str, Tensor],
        *,
        blocks: Sequence[Block] | None = None,
        max_piece_macs: int | None = None,
    ) -> None:
        self.config = config
        check_tensors(
            config,
            weights,
            what="transformer weights",
            is_needed=lambda name: blocks is None or not name.startswith(BLOCKS),
        )
        entry = weights["audio_patchify_proj.weight" if config.streams.video is None else "patchify_proj.weight"]
        self.dtype, self.device = entry.dtype, entry.device
        self.max_piece_macs = max_piece_macs or MAX_PIECE_MACS.get(self.device.type, MAX_PIECE_MACS["cpu"])
        self._ends = make_ends(config, weights, self.dtype)
        if blocks is None:
            blocks = tuple(make_block(config, weights, index, self.dtype) for index in range(config.num_layers))
        self._blocks = blocks

    def forward(
        self,
        streams: AudioVideo[Stream],
        perturbations: Perturbation | Sequence[Perturbation] = UNPERTURBED,
        *,
        together: bool = False,
    ) -> Result:
        """All pieces of `begin` at once."""
        forward_pass = self.begin(streams, perturbations, together=together)
        while forward_pass.advance():
            pass
        return forward_pass.result()

    def begin(
        self,
        streams: AudioVideo[Stream],
        perturbations: Perturbation | Sequence[Perturbation] = UNPERTURBED,
        *,
        together: bool = False,
    ) -> ForwardPass:
        """Prepare a forward; nothing is computed yet.

        Args:
            streams: one may be None even where the model has both.
            perturbations: of all samples, or one for each.
            together: compute a batch as one, faster for many small samples; bits then depend on their number.
        Raises:
            InvalidRequest: a tensor's shape does not fit.
        """
        num_samples = check_streams(self.config, streams)
        each = [perturbations] * num_samples if isinstance(perturbations, Perturbation) else list(perturbations)
        if len(each) != num_samples:
            raise InvalidRequest(f"there are {len(each)} perturbations for a batch of {num_samples}")
        if together or num_samples == 1:
            return ForwardPass(self._run(streams, each))
        return ForwardPass(self._run_one_by_one(streams, each))

    def _run_one_by_one(self, streams: AudioVideo[Stream], perturbations: Sequence[Perturbation]) -> Progress:
        results = []
        for index, perturbation in enumerate(perturbations):
            results.append((yield from self._run(_sample(streams, index), [perturbation])))
        videos = [result.video for result in results if result.video is not None]
        audios = [result.audio for result in results if result.audio is not None]
        return AudioVideo(torch.cat(videos) if videos else None, torch.cat(audios) if audios else None)

    def _run(self, streams: AudioVideo[Stream], perturbations: Sequence[Perturbation]) -> Progress:
        entries = AudioVideo(
            self._entry(self._ends.video, streams.video, streams.audio),
            self._entry(self._ends.audio, streams.audio, streams.video),
        )
        video = None if entries.video is None else (yield from entries.video.enter())
        audio = None if entries.audio is None else (yield from entries.audio.enter())
        states: AudioVideo[StreamState] = AudioVideo(video, audio)
        for index in range(self.config.num_layers):
            yield from run_block(self._blocks[index], states, perturbations, self.max_piece_macs)
        return AudioVideo(
            None if entries.video is None or video is None else (yield from entries.video.leave(video)),
            None if entries.audio is None or audio is None else (yield from entries.audio.leave(audio)),
        )

    def _entry(self, ends: StreamEnds | None, stream: Stream | None, other: Stream | None) -> Entry | None:
        if ends is None or stream is None:
            return None
        return Entry(self.config, ends, stream, other, self.dtype, self.device, self.max_piece_macs)


def _sample(streams: AudioVideo[Stream], index: int) -> AudioVideo[Stream]:
    return streams.map(lambda stream: stream.sample(index))
