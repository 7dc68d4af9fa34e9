"""Muon's steps are orthogonal, of the size of Adam's, and go down."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
import torch

from braid.tests.training.denoiser.conftest import SHAPE
from braid.training.denoiser.initial_weights import tensor_shapes
from braid.training.denoiser.latent_pools import Pool, load_pools, save_pools
from braid.training.denoiser.muon import STEP_SIZE, Muon, orthogonal, orthogonal_steps
from braid.training.denoiser.optimisation import is_hidden_matrix


@pytest.mark.parametrize("shape", [(3, 16, 40), (2, 40, 16), (1, 24, 24)])
def test_singular_values_come_near_one(shape):
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(1)) * 5
    values = torch.linalg.svdvals(orthogonal(matrices))
    assert float(values.min()) > 0.3 and float(values.max()) < 1.3
    assert float(values.median()) > 0.65


def test_directions_stay():
    matrix = torch.randn(12, 30, generator=torch.Generator().manual_seed(2))
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    made = orthogonal(matrix[None])[0]
    inside = torch.linalg.svdvals(u @ torch.diag(torch.diagonal(u.T @ made @ v.T)) @ v - made)
    assert float(inside.max()) < 1e-3


def test_a_step_has_the_same_size_whatever_the_shape():
    generator = torch.Generator().manual_seed(3)
    updates = [torch.randn(shape, generator=generator) for shape in ((64, 64), (256, 64), (64, 256), (64, 64))]
    for step, update in zip(orthogonal_steps(updates, torch.float32), updates, strict=True):
        assert step.shape == update.shape and 0.6 < float(step.square().mean().sqrt()) / STEP_SIZE < 1.2


def test_it_goes_down_and_leaves_what_has_no_gradient():
    generator = torch.Generator().manual_seed(4)
    wanted = torch.randn(20, 30, generator=generator)
    matrix, other = torch.zeros(20, 30), torch.ones(8, 8)
    muon = Muon([matrix, other], torch.tensor(0.05), weight_decay=0.0, dtype=torch.float32)
    for _ in range(200):
        matrix.grad = matrix - wanted
        muon.step()
    assert float((matrix - wanted).square().mean()) < 0.05 and bool((other == 1).all())


def test_its_matrices_are_those_between_hidden_states():
    names = {name for name, shape in tensor_shapes(SHAPE).items() if is_hidden_matrix(name, torch.empty(shape))}
    assert "transformer_blocks.0.attn1.to_q.weight" in names
    assert "video_embeddings_connector.transformer_1d_blocks.0.ff.net.2.weight" in names
    assert not [name for name in names if "gate" in name or "adaln" in name or "proj_out" in name or "table" in name]


def test_pools_are_read_as_they_were_written(pools, tmp_path):
    # as a GPU's convolutions leave them
    left = [pool.video.contiguous(memory_format=torch.channels_last_3d) for pool in pools.values()]
    pools = {key: replace(pool, video=video) for (key, pool), video in zip(pools.items(), left, strict=True)}
    copies = {field.name: getattr(pools[16, 17], field.name) for field in fields(Pool)}
    copies = {name: None if tensor is None else tensor.clone() for name, tensor in copies.items()}
    pools[128, 17] = Pool(**copies | {"begun": left[0] + 1})
    save_pools(tmp_path / "pools.safetensors", pools)
    again = load_pools(tmp_path / "pools.safetensors", torch.device("cpu"))
    assert again.keys() == pools.keys()
    for key, pool in pools.items():
        assert torch.equal(again[key].video, pool.video) and torch.equal(again[key].tokens, pool.tokens)
    assert again[16, 17].begun is None and torch.equal(again[128, 17].begun, left[0] + 1)
