"""BEiT with all three biases: what timm's own computes, as far as a softmax can tell."""

import torch
from timm.models.beit import Attention, Beit
from timm.models.swin_transformer import SwinTransformer

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
    larger = QkvBiasBeit(**SHAPE | {"img_size": 48})
    resized = resize_tables(old, larger)
    table = "blocks.0.attn.relative_position_bias_table"
    assert resized[table].shape == (124, 3) and old[table].shape == (52, 3)
    changed = {name for name in old if not torch.equal(resized[name], old[name])}
    assert changed == {table, table.replace("blocks.0", "blocks.1")}
    wide = QkvBiasBeit(**SHAPE | {"img_size": (16, 64)}).state_dict()
    kept = resize_tables(wide, larger)  # nothing tells that they were 2 x 8
    assert kept.keys() == wide.keys() and kept[table] is wide[table]


def test_a_swin_s_tables_follow_its_windows_not_its_grid():
    shape = {"embed_dim": 12, "depths": (1, 1), "num_heads": (1, 2), "window_size": 4}
    old = disturbed(SwinTransformer(img_size=32, **shape)).state_dict()
    smaller = SwinTransformer(img_size=24, **shape)  # 3 x 3 tokens are left in its last stage
    resized = resize_tables(old, smaller)
    first, last = (f"layers.{k}.blocks.0.attn.relative_position_bias_table" for k in range(2))
    assert resized[first] is old[first] and resized[last].shape == (25, 2)
    # No entry for the class token at its end: the middle one is that of a token with itself.
    torch.testing.assert_close(resized[last][12], old[last][24])


def test_a_bias_is_the_same_with_and_without_a_gradient():
    attn = disturbed(QkvBiasBeit(**SHAPE)).blocks[0].attn
    published = Attention._get_rel_pos_bias(attn)
    with torch.no_grad():
        read = attn._get_rel_pos_bias()
        assert torch.equal(read, published) and read.stride() == published.stride()
        attn.relative_position_bias_table.data.add_(1)  # nothing is kept of a table
        assert torch.equal(attn._get_rel_pos_bias(), Attention._get_rel_pos_bias(attn))
    weights = torch.randn_like(published)
    (own,) = torch.autograd.grad(
        (attn._get_rel_pos_bias() * weights).sum(), attn.relative_position_bias_table
    )
    (theirs,) = torch.autograd.grad(
        (Attention._get_rel_pos_bias(attn) * weights).sum(), attn.relative_position_bias_table
    )
    assert torch.equal(own, theirs)
