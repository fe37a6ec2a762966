"""ViTDet's backbone: its golden forward pass, and each part against slow loops."""

import pytest
import torch

from limbeck.errors import UserError
from limbeck.models.vit import build_encoder
from limbeck.models.vit_det import (
    GridAttention,
    from_windows,
    into_windows,
    published_globals,
    relative_rows,
)
from limbeck.records import Tap
from tests.models.dense.fills import cos_fill, sin_ramp

GOLDEN = {
    "img_size": [96, 96], "patch_size": 16, "embed_dim": 8, "depth": 3, "num_heads": 2,
    "mlp_ratio": 4.0, "window": 4, "global_blocks": [2], "pos_grid": [14, 14],
}  # fmt: skip


def vit_det(**changed):
    """Built without a normalisation."""
    architecture = {"kind": "vit-det", "name": "vit_det", "kwargs": GOLDEN | changed}
    return build_encoder(architecture | {"mean": [0.0] * 3, "std": [1.0] * 3})


def last_map(encoder):
    tap = Tap("tokens", -1)
    with torch.no_grad():
        return encoder(sin_ramp(1, 3, 96, 96), None, (tap,)).taps[tap].mT.unflatten(2, (6, 6))


def test_the_golden_forward_pass():  # row 19
    encoder = cos_fill(vit_det())
    found = last_map(encoder)
    assert found.sum().item() == pytest.approx(-21.7156315886, abs=1e-9)
    assert found[0, 0, 0, 0].item() == pytest.approx(-19.8843749244, abs=1e-9)
    assert found[0, 5, 3, 4].item() == pytest.approx(-10.2848387040, abs=1e-9)
    for block in encoder.model.blocks:
        block.attn.rel_pos_h.data.zero_()
        block.attn.rel_pos_w.data.zero_()
    assert last_map(encoder).sum().item() == pytest.approx(-20.0787740345, abs=1e-9)


def test_rows_of_a_table():  # row 18
    table = torch.arange(7.0)[:, None]
    expected = [[3, 2, 1, 0], [4, 3, 2, 1], [5, 4, 3, 2], [6, 5, 4, 3]]
    assert relative_rows(table, 4)[..., 0].tolist() == expected
    resized = torch.tensor([[3, 1.6, 0.2], [4.4, 3, 1.6], [5.8, 4.4, 3]])
    torch.testing.assert_close(relative_rows(table, 3)[..., 0], resized)


def test_published_sizes():  # section 2.6, without the pyramid
    shape = {"embed_dim": 192, "depth": 12, "window": 14, "global_blocks": published_globals(12)}
    for side, num_heads, count in ((640, 12, 5540864), (1024, 12, 5547008), (1024, 3, 5616512)):
        with torch.device("meta"):
            encoder = vit_det(**shape, num_heads=num_heads, img_size=[side, side])
        assert sum(p.numel() for p in encoder.parameters()) == count
    tables = encoder.model.blocks
    assert tables[0].attn.rel_pos_h.shape == (27, 64) and tables[2].attn.rel_pos_w.shape == (
        127,
        64,
    )
    with torch.device("meta"):
        every = vit_det(**shape | {"global_blocks": list(range(12)), "embed_dim": 384},
                        num_heads=6, img_size=[1024, 1024])  # fmt: skip
    assert sum(p.numel() for p in every.parameters()) == 21859584


def test_which_blocks_are_global():
    assert published_globals(12) == [2, 5, 8, 11]
    assert published_globals(24) == [5, 11, 17, 23]
    assert published_globals(3) == [0, 1, 2] and published_globals(1) == [0]


def attention(grid, window):
    torch.manual_seed(0)
    attn = GridAttention(8, num_heads=2, qkv_bias=True)
    attn.settle(grid, window)
    attn = attn.double()
    for parameter in attn.parameters():
        torch.nn.init.normal_(parameter)
    return attn


