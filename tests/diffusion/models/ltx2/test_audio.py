"""Sound: its autoencoder, the mel front end and the """

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from braid.diffusion.models.ltx2.audio_geometry import AudioGeometry, read_audio_geometry
from braid.diffusion.models.ltx2.audio_mel import MelFrontEnd, mel_filters, read_mel_front_end, resample
from braid.diffusion.models.ltx2.audio_vae import AudioDecoder, AudioEncoder, read_network_options
from braid.diffusion.models.ltx2.modules import finish
from braid.diffusion.models.ltx2.vocoder import Vocoder
from braid.diffusion.models.ltx2.vocoder_config import read_generator_config
from braid.diffusion.models.ltx2.vocoder_module import KEY_NAMES, make_generator
from braid.errors import InvalidRequest, ModelFileError, UnsupportedModel
from braid.tests.diffusion.models.ltx2.toy_autoencoders import GENERATOR, random_weights, section, statistics

AUDIO: dict[str, Any] = {
    "model": {
        "params": {
            "sampling_rate": 8000,
            "ddconfig": {
                "ch": 8, "out_ch": 2, "in_channels": 2, "ch_mult": [1, 2], "num_res_blocks": 1, "attn_resolutions": [],
                "resolution": 16, "z_channels": 3, "double_z": True, "norm_type": "pixel", "causality_axis": "height",
                "mid_block_add_attention": True, "mel_bins": 8,
            },
        }
    },
    "preprocessing": {"stft": {"hop_length": 100, "filter_length": 256}},
}  # fmt: skip
"""2 mel frames and 2 mel bins per latent, 40 latents a second."""


def audio_weights() -> dict[str, Tensor]:
    from diffusers.models.autoencoders.autoencoder_kl_ltx2_audio import LTX2AudioDecoder, LTX2AudioEncoder

    options = read_network_options(section("audio_vae", AUDIO))
    return {
        **random_weights(LTX2AudioEncoder(**options, double_z=True), "encoder."),
        **random_weights(LTX2AudioDecoder(**options), "decoder."),
        **statistics(3 * 4),
    }


def test_sizes_follow_from_the_config() -> None:
    geometry = read_audio_geometry(section("audio_vae", AUDIO))
    assert geometry == AudioGeometry(8000, 100, 2, 3, 4, 8, 2)
    assert geometry.latents_per_second == 40.0
    # 0.5 and 1.5 latents: to the even number.
    assert [geometry.num_latents(frames, 80.0) for frames in (1, 3, 4)] == [0, 2, 2]
    front_end = read_mel_front_end(section("audio_vae", AUDIO))
    assert front_end == MelFrontEnd(8000, 256, 100, 8, 2)


def test_other_factors_decode_to_as_many_frames_as_they_imply() -> None:
    weights = audio_weights()
    config = section("audio_vae", AUDIO)
    decoder, encoder = AudioDecoder(config, weights), AudioEncoder(config, weights)
    mel = decoder.decode(torch.randn(1, 3, 5, 4, generator=torch.Generator().manual_seed(0)))
    assert mel.shape == (1, 2, 9, 8)
    assert encoder.encode(mel).shape == (1, 3, 5, 4)


def test_sound_is_causal() -> None:
    decoder = AudioDecoder(section("audio_vae", {**AUDIO, "model": _without_attention()}), _plain(audio_weights()))
    latents = torch.randn(1, 3, 6, 4, generator=torch.Generator().manual_seed(0))
    later = latents.clone()
    later[:, :, 4:] = 0
    before, after = decoder.decode(latents), decoder.decode(later)
    assert torch.equal(before[:, :, :7], after[:, :, :7])
    assert not torch.equal(before[:, :, 7:], after[:, :, 7:])


def _without_attention() -> dict[str, Any]:
    params = AUDIO["model"]["params"]
    return {"params": {**params, "ddconfig": {**params["ddconfig"], "mid_block_add_attention": False}}}


def _plain(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: tensor for key, tensor in weights.items() if "attn" not in key}


def test_an_audio_option_that_we_do_not_have_is_named() -> None:
    params = AUDIO["model"]["params"]
    config = {"model": {"params": {**params, "ddconfig": {**params["ddconfig"], "causality_axis": "width"}}}}
    with pytest.raises(UnsupportedModel, match=r"ddconfig\.causality_axis is 'width'"):
        read_network_options(section("audio_vae", config))


def sine(hz: float, rate: int, num_samples: int) -> Tensor:
    return torch.sin(2 * math.pi * hz * torch.arange(num_samples) / rate)


