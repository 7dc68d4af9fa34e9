"""Which tensors a configuration implies around the transformer, by official name and shape; loads nothing to know it.

The transformer knows its own (`transformer_config.expected_tensors`). A size that only the file knows (the width of the
text encoder, the number of learnable registers) is None.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from fractions import Fraction
from math import prod

from braid.diffusion.models.ltx2.config import Section
from braid.diffusion.models.ltx2.ladder import Block, read_blocks
from braid.diffusion.models.ltx2.transformer_config import MOVED_CAPTION_PROJECTION
from braid.errors import UnsupportedModel

Shape = tuple[int | None, ...]
Named = Iterator[tuple[str, Shape]]

TIMESTEP_WIDTH = 256
"""Of the sinusoid in front of an AdaLN unit."""
SNAKE_TAPS = 12
"""Of the filters around a snake activation."""


def _linear(name: str, rows: int, columns: int | None, *, has_bias: bool = True) -> Named:
    yield f"{name}.weight", (rows, columns)
    if has_bias:
        yield f"{name}.bias", (rows,)


def _conv(name: str, rows: int, columns: int | None, *kernel: int, has_bias: bool = True) -> Named:
    yield f"{name}.weight", (rows, columns, *kernel)
    if has_bias:
        yield f"{name}.bias", (rows,)


# Text.


def has_projection_per_stream(section: Section) -> bool:
    """True for 2.3: the text is projected once for video and once for audio, before the connectors.

    Raises:
        ModelFileError: only some of the four keys that say so are there, or they say something else.
    """
    found = {key: section.value(key) for key in MOVED_CAPTION_PROJECTION if key in section}
    if found and found != MOVED_CAPTION_PROJECTION:
        right = f"with its companions {dict(MOVED_CAPTION_PROJECTION)}, or all absent"
        raise section.error("caption_proj_before_connector", found, right)
    return bool(found)


TEXT_STREAMS = {"video": "", "audio": "audio_"}
"""What the keys of each stream's connector begin with in the config."""


def text_tensors(section: Section, streams: Iterable[str] = TEXT_STREAMS) -> dict[str, Shape]:
    """Of the feature extractor and the connectors of these streams, with the names of their modules."""
    name, is_per_stream = "text_embedding_projection", has_projection_per_stream(section)
    shapes: dict[str, Shape] = {}
    if not is_per_stream:
        shapes.update(_linear(f"{name}.aggregate_embed", connector_width(section, ""), None, has_bias=False))
    for stream in streams:
        prefix = TEXT_STREAMS[stream]
        if is_per_stream:
            shapes.update(_linear(f"{name}.{stream}_aggregate_embed", connector_width(section, prefix), None))
        shapes.update(_connector(section, prefix, f"{stream}_embeddings_connector"))
    return shapes


def text_streams(names: Iterable[str]) -> tuple[str, ...]:
    """The streams of which there are tensors of a connector, or of a projection of its own."""
    starts = [name.removeprefix("text_embedding_projection.") for name in names]
    return tuple(
        stream
        for stream in TEXT_STREAMS
        if any(start.startswith((f"{stream}_embeddings_connector.", f"{stream}_aggregate_embed.")) for start in starts)
    )


def _connector_integer(section: Section, prefix: str, key: str) -> int:
    """2.0 has one set of keys for both connectors."""
    own = f"{prefix}connector_{key}"
    return section.integer(own if own in section else f"connector_{key}")


def connector_width(section: Section, prefix: str) -> int:
    """Of a connector's hidden states."""
    heads = _connector_integer(section, prefix, "num_attention_heads")
    return heads * _connector_integer(section, prefix, "attention_head_dim")


def is_connector_gated(section: Section, prefix: str) -> bool:
    """Whether its attention has a gate a head; what the config does not say of audio is as it is for video."""
    general = section.boolean("connector_apply_gated_attention", False)
    return section.boolean(f"{prefix}connector_apply_gated_attention", general)


def _attention(name: str, width: int, num_gates: int) -> Named:
    for projection in ("to_q", "to_k", "to_v", "to_out.0"):
        yield from _linear(f"{name}.{projection}", width, width)
    yield f"{name}.q_norm.weight", (width,)
    yield f"{name}.k_norm.weight", (width,)
    if num_gates:
        yield from _linear(f"{name}.to_gate_logits", num_gates, width)


def _connector(section: Section, prefix: str, name: str) -> Named:
    width, heads = connector_width(section, prefix), _connector_integer(section, prefix, "num_attention_heads")
    num_gates = heads if is_connector_gated(section, prefix) else 0
    yield f"{name}.learnable_registers", (None, width)
    for index in range(_connector_integer(section, prefix, "num_layers")):
        block = f"{name}.transformer_1d_blocks.{index}"
        yield from _attention(f"{block}.attn1", width, num_gates)
        yield from _linear(f"{block}.ff.net.0.proj", 4 * width, width)
        yield from _linear(f"{block}.ff.net.2", width, 4 * width)