def by_loops(attn, x, grid, window):
    """What each query sees, one after the other; beyond the grid it sees zeros."""
    rows, columns = grid
    tables = attn.rel_pos_h, attn.rel_pos_w
    out = torch.zeros_like(x)
    for batch in range(len(x)):
        for place in range(rows * columns):
            qy, qx = divmod(place, columns)
            top, left, sides = 0, 0, grid
            if window:
                top, left, sides = qy // window * window, qx // window * window, (window, window)
            seen = [(top + i, left + j) for i in range(sides[0]) for j in range(sides[1])]
            empty = torch.zeros(8, dtype=x.dtype)
            tokens = torch.stack([
                x[batch, y * columns + x_] if y < rows and x_ < columns else empty
                for y, x_ in seen
            ])  # fmt: skip
            mixed = []
            for head in range(2):
                at = slice(4 * head, 4 * head + 4)
                weights, biases = attn.qkv.weight.split(8), attn.qkv.bias.split(8)
                q = x[batch, place] @ weights[0][at].T + biases[0][at]
                k = tokens @ weights[1][at].T + biases[1][at]
                v = tokens @ weights[2][at].T + biases[2][at]
                scores = torch.stack([
                    q @ k[i] / 2 + q @ tables[0][qy - y + sides[0] - 1]
                    + q @ tables[1][qx - x_ + sides[1] - 1]
                    for i, (y, x_) in enumerate(seen)
                ])  # fmt: skip
                mixed.append(scores.softmax(0) @ v)
            out[batch, place] = torch.cat(mixed) @ attn.proj.weight.T + attn.proj.bias
    return out


@pytest.mark.parametrize("window", [0, 2])
@pytest.mark.parametrize("is_fused", [True, False])
def test_attention_equals_slow_loops(window, is_fused):
    attn = attention((3, 5), window)
    attn.fused_attn = is_fused
    x = torch.randn(2, 15, 8, dtype=torch.float64)
    torch.testing.assert_close(attn(x), by_loops(attn, x, (3, 5), window))


def test_windows_there_and_back():
    x = torch.randn(2, 35, 3)
    cut = into_windows(x, (5, 7), 4)
    assert cut.shape == (2 * 4, 16, 3)
    assert torch.equal(from_windows(cut, (5, 7), 4), x)
    assert torch.equal(cut[3].view(4, 4, 3)[1:], torch.zeros(3, 4, 3))  # below the last row


def test_taps_and_refusals():
    encoder = vit_det()
    facts = encoder.facts
    assert facts.global_blocks == (2,) and not facts.can_drop and facts.num_prefix_tokens == 0
    torch.nn.init.normal_(encoder.model.blocks[2].attn.rel_pos_h)
    images = torch.rand(1, 3, 96, 96)
    scores, tokens = Tap("scores", 2), Tap("attention_output", 2)
    found = encoder(images, None, (scores, tokens, Tap("values", 2))).taps
    mixed = (found[scores].softmax(-1) @ found[Tap("values", 2)]).transpose(1, 2).flatten(2)
    torch.testing.assert_close(encoder.model.blocks[2].attn.proj(mixed), found[tokens])
    with pytest.raises(UserError, match="choose a block with global attention: 2"):
        encoder(images, None, (Tap("queries", 0),))
    with pytest.raises(UserError, match="tables of relative positions as wide as a head"):
        encoder.set_num_heads(0, 4)
    with pytest.raises(UserError, match="there are no such windows, positions or blocks among 3"):
        vit_det(global_blocks=[3])


def test_positions_learn_as_they_are_stored():
    encoder = vit_det()
    tap = Tap("tokens", 0)
    encoder(torch.rand(1, 3, 96, 96), None, (tap,)).taps[tap].square().sum().backward()
    gradient = encoder.model.pos_embed.grad
    assert gradient.shape == (1, 197, 8)
    assert not gradient[:, 0].any() and gradient[:, 1:].any()
