"""Inherited weights: an exact part of the parent's, heads whole, and whole networks."""

import pytest
import torch

from limbeck.models.build import build_student
from limbeck.models.contraction import contract, factors_of
from limbeck.models.inherit import inherit
from limbeck.models.options import StudentOptions
from tests.models.test_contraction import PLAIN, TINY


def pair(shape, smaller):
    parent, child = build_student(shape, seed=1), build_student(smaller, seed=2)
    with torch.no_grad():
        for value in parent.model.parameters():
            if value.requires_grad:  # fixed positions are what they are
                value.normal_()
    fresh = inherit(child, parent)
    return parent.eval(), child.eval(), fresh


@pytest.mark.parametrize("shape", [TINY, PLAIN], ids=["stages", "plain"])
def test_the_same_shape_is_the_same_network(shape):
    parent, child, fresh = pair(shape, shape)
    images = torch.rand(1, 3, *parent.facts.img_size)
    torch.testing.assert_close(child(images).tokens, parent(images).tokens, atol=0, rtol=0)
    assert fresh in ([], ["pos_embed"])


@pytest.mark.parametrize("shape", [TINY, PLAIN], ids=["stages", "plain"])
def test_every_contraction_can_inherit(shape):
    for factor in factors_of(shape):
        smaller = contract(shape, factor)
        if smaller is None:
            continue
        parent, child, fresh = pair(shape, smaller)
        theirs = parent.model.state_dict()
        for name, own in child.model.state_dict().items():
            if name not in fresh and own.shape == theirs[name].shape:
                assert own.equal(theirs[name])
        resplit = factor in ("head_dim", "num_heads")
        assert resplit == any("attn.qkv" in name for name in fresh)


def test_heads_are_kept_whole_in_a_plain_vit():
    parent, child, _ = pair(PLAIN, contract(PLAIN, "width"))
    qkv = parent.model.blocks[0].attn.qkv.weight.view(3, 4, 12, 48)
    expected = qkv[:, :3, :, :36].reshape(108, 36)
    assert child.model.blocks[0].attn.qkv.weight.equal(expected)
    proj = parent.model.blocks[0].attn.proj.weight
    assert child.model.blocks[0].attn.proj.weight.equal(proj[:36, :36])


def test_heads_are_kept_whole_in_a_tiny_vit():
    parent, child, _ = pair(TINY, contract(TINY, "embed_dims.3"))
    old, new = (each.model.stages[3].blocks[0].attn for each in (parent, child))
    assert new.qkv.weight.equal(old.qkv.weight.view(6, 3, 16, 96)[:5, :, :, :80].reshape(240, 80))
    assert new.attention_biases.equal(old.attention_biases[:5])
    assert old.attention_biases.any()


def test_a_smaller_window_keeps_the_offsets_that_are_left():
    parent, child, _ = pair(TINY, contract(TINY, "window_sizes.1"))
    old, new = (each.model.stages[1].blocks[0].attn for each in (parent, child))
    (far,) = torch.tensor([[1, 3]])  # rows and columns apart
    offset, old_offset = far[0] * 4 + far[1], far[0] * 8 + far[1]
    assert new.attention_biases[:, offset].equal(old.attention_biases[:, old_offset])
    assert new.attention_bias_idxs[0, 4 * 1 + 3] == offset  # from the first token to that one


def test_the_first_blocks_are_kept():
    parent, child, _ = pair(PLAIN, StudentOptions(**vars(PLAIN) | {"depth": 1}))
    first, own = parent.model.blocks[0], child.model.blocks[0]
    assert own.mlp.fc1.weight.equal(first.mlp.fc1.weight)