# The video autoencoder.


def video_encoder_tensors(section: Section) -> dict[str, Shape]:
    """`encoder.*` of the section `vae`."""
    latent, patch = section.integer("latent_channels"), section.integer("patch_size", 4)
    width = latent  # the ladder starts as wide as the latents
    shapes = dict(_conv("encoder.conv_in.conv", width, section.integer("in_channels", 3) * patch**2, 3, 3, 3))
    for index, block in enumerate(read_blocks(section, "encoder_blocks")):
        name, (time, space) = f"encoder.down_blocks.{index}", block.strides
        if block.kind == "res_x":
            shapes.update(_res_blocks(name, width, block))
        else:
            rows = _divided(section, "encoder_blocks", width * block.multiplier, time * space * space)
            shapes.update(_conv(f"{name}.conv.conv", rows, width, 3, 3, 3))
            width *= block.multiplier
    shapes.update(_conv("encoder.conv_out.conv", latent + 1, width, 3, 3, 3))
    return shapes


def video_decoder_tensors(section: Section) -> dict[str, Shape]:
    """`decoder.*` of the section `vae`, whose blocks are listed from the output."""
    blocks = read_blocks(section, "decoder_blocks")
    # The code of the original takes a missing key as true.
    is_timed = section.boolean("timestep_conditioning", True)
    width = section.integer("decoder_base_channels", 128) * prod(block.multiplier for block in blocks)
    shapes = dict(_conv("decoder.conv_in.conv", width, section.integer("latent_channels"), 3, 3, 3))
    for index, block in enumerate(reversed(blocks)):
        name, (time, space) = f"decoder.up_blocks.{index}", block.strides
        if block.kind == "res_x":
            shapes.update(_res_blocks(name, width, block, is_timed=is_timed))
        else:
            shapes.update(_conv(f"{name}.conv.conv", width * time * space * space // block.multiplier, width, 3, 3, 3))
            width //= block.multiplier
    rows = section.integer("out_channels", 3) * section.integer("patch_size", 4) ** 2
    shapes.update(_conv("decoder.conv_out.conv", rows, width, 3, 3, 3))
    if is_timed:
        shapes["decoder.timestep_scale_multiplier"] = ()
        shapes["decoder.last_scale_shift_table"] = (2, width)
        shapes.update(_time_embedder("decoder.last_time_embedder", 2 * width))
    return shapes


def video_statistics_tensors(section: Section) -> dict[str, Shape]:
    """Mean and deviation of each latent channel."""
    return _statistics(section.integer("latent_channels"))


def _statistics(width: int) -> dict[str, Shape]:
    return {f"per_channel_statistics.{name}": (width,) for name in ("mean-of-means", "std-of-means")}


def _res_blocks(name: str, width: int, block: Block, *, is_timed: bool = False) -> Named:
    for index in range(block.num_layers):
        layer = f"{name}.res_blocks.{index}"
        yield from _conv(f"{layer}.conv1.conv", width, width, 3, 3, 3)
        yield from _conv(f"{layer}.conv2.conv", width, width, 3, 3, 3)
        if block.inject_noise:
            yield f"{layer}.per_channel_scale1", (width, 1, 1)
            yield f"{layer}.per_channel_scale2", (width, 1, 1)
        if is_timed:
            yield f"{layer}.scale_shift_table", (4, width)
    if is_timed:
        yield from _time_embedder(f"{name}.time_embedder", 4 * width)


def _time_embedder(name: str, width: int) -> Named:
    yield from _linear(f"{name}.timestep_embedder.linear_1", width, TIMESTEP_WIDTH)
    yield from _linear(f"{name}.timestep_embedder.linear_2", width, width)


def _divided(section: Section, key: str, width: int, factor: int) -> int:
    if width % factor:
        raise section.error(key, f"a block that makes {width} channels from {factor} positions each", "divisible")
    return width // factor


# The audio autoencoder.


def _audio_network(section: Section) -> Section:
    network = section.section("model").section("params").section("ddconfig")
    network.choice("norm_type", ("pixel",))
    network.choice("causality_axis", ("height",))
    network.choice("mid_block_add_attention", (False,))
    if network.value("attn_resolutions") not in ([], ()):
        raise UnsupportedModel(
            f"{section.path}: config {network.name}.attn_resolutions is {network.value('attn_resolutions')!r}; "
            "supported is an audio autoencoder without attention, []"
        )
    return network


def audio_encoder_tensors(section: Section) -> dict[str, Shape]:
    """`encoder.*` of the section `audio_vae`."""
    network = _audio_network(section)
    widths = [network.integer("ch") * factor for factor in network.integers("ch_mult")]
    width = network.integer("ch")
    shapes = dict(_conv("encoder.conv_in.conv", width, network.integer("in_channels"), 3, 3))
    for level, rows in enumerate(widths):
        for index in range(network.integer("num_res_blocks")):
            shapes.update(_audio_res_block(f"encoder.down.{level}.block.{index}", rows, width))
            width = rows
        if level != len(widths) - 1:
            shapes.update(_conv(f"encoder.down.{level}.downsample.conv", width, width, 3, 3))
    shapes.update(_audio_middle("encoder", width))
    num_moments = 2 if network.boolean("double_z", True) else 1
    shapes.update(_conv("encoder.conv_out.conv", num_moments * network.integer("z_channels"), width, 3, 3))
    return shapes


def audio_decoder_tensors(section: Section) -> dict[str, Shape]:
    """`decoder.*` of the section `audio_vae`."""
    network = _audio_network(section)
    widths = [network.integer("ch") * factor for factor in network.integers("ch_mult")]
    width = widths[-1]
    shapes = dict(_conv("decoder.conv_in.conv", width, network.integer("z_channels"), 3, 3))
    shapes.update(_audio_middle("decoder", width))
    for level in reversed(range(len(widths))):
        for index in range(network.integer("num_res_blocks") + 1):
            shapes.update(_audio_res_block(f"decoder.up.{level}.block.{index}", widths[level], width))
            width = widths[level]
        if level:
            shapes.update(_conv(f"decoder.up.{level}.upsample.conv.conv", width, width, 3, 3))
    shapes.update(_conv("decoder.conv_out.conv", network.integer("out_ch"), width, 3, 3))
    return shapes


def audio_statistics_tensors(section: Section) -> dict[str, Shape]:
    """Mean and deviation of each number of an audio token."""
    network = _audio_network(section)
    bins = network.integer("mel_bins", 64) // 2 ** (len(network.integers("ch_mult")) - 1)
    return _statistics(network.integer("z_channels") * bins)


def audio_output_channels(section: Section) -> int:
    """Of the sound: 2 where it is stereo."""
    return _audio_network(section).integer("out_ch")


def _audio_middle(name: str, width: int) -> Named:
    yield from _audio_res_block(f"{name}.mid.block_1", width, width)
    yield from _audio_res_block(f"{name}.mid.block_2", width, width)


def _audio_res_block(name: str, rows: int, columns: int) -> Named:
    yield from _conv(f"{name}.conv1.conv", rows, columns, 3, 3)
    yield from _conv(f"{name}.conv2.conv", rows, rows, 3, 3)
    if rows != columns:
        yield from _conv(f"{name}.nin_shortcut.conv", rows, columns, 1, 1)


# The vocoder.


def vocoder_tensors(section: Section, mel_channels: int | None) -> dict[str, Shape]:
    """Of the section `vocoder`; 2.3 has two generators and the bases of a Fourier transform between them.

    Args:
        mel_channels: sound channels times mel bins of the audio autoencoder, or None where there is none.
    """
    if "bwe" not in section:
        return dict(_generator(section, "", mel_channels))
    bwe = section.section("bwe")
    window, num_mels = bwe.integer("n_fft"), bwe.integer("num_mels", 64)
    shapes = dict(_generator(section.section("vocoder"), "vocoder.", mel_channels))
    shapes.update(_generator(bwe, "bwe_generator.", 2 * num_mels))
    shapes["mel_stft.mel_basis"] = (num_mels, window // 2 + 1)
    shapes["mel_stft.stft_fn.forward_basis"] = (window + 2, 1, window)
    shapes["mel_stft.stft_fn.inverse_basis"] = (window + 2, 1, window)
    return shapes


def _generator(section: Section, prefix: str, in_channels: int | None) -> Named:
    has_snakes = section.choice("resblock", ("1", "AMP1")) == "AMP1"
    kernels, dilations = section.integers("resblock_kernel_sizes"), section.value("resblock_dilation_sizes")
    width = section.integer("upsample_initial_channel")
    yield from _conv(f"{prefix}conv_pre", width, in_channels, 7)
    for level, kernel in enumerate(_level_kernels(section)):
        half = width // 2
        yield f"{prefix}ups.{level}.weight", (width, half, kernel)  # a transposed convolution: input channels first
        yield f"{prefix}ups.{level}.bias", (half,)
        width = half
        for index, (size, steps) in enumerate(zip(kernels, dilations, strict=True)):
            name = f"{prefix}resblocks.{level * len(kernels) + index}"
            yield from _vocoder_res_block(section, name, width, size, len(steps), has_snakes=has_snakes)
    if has_snakes:
        yield from _snake(section, f"{prefix}act_post", width)
    has_bias = section.boolean("use_bias_at_final", True)
    yield from _conv(f"{prefix}conv_post", 2 if section.boolean("stereo", True) else 1, width, 7, has_bias=has_bias)


def _level_kernels(section: Section) -> tuple[int, ...]:
    rates, kernels = section.integers("upsample_rates"), section.integers("upsample_kernel_sizes")
    if len(rates) != len(kernels):
        raise section.error("upsample_kernel_sizes", kernels, f"as long as upsample_rates {rates}")
    sizes, dilations = section.integers("resblock_kernel_sizes"), section.value("resblock_dilation_sizes")
    is_list = isinstance(dilations, list) and all(isinstance(steps, list) for steps in dilations)
    if not is_list or len(dilations) != len(sizes):
        raise section.error("resblock_dilation_sizes", dilations, f"one list for each of resblock_kernel_sizes {sizes}")
    return kernels


def _vocoder_res_block(
    section: Section, name: str, width: int, kernel: int, num_steps: int, *, has_snakes: bool
) -> Named:
    for step in range(num_steps):
        yield from _conv(f"{name}.convs1.{step}", width, width, kernel)
        yield from _conv(f"{name}.convs2.{step}", width, width, kernel)
        if has_snakes:
            yield from _snake(section, f"{name}.acts1.{step}", width)
            yield from _snake(section, f"{name}.acts2.{step}", width)


def _snake(section: Section, name: str, width: int) -> Named:
    section.choice("activation", ("snakebeta",))
    yield f"{name}.act.alpha", (width,)
    yield f"{name}.act.beta", (width,)
    yield f"{name}.upsample.filter", (1, 1, SNAKE_TAPS)
    yield f"{name}.downsample.lowpass.filter", (1, 1, SNAKE_TAPS)


# The latent upsampler, a file of its own.


def upsampler_scale(section: Section) -> tuple[Fraction, int]:
    """By how much it enlarges space (in each direction) and time.

    Raises:
        ModelFileError: neither.
        UnsupportedModel: a scale that its resampler has no form for.
    """
    is_spatial = section.boolean("spatial_upsample", True)
    is_temporal = section.boolean("temporal_upsample", False)
    if not is_spatial and not is_temporal:
        raise section.error("spatial_upsample", False, "true, or temporal_upsample must be")
    if not is_spatial:
        return Fraction(1), 2
    scales = (2.0, 0.75, 1.5, 4.0) if _is_rational(section) else (2.0,)
    scale = Fraction(section.choice("spatial_scale", scales, 2.0))
    return scale, 2 if is_temporal else 1


def upsampler_tensors(section: Section) -> dict[str, Shape]:
    """Of an upsampler file, without prefix."""
    section.choice("dims", (3,), 3)
    channels, middle = section.integer("in_channels", 128), section.integer("mid_channels", 1024)
    if middle % 32:
        raise section.error("mid_channels", middle, "a multiple of 32, the number of normalised groups")
    shapes = dict(_conv("initial_conv", middle, channels, 3, 3, 3))
    shapes.update(_norm("initial_norm", middle))
    for stage in ("res_blocks", "post_upsample_res_blocks"):
        for index in range(section.integer("num_blocks_per_stage", 4)):
            for step in (1, 2):
                shapes.update(_conv(f"{stage}.{index}.conv{step}", middle, middle, 3, 3, 3))
                shapes.update(_norm(f"{stage}.{index}.norm{step}", middle))
    shapes.update(_resampler(section, middle))
    shapes.update(_conv("final_conv", channels, middle, 3, 3, 3))
    return shapes


def _is_rational(section: Section) -> bool:
    is_rational = section.boolean("rational_resampler", False)
    return is_rational and not section.boolean("temporal_upsample", False)


def _resampler(section: Section, middle: int) -> Named:
    space, time = upsampler_scale(section)
    if _is_rational(section) and section.boolean("spatial_upsample", True):
        yield from _conv("upsampler.conv", middle * space.numerator**2, middle, 3, 3)
        yield "upsampler.blur_down.kernel", (1, 1, 5, 5)
    elif time == 1:
        yield from _conv("upsampler.0", middle * 4, middle, 3, 3)
    else:
        yield from _conv("upsampler.0", middle * time * int(space) ** 2, middle, 3, 3, 3)


def _norm(name: str, width: int) -> Named:
    yield f"{name}.weight", (width,)
    yield f"{name}.bias", (width,)
