"""A vocoder's generator as a module that can be trained: diffusers', which agrees with the official one to the bit."""

from __future__ import annotations

from typing import Any

from braid.diffusion.models.ltx2.modules import KeyNames
from braid.diffusion.models.ltx2.vocoder_config import GeneratorConfig
from braid.diffusion.models.ltx2.vocoder_generator import SLOPE

KEY_NAMES = KeyNames(
    (
        ("conv_pre.", "conv_in."),
        ("conv_post.", "conv_out."),
        ("ups.", "upsamplers."),
        ("resblocks.", "resnets."),
        ("act_post.", "act_out."),
        ("downsample.lowpass.filter", "downsample.filter"),
    )
)


def make_generator(config: GeneratorConfig) -> Any:
    from diffusers.pipelines.ltx2.vocoder import LTX2Vocoder, SnakeBeta

    network = LTX2Vocoder(
        in_channels=config.num_inputs,
        hidden_channels=config.hidden_channels,
        out_channels=config.num_outputs,
        upsample_kernel_sizes=list(config.kernels),
        upsample_factors=list(config.rates),
        resnet_kernel_sizes=list(config.block_kernels),
        resnet_dilations=[list(row) for row in config.block_dilations],
        act_fn=config.activation,
        leaky_relu_negative_slope=SLOPE,
        antialias=config.activation != "leaky_relu",
        final_act_fn=None,
        final_bias=config.has_final_bias,
    )
    if config.activation == "snake":
        # The last unit has no second parameter either.
        network.act_out.act = SnakeBeta(config.hidden_channels // 2 ** len(config.rates), use_beta=False)
    return network


def make_resampler(ratio: int) -> Any:
    from diffusers.pipelines.ltx2.vocoder import UpSample1d

    return UpSample1d(ratio=ratio, window_type="hann", persistent=False)
