"""The transformer's layers: linear with fp8, AdaLN of distinct timesteps, rotation, pieces."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from braid.diffusion.models.ltx2.adaln import Modulation, distinct, make_adaln, modulate, sinusoids
from braid.diffusion.models.ltx2.linear import make_linear, quantise
from braid.diffusion.models.ltx2.pieces import row_slices
from braid.diffusion.models.ltx2.rope import make_rotation, rotate
from braid.errors import ModelFileError

FP8 = torch.float8_e4m3fn


def adaln_weights(width: int, num_rows: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = {
        "u.emb.timestep_embedder.linear_1": (width, 256),
        "u.emb.timestep_embedder.linear_2": (width, width),
        "u.linear": (num_rows * width, width),
    }
    weights = {f"{name}.weight": torch.randn(shape, generator=generator) / 16 for name, shape in shapes.items()}
    return weights | {f"{name}.bias": torch.randn(shape[0], generator=generator) for name, shape in shapes.items()}


@pytest.mark.parametrize("num_rows", [1, 2, 3])
def test_few_rows_have_the_bits_that_they_have_among_many(num_rows: int) -> None:
    generator = torch.Generator().manual_seed(0)
    weight, x = torch.randn(512, 384, generator=generator), torch.randn(4, 384, generator=generator)
    linear = make_linear({"l.weight": weight}, "l")
    x[num_rows:] = 0
    assert torch.equal(linear(x[:num_rows]), linear(x)[:num_rows])


def test_no_rows_are_no_rows() -> None:
    assert make_linear({"l.weight": torch.ones(5, 3)}, "l")(torch.empty(1, 0, 3)).shape == (1, 0, 5)


def test_activations_beyond_the_range_of_fp8_are_clamped() -> None:
    x = torch.tensor([-1e6, -1.0, 0.0, 1.0, 1e6])
    quantised = quantise(x, torch.tensor([0.5])).float()
    assert quantised.tolist() == [-448.0, -2.0, 0.0, 2.0, 448.0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_scaled_fp8_layer_is_near_the_product_of_what_is_stored(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    weight, bias = torch.randn(32, 16, generator=generator).to(FP8), torch.randn(32, generator=generator)
    x = torch.randn(3, 7, 16, generator=generator).to(FP8).float() * 0.25
    scales = {"l.weight_scale": torch.tensor([0.125]), "l.input_scale": torch.tensor(0.25)}
    linear = make_linear({"l.weight": weight, "l.bias": bias, **scales}, "l")
    expected = functional.linear(x, weight.float() * 0.125, bias)
    torch.testing.assert_close(linear(x.to(dtype)), expected.to(dtype), rtol=2e-2, atol=2e-2)


def test_an_fp8_layer_with_one_of_two_scales_is_refused() -> None:
    with pytest.raises(ModelFileError, match="l has only one of weight_scale and input_scale"):
        make_linear({"l.weight": torch.ones(4, 4).to(FP8), "l.weight_scale": torch.ones(1)}, "l")


def test_a_missing_weight_is_named() -> None:
    with pytest.raises(ModelFileError, match=r"l\.weight is missing"):
        make_linear({}, "l")


def test_modulation_of_distinct_timesteps_is_that_of_every_token() -> None:
    unit = make_adaln(adaln_weights(12, 3), "u", 12, 3)
    timesteps = torch.tensor([[0.5, 0.0, 0.5, 0.25, 0.0], [0.5, 0.5, 0.5, 0.5, 0.125]])
    found = distinct(timesteps)
    assert found.values.tolist() == [0.0, 0.125, 0.25, 0.5]
    rows, embedding = unit(found.values * 1000, torch.float32, torch.device("cpu"))
    each, each_embedding = unit(timesteps.flatten() * 1000, torch.float32, torch.device("cpu"))
    modulation = Modulation(rows, found.index)
    for row in range(3):
        ours = modulation.of_tokens(row, slice(1, 4))
        torch.testing.assert_close(ours, each[:, row].unflatten(0, (2, 5))[:, 1:4], rtol=0, atol=1e-5)  # type: ignore[no-untyped-call]
    assert found.index is not None
    torch.testing.assert_close(embedding[found.index].flatten(0, 1), each_embedding, rtol=0, atol=1e-5)


def test_one_timestep_needs_no_index_and_its_number_of_neighbours_changes_no_bit() -> None:
    assert distinct(torch.full((2, 7), 0.5)).index is None
    unit = make_adaln(adaln_weights(64, 9), "u", 64, 9)
    timesteps = torch.linspace(0, 1000, 8)
    together = unit(timesteps, torch.float32, torch.device("cpu"))[0]
    for index in range(8):
        assert torch.equal(
            unit(timesteps[index : index + 1], torch.float32, torch.device("cpu"))[0][0], together[index]
        )


def test_modulate_scales_then_shifts() -> None:
    modulation = Modulation(torch.tensor([[[1.0], [2.0]], [[3.0], [4.0]]]), torch.tensor([[0, 1, 1]]))
    ours = modulate(torch.full((1, 2, 1), 10.0), modulation, slice(0, 2), shift=0, scale=1)
    assert ours.flatten().tolist() == [10 * 3 + 1, 10 * 5 + 3]


def test_sinusoids_are_cosines_then_sines() -> None:
    waves = sinusoids(torch.tensor([0.0, 500.0]))
    assert waves.shape == (2, 256)
    assert waves[0].tolist() == [1.0] * 128 + [0.0] * 128
    angle = torch.tensor(500.0)
    torch.testing.assert_close(waves[1, [0, 128]], torch.stack((angle.cos(), angle.sin())))


@pytest.mark.parametrize("rope_type", ["split", "interleaved"])
def test_products_of_turned_vectors_depend_on_distances_only(rope_type: str) -> None:
    generator = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, 1, 1, 24, generator=generator)
    products = []
    for offset in (0.0, 3.0):
        starts = torch.tensor([1.0, 4.0])[None, None, :, None] + offset
        rotation = make_rotation(starts.expand(1, 1, 2, 2), 24, 2, (20.0,), theta=10.0, rope_type=rope_type)  # type: ignore[arg-type]
        turned = rotate(torch.cat((q, k), dim=1), rotation)
        products.append((turned[0, 0] * turned[0, 1]).sum())
    torch.testing.assert_close(products[0], products[1], rtol=1e-4, atol=1e-4)
    assert not torch.isclose(products[0], (q * k).sum())


@pytest.mark.parametrize("num_rows", [1, 15, 16, 17, 257, 1000])
@pytest.mark.parametrize("limit", [1, 1000, 10**9])
def test_slices_cover_all_rows_once_in_order(num_rows: int, limit: int) -> None:
    slices = row_slices(num_rows, 50, limit)
    assert [row for rows in slices for row in range(rows.start, rows.stop)] == list(range(num_rows))
    assert all((rows.stop - rows.start) % 16 == 0 for rows in slices[:-1])
