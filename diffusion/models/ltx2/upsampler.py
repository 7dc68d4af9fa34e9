"""The latent upsampler: video latents of more rows and columns, or of more frames, without a way through pixels.

Built of diffusers' network, which agrees with the official one to the bit and has the official names.

Source: specs/ltx2.md, section a.9.
"""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from braid.diffusion.models.ltx2.config import Section
from braid.diffusion.models.ltx2.modules import Pieces, build_module, finish, without_memory, work
from braid.diffusion.models.ltx2.peak_memory import peak_bytes
from braid.diffusion.models.ltx2.statistics import LatentStatistics
from braid.errors import InvalidRequest, ModelFileError

NORM_GROUPS = 32
RATIONAL_SCALES = {0.75: Fraction(3, 4), 1.5: Fraction(3, 2), 2.0: Fraction(2), 4.0: Fraction(4)}


class LatentUpsampler:
    """Enlarges latents in space, in time or in both."""

    def __init__(self, config: Section, weights: Mapping[str, Tensor], statistics: LatentStatistics) -> None:
        """
        Args:
            config: the metadata of the upsampler's own file.
            weights: all tensors of that file.
            statistics: of the video autoencoder whose latents these are.
        Raises:
            ModelFileError: config and tensors are not those of an upsampler, or it is one for other latents.
        """
        self._options = read_upsampler_options(config)
        self._statistics = statistics
        if statistics.mean.shape[0] != self._options["in_channels"]:
            raise config.error(
                "in_channels", self._options["in_channels"], f"{len(statistics.mean)}, as the latents have"
            )
        self._network: Any = build_module("the latent upsampler", self._make, weights)

    @property
    def space_scale(self) -> Fraction:
        """Of height and width."""
        if not self._options["spatial_upsample"]:
            return Fraction(1)
        return RATIONAL_SCALES[self._options["rational_spatial_scale"]]

    @property
    def is_temporal(self) -> bool:
        """Whether F' latent frames become 2F' - 1."""
        return bool(self._options["temporal_upsample"])

    def latent_shape(self, frames: int, height: int, width: int) -> tuple[int, int, int]:
        """(F', H', W') of the result.

        Raises:
            InvalidRequest: height or width would not be whole.
        """
        scale = self.space_scale
        for name, length in (("height", height), ("width", width)):
            if length * scale.numerator % scale.denominator:
                raise InvalidRequest(
                    f"{name} is {length} latents; to be scaled by {scale} it must be a multiple of {scale.denominator}",
                    param=name,
                )
        return 2 * frames - 1 if self.is_temporal else frames, int(height * scale), int(width * scale)

    def __call__(self, latents: Tensor) -> Tensor:
        """All of `pieces` at once."""
        return finish(self.pieces(latents))

    def pieces(self, latents: Tensor) -> Pieces[Tensor]:
        """Enlarge.

        Args:
            latents: (1, C, F', H', W') normalised.
        Returns:
            (1, C, F'', H'', W'') normalised, in the dtype of `latents`.
        Raises:
            InvalidRequest: height or width would not be whole.
        """
        assert latents.shape[0] == 1, "one clip at a time"
        self.latent_shape(*latents.shape[2:])
        return self._normalised(latents)

    def raw_pieces(self, latents: Tensor) -> Pieces[Tensor]:
        """As `pieces`, but of latents in the autoencoder's own scale."""
        return self._run(self._network, latents)

    def predicted_bytes(self, latent_shape: tuple[int, int, int], dtype: torch.dtype) -> int:
        """Peak of what `pieces` allocates for (F', H', W') latents, weights not counted."""
        network = without_memory(self._make, dtype)
        latents = torch.empty((1, self._options["in_channels"], *latent_shape), dtype=dtype, device="meta")
        return peak_bytes(lambda: finish(self._run(network, latents)))

    def _make(self) -> Any:
        from diffusers.pipelines.ltx2.latent_upsampler import LTX2LatentUpsamplerModel

        network = LTX2LatentUpsamplerModel(**self._options)
        for module in list(network.modules()):
            for name, child in module.named_children():
                if isinstance(child, nn.GroupNorm):
                    setattr(module, name, _GroupNorm(child.num_groups, child.num_channels, child.eps))
        return network

    def _normalised(self, latents: Tensor) -> Pieces[Tensor]:
        raw = self._statistics.un_normalise(latents)
        enlarged = yield from self._run(self._network, raw)
        return self._statistics.normalise(enlarged.to(latents.dtype))

    def _run(self, network: Any, latents: Tensor) -> Pieces[Tensor]:
        is_planar = network.dims == 2
        x = latents.to(network.initial_conv.weight)
        yield work(network.initial_conv, x)
        with torch.inference_mode():
            x = _planes(x) if is_planar else x
            x = functional.silu(network.initial_norm(network.initial_conv(x)))
        for block in network.res_blocks:
            yield work(block, x)
            with torch.inference_mode():
                x = block(x)
        yield work(network.upsampler, x)
        with torch.inference_mode():
            x = self._enlarged(network, x, latents.shape[2])
        for block in network.post_upsample_res_blocks:
            yield work(block, x)
            with torch.inference_mode():
                x = block(x)
        yield work(network.final_conv, x)
        with torch.inference_mode():
            x = network.final_conv(x)
            return _volume(x, latents.shape[2]) if is_planar else x

    def _enlarged(self, network: Any, x: Tensor, num_frames: int) -> Tensor:
        enlarged: Tensor
        if self.is_temporal:
            # The first latent frame is a single frame, of which there cannot be two.
            enlarged = network.upsampler(x)[:, :, 1:]
        elif network.dims == 2:
            enlarged = network.upsampler(x)
        else:
            enlarged = _volume(network.upsampler(_planes(x)), num_frames)
        return enlarged


class _GroupNorm(nn.GroupNorm):
    """Norms groups of one value, too, which torch's own refuses for the sake of training: the result is the bias."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.group_norm(x, self.num_groups, self.weight, self.bias, self.eps)


def _planes(x: Tensor) -> Tensor:
    """(1, C, F, H, W) to (F, C, H, W)."""
    return x[0].transpose(0, 1)


def _volume(planes: Tensor, num_frames: int) -> Tensor:
    """(F, C, H, W) back to (1, C, F, H, W)."""
    assert planes.shape[0] == num_frames
    return planes.transpose(0, 1)[None]


def read_upsampler_options(config: Section) -> dict[str, Any]:
    dims = config.choice("dims", (2, 3), 3)
    is_spatial = config.boolean("spatial_upsample", True)
    is_temporal = config.boolean("temporal_upsample", False)
    if not (is_spatial or is_temporal):
        raise ModelFileError(
            f"{config.path}: config {config.name}.spatial_upsample or temporal_upsample must be true for an upsampler"
        )
    if is_temporal:
        config.choice("dims", (3,), dims)
    mid_channels = config.integer("mid_channels", 512)
    if mid_channels % NORM_GROUPS:
        raise config.error("mid_channels", mid_channels, f"a multiple of {NORM_GROUPS}")
    is_rational = config.boolean("rational_resampler", False) and not is_temporal
    scales = tuple(RATIONAL_SCALES) if is_rational else (2.0,)
    return {
        "in_channels": config.integer("in_channels", 128),
        "mid_channels": mid_channels,
        "num_blocks_per_stage": config.integer("num_blocks_per_stage", 4),
        "dims": dims,
        "spatial_upsample": is_spatial,
        "temporal_upsample": is_temporal,
        "rational_spatial_scale": config.choice("spatial_scale", scales, 2.0) if is_spatial else 2.0,
        "use_rational_resampler": is_rational,
    }
