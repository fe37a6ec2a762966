"""BEiT with all three biases: what timm's own computes, as far as a softmax can tell."""

import torch
from timm.models.beit import Beit

from limbeck.models.beit_bias import QkvBiasBeit, resize_tables

SHAPE = {
    "img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3, "num_classes": 4,
    "use_rel_pos_bias": True, "init_values": 0.1,
}  # fmt: skip


def disturbed(model):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return model.eval()


def test_a_softmax_does_not_feel_the_keys_bias():
    biased, plain = disturbed(QkvBiasBeit(**SHAPE)), Beit(**SHAPE).eval()
    weights = biased.state_dict()
    for block in range(2):
        bias = weights.pop(f"blocks.{block}.attn.qkv.bias")
        assert bias.shape == (72,) and bias.abs().min() > 0
        weights[f"blocks.{block}.attn.q_bias"] = bias[:24]
        weights[f"blocks.{block}.attn.v_bias"] = bias[48:]
    plain.load_state_dict(weights)
    images = torch.rand(2, 3, 32, 32)
    # atol: float32 rounding of scores that the keys' bias has shifted
    torch.testing.assert_close(biased(images), plain(images), atol=1e-5, rtol=1e-4)


def test_the_bias_starts_at_zero():
    model = QkvBiasBeit(**SHAPE)
    assert all(block.attn.qkv.bias.eq(0).all() for block in model.blocks)
    assert all(0.01 < block.attn.qkv.weight.std() < 0.03 for block in model.blocks)


def test_only_tables_of_another_shape_are_resized():
    old = disturbed(QkvBiasBeit(**SHAPE)).state_dict()
    own = QkvBiasBeit(**SHAPE | {"img_size": 48}).state_dict()
    resized = resize_tables(old, own, (4, 4), (6, 6))
    table = "blocks.0.attn.relative_position_bias_table"
    assert resized[table].shape == (124, 3) and old[table].shape == (52, 3)
    changed = {name for name in old if not torch.equal(resized[name], old[name])}
    assert changed == {table, table.replace("blocks.0", "blocks.1")}
    assert resize_tables(old, own, (2, 8), (6, 6)) is old
