"""What is given, put into a stream's tokens: pictures, clips, references, masks, sound.

Every function takes a state and returns another one; it writes to nothing. A strength of 1 holds tokens exactly, 0
leaves them free: their denoise mask is 1 - strength. Appended tokens come last, start from zeros and keep what they
show in `clean_latents`. Source: specs of LTX-2, image conditioning, IC-LoRA, retake.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional

from braid.diffusion.latents import LatentState, patchify_video
from braid.diffusion.positions import VideoGrid, in_seconds, video_frame_bounds, video_positions
from braid.errors import InvalidRequest


def hold_latent_frames(
    state: LatentState, latents: Tensor, grid: VideoGrid, *, latent_index: int = 0, strength: float = 1.0
) -> LatentState:
    """Put encoded pictures in the place of the clip's own latent frames.

    The first frame of image-to-video, and the clean prefix of a clip that is extended. A later call overwrites an
    earlier one.

    Args:
        latents: (B, C, F', H', W') normalised, of the grid's height and width.
        grid: of the clip that is generated.
        latent_index: the first latent frame (not pixel frame) that is held.
    Raises:
        InvalidRequest: the latents have another size, or reach beyond the clip.
    """
    _check_strength(strength)
    frames = latents.shape[2]
    _check_size(latents, grid.height, grid.width)
    if not 0 <= latent_index <= grid.frames - frames:
        raise InvalidRequest(
            f"latent_index={latent_index} with {frames} latent frames is beyond the clip: "
            f"it must be from 0 to {grid.frames - frames}"
        )
    start = latent_index * grid.tokens_per_frame
    held = slice(start, start + frames * grid.tokens_per_frame)
    clean, mask = state.clean_latents.clone(), state.denoise_mask.clone()
    clean[:, held] = patchify_video(latents).to(clean)
    mask[:, held] = 1.0 - strength
    return replace(state, clean_latents=clean, denoise_mask=mask)


def append_keyframes(
    state: LatentState,
    latents: Tensor,
    grid: VideoGrid,
    *,
    frame_index: int,
    frame_rate: float,
    strength: float = 1.0,
    num_pixel_frames: int | None = None,
) -> LatentState:
    """Append a picture or a short clip as tokens that lie at a pixel frame of the film.

    One picture covers just [frame_index, frame_index + 1) frames. A clip at frame 0 begins with a single frame, as
    the film does; anywhere else each of its latent frames covers a whole group of frames.

    Args:
        latents: (B, C, F', H', W') normalised.
        grid: of the clip that is generated, for its factors.
        frame_index: pixel frame; not checked against the length of the film, and not counted from its end.
        num_pixel_frames: what `latents` were encoded from; None is as many as they decode to.
    Raises:
        InvalidRequest: the latents have another size than the grid.
    """
    _check_strength(strength)
    _check_size(latents, grid.height, grid.width)
    frames = latents.shape[2]
    num_pixel_frames = (frames - 1) * grid.time_factor + 1 if num_pixel_frames is None else num_pixel_frames
    bounds = video_frame_bounds(replace(grid, frames=frames), is_causal=frame_index == 0)
    bounds[:, 0] += frame_index
    if num_pixel_frames == 1:
        bounds[:, 0, :, 1] = bounds[:, 0, :, 0] + 1
    return append_tokens(
        state, patchify_video(latents), in_seconds(bounds, frame_rate), num_generated=grid.num_tokens, strength=strength
    )


def append_reference(
    state: LatentState,
    latents: Tensor,
    grid: VideoGrid,
    *,
    frame_rate: float,
    downscale_factor: int = 1,
    temporal_scale_factor: int = 1,
    strength: float = 1.0,
    attention_strength: float | Tensor | None = None,
) -> LatentState:
    """Append a reference video that an IC-LoRA was trained to follow.

    Args:
        latents: (B, C, F', H', W') of the reference, `downscale_factor` times smaller than the film.
        grid: of the clip that is generated, for its factors.
        temporal_scale_factor: S where only the first and then every Sth frame of the reference was encoded.
        attention_strength: how strongly reference and film see each other: a number, or (B, T') of the reference's
            tokens; None leaves the mask as it is.
    """
    _check_strength(strength)
    frames, height, width = latents.shape[2:]
    own = replace(grid, frames=frames, height=height, width=width)
    positions = video_positions(own, frame_rate)
    positions[:, 1:] *= downscale_factor
    if temporal_scale_factor != 1:
        late = (temporal_scale_factor - 1) / frame_rate
        positions[:, 0] = (positions[:, 0] * temporal_scale_factor - late).clamp(min=0)
    return append_tokens(
        state,
        patchify_video(latents),
        positions,
        num_generated=grid.num_tokens,
        strength=strength,
        attention_strength=attention_strength,
    )


def append_tokens(
    state: LatentState,
    tokens: Tensor,
    positions: Tensor,
    *,
    num_generated: int,
    strength: float = 1.0,
    attention_strength: float | Tensor | None = None,
) -> LatentState:
    """Append given tokens (B, T', C) with their positions (B or 1, axes, T', 2).

    Args:
        num_generated: the stream's own tokens, which stand first.
        attention_strength: as in `append_reference`. Once there is an attention mask, tokens that were appended by
            different calls do not see each other.
    """
    _check_strength(strength)
    batch, num_new = tokens.shape[:2]
    tokens = tokens.to(state.clean_latents)
    mask = state.denoise_mask.new_full((batch, num_new, 1), 1.0 - strength)
    positions = positions.to(state.positions).expand(batch, -1, -1, -1)
    return LatentState(
        latents=torch.cat([state.latents, torch.zeros_like(tokens)], 1),
        denoise_mask=torch.cat([state.denoise_mask, mask], 1),
        clean_latents=torch.cat([state.clean_latents, tokens], 1),
        positions=torch.cat([state.positions, positions], 2),
        attention_mask=_grown_attention_mask(state, num_new, num_generated, attention_strength),
        is_frozen=state.is_frozen,
    )


def hold_masked(state: LatentState, tokens: Tensor, held: Tensor, *, strength: float = 1.0) -> LatentState:
    """Hold the given tokens where a mask says so; what it leaves free stays as it is.

    Args:
        tokens: (B, T, C), of the stream's own tokens.
        held: (B, T) in [0, 1]: 1 is held as far as `strength` says, 0 is free.
    """
    _check_strength(strength)
    own = slice(0, tokens.shape[1])
    held = held[..., None].to(state.denoise_mask)  # (B, T, 1)
    clean, mask = state.clean_latents.clone(), state.denoise_mask.clone()
    clean[:, own] = torch.where(held > 0, tokens.to(clean), clean[:, own])
    mask[:, own] = 1.0 - held * strength
    return replace(state, clean_latents=clean, denoise_mask=mask)


def retake(state: LatentState, start_s: float, end_s: float) -> LatentState:
    """Keep a clip but for a window of time, which is generated anew.

    Args:
        state: whose latents are the clip; times are those of its positions.
    Raises:
        InvalidRequest: the window is empty, or touches no token.
    """
    if not start_s < end_s:
        raise InvalidRequest(f"retake from {start_s} s to {end_s} s is empty: the start must lie before the end")
    begins, ends = state.positions[:, 0, :, 0], state.positions[:, 0, :, 1]  # (B, T)
    is_free = (ends > start_s) & (begins < end_s)
    if not is_free.any():
        raise InvalidRequest(f"retake from {start_s} s to {end_s} s lies outside the clip of {float(ends.max())} s")
    return replace(state, denoise_mask=is_free[..., None].to(state.denoise_mask))


def freeze(state: LatentState) -> LatentState:
    """The whole stream is given: nothing of it is generated, and the model is told sigma 0 for it."""
    return replace(
        state, clean_latents=state.latents, denoise_mask=torch.zeros_like(state.denoise_mask), is_frozen=True
    )


def attention_strength_of_tokens(mask: Tensor, reference: VideoGrid) -> Tensor:
    """How strongly each reference token is followed, from a mask video.

    Args:
        mask: (B, F, H, W) in [0, 1], one picture for each pixel frame of the reference.
        reference: the grid of the reference's latents.
    Returns:
        (B, T'), averaged over the pixels and frames of each token; the first frame stands alone.
    Raises:
        InvalidRequest: the number of frames does not fit the grid.
    """
    wanted = (reference.frames - 1) * reference.time_factor + 1
    if mask.shape[1] != wanted:
        raise InvalidRequest(f"attention mask has {mask.shape[1]} frames, the reference has {wanted}")
    small = functional.interpolate(mask.float(), size=(reference.height, reference.width), mode="area")
    shape = (-1, reference.frames - 1, reference.time_factor, reference.height, reference.width)
    groups = small[:, 1:].reshape(shape) if reference.frames > 1 else small[:, 1:, None]
    return torch.cat([small[:, :1], groups.mean(2)], 1).flatten(1)


def _grown_attention_mask(
    state: LatentState, num_new: int, num_generated: int, attention_strength: float | Tensor | None
) -> Tensor | None:
    """(B, T + T', T + T'): new tokens see themselves, and the generated ones by their strength."""
    if state.attention_mask is None and attention_strength is None:
        return None
    batch, num_old = state.latents.shape[:2]
    grown = state.denoise_mask.new_zeros(batch, num_old + num_new, num_old + num_new)
    grown[:, :num_old, :num_old] = 1.0 if state.attention_mask is None else state.attention_mask
    strength = torch.as_tensor(1.0 if attention_strength is None else attention_strength)
    strength = strength.to(grown).expand(batch, num_new)
    grown[:, :num_generated, num_old:] = strength[:, None, :]
    grown[:, num_old:, :num_generated] = strength[:, :, None]
    grown[:, num_old:, num_old:] = 1.0
    return grown


def _check_strength(strength: float) -> None:
    if not 0.0 <= strength <= 1.0:
        raise InvalidRequest(f"strength={strength} must be from 0 (free) to 1 (held exactly)", param="strength")


def _check_size(latents: Tensor, height: int, width: int) -> None:
    if tuple(latents.shape[-2:]) != (height, width):
        raise InvalidRequest(
            f"conditioning latents are {latents.shape[-2]}x{latents.shape[-1]} (height x width), "
            f"the film's are {height}x{width}"
        )