@pytest.mark.parametrize(("rate", "new_rate"), [(48000, 16000), (44100, 16000), (8000, 16000), (16000, 48000)])
def test_a_tone_stays_that_tone_at_another_rate(rate: int, new_rate: int) -> None:
    new = resample(sine(440.0, rate, rate // 4).view(1, 1, -1), rate, new_rate)[0, 0]
    assert len(new) == math.ceil(rate // 4 * new_rate / rate)
    expected = sine(440.0, new_rate, len(new))
    inside = slice(100, len(new) - 100)  # silence before and after is part of the ends
    torch.testing.assert_close(new[inside], expected[inside], rtol=0, atol=2e-2)


def test_a_tone_above_the_new_half_rate_is_gone() -> None:
    new = resample(sine(10000.0, 48000, 24000).view(1, 1, -1), 48000, 16000)
    assert new[..., 100:-100].abs().max() < 0.05


def test_a_tone_is_loudest_in_its_own_mel_bin() -> None:
    front_end = MelFrontEnd(num_sound_channels=2)
    mel = front_end(sine(1000.0, 48000, 24000).view(1, 1, -1), 48000)
    assert mel.shape == (1, 2, 1 + 8000 // 160, 64)
    filters = mel_filters(16000, 1024, 64)
    assert mel[0, 1, 25].argmax() == filters[64].argmax()  # 1000 Hz is frequency 64 of 15.625 Hz each


def test_sound_that_cannot_be_heard_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="512 samples of 16000 Hz"):
        MelFrontEnd()(torch.zeros(1, 1, 512), 16000)
    with pytest.raises(InvalidRequest, match=r"6 channels.*1 or 2"):
        MelFrontEnd(num_sound_channels=2)(torch.zeros(1, 6, 5000), 16000)


BWE = {**GENERATOR, "upsample_rates": [6, 5], "upsample_kernel_sizes": [12, 11], "n_fft": 32, "hop_length": 10}
EXTENDED = {"vocoder": GENERATOR, "bwe": {**BWE, "num_mels": 4}}


def generator_weights(config: dict[str, Any], prefix: str, seed: int, gain: float = 1.0) -> dict[str, Tensor]:
    ends = {"conv_pre.weight": torch.zeros(8, 8, 7), "conv_post.weight": torch.zeros(2, 2, 7)}
    read = read_generator_config(section("vocoder", config), ends)
    weights = random_weights(make_generator(read), seed=seed)
    weights["conv_out.weight"] *= gain
    return {prefix + KEY_NAMES.official(key): tensor for key, tensor in weights.items()}


def extended_weights(gain: float = 1.0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(9)
    return {
        **generator_weights(GENERATOR, "vocoder.", 1, gain),
        **generator_weights(BWE, "bwe_generator.", 2),
        "mel_stft.stft_fn.forward_basis": torch.randn(34, 1, 32, generator=generator) / 8,
        "mel_stft.stft_fn.inverse_basis": torch.randn(34, 1, 32, generator=generator),
        "mel_stft.mel_basis": torch.rand(4, 17, generator=generator),
    }


MEL = torch.randn(1, 2, 7, 4, generator=torch.Generator().manual_seed(4))


def test_an_extended_waveform_has_three_times_the_samples_whatever_the_hop() -> None:
    vocoder = Vocoder(section("vocoder", EXTENDED), extended_weights())
    low = finish(vocoder.low_rate_pieces(MEL))
    # 56 samples are no multiple of the hop of 10.
    assert low.shape == (1, 2, 56)
    assert vocoder(MEL).shape == (1, 2, 168)
    assert vocoder.sample_rate == 48000


def test_loud_sound_is_limited_before_its_band_is_extended() -> None:
    loud = Vocoder(section("vocoder", EXTENDED), extended_weights(gain=100.0))
    low = finish(loud.low_rate_pieces(MEL))
    assert low.abs().max() == 1.0
    config = {**EXTENDED, "vocoder": {**GENERATOR, "use_tanh_at_final": True}}
    squashed = finish(Vocoder(section("vocoder", config), extended_weights(gain=0.5)).low_rate_pieces(MEL))
    plain = finish(Vocoder(section("vocoder", EXTENDED), extended_weights(gain=0.5)).low_rate_pieces(MEL))
    torch.testing.assert_close(squashed, plain.tanh())


def test_weights_of_16_bits_still_make_sound_in_32() -> None:
    weights = {key: tensor.bfloat16() for key, tensor in extended_weights().items()}
    vocoder = Vocoder(section("vocoder", EXTENDED), weights)
    same = Vocoder(section("vocoder", EXTENDED), {key: tensor.float() for key, tensor in weights.items()})
    sound = vocoder(MEL.bfloat16())
    assert sound.dtype == torch.float32
    assert torch.equal(sound, same(MEL.bfloat16().float()))


def test_sounds_that_take_turns_get_the_bits_they_get_alone() -> None:
    vocoder = Vocoder(section("vocoder", EXTENDED), extended_weights())
    other = torch.flip(MEL, dims=(2,))
    first, second = vocoder.pieces(MEL), vocoder.pieces(other)
    for _ in range(8):
        next(first)
        next(second)
    assert torch.equal(finish(first), vocoder(MEL))
    assert torch.equal(finish(second), vocoder(other))


def test_a_vocoder_whose_parts_contradict_each_other_is_refused() -> None:
    config = {**EXTENDED, "bwe": {**EXTENDED["bwe"], "hop_length": 8}}
    with pytest.raises(ModelFileError, match="upsample_rates"):
        Vocoder(section("vocoder", config), extended_weights())
    weights = extended_weights()
    del weights["mel_stft.mel_basis"]
    with pytest.raises(ModelFileError, match=r"mel_stft\.mel_basis is missing"):
        Vocoder(section("vocoder", EXTENDED), weights)
    with pytest.raises(ModelFileError, match="stereo"):
        Vocoder(section("vocoder", {**GENERATOR, "stereo": False}), generator_weights(GENERATOR, "", 1))


def test_plain_snakes_have_one_parameter_everywhere() -> None:
    config = {**GENERATOR, "activation": "snake"}
    weights = generator_weights(config, "", 1)
    assert not [key for key in weights if key.endswith("beta")]
    assert Vocoder(section("vocoder", config), weights)(MEL).shape == (1, 2, 56)
