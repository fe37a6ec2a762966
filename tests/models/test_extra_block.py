"""The throw-away block: scores against a packed block of timm, and the position bias."""

from dataclasses import replace

import pytest
import torch

from limbeck.models.extra_block import QueryKeyBlock
from limbeck.records import Tap
from tests.models.families import small_encoder, small_images


def test_scores_are_those_of_a_whole_block():
    encoder = small_encoder("augreg")
    extra = QueryKeyBlock(encoder.facts)
    assert not extra.qk.bias.any()
    last = encoder.model.blocks[-1]
    width = encoder.facts.embed_dim
    with torch.no_grad():
        for name in ("weight", "bias"):
            getattr(extra.norm1, name).copy_(getattr(last.norm1, name))
            getattr(extra.qk, name).copy_(getattr(last.attn.qkv, name)[: 2 * width])
    assert extra.norm1.eps == last.norm1.eps == 1e-6
    taps = encoder(small_images(), taps=(Tap("scores", -1), Tap("block_input", -1))).taps
    torch.testing.assert_close(extra(taps[Tap("block_input", -1)]), taps[Tap("scores", -1)])


@pytest.mark.parametrize(("has_cls_token", "rows"), [(False, 49), (True, 52)])
def test_a_position_bias_where_the_encoder_has_one(has_cls_token, rows):
    facts = replace(
        small_encoder("beit").facts, has_cls_token=has_cls_token, num_prefix_tokens=has_cls_token
    )
    extra = QueryKeyBlock(facts)
    table = extra.position_bias.relative_position_bias_table
    assert table.shape == (rows, 2) and not table.any()  # (2 * 4 - 1)^2 offsets, 3 of a CLS token
    tokens = torch.randn(1, 16 + has_cls_token, 32)
    without = extra(tokens)
    with torch.no_grad():
        table[24] = 5.0  # no offset: each patch to itself
    difference = (extra(tokens) - without)[0, 0][-16:, -16:]
    torch.testing.assert_close(difference, 5 * torch.eye(16))
    if has_cls_token:  # the other side has no CLS token
        torch.testing.assert_close(
            extra(tokens[:, 1:]), extra(tokens)[..., 1:, 1:]
        )  # fmt: skip


def test_no_position_bias_for_a_plain_encoder():
    assert QueryKeyBlock(small_encoder("augreg").facts).position_bias is None


def test_golden_scores_of_two_tokens():
    facts = replace(
        small_encoder("augreg").facts, embed_dim=4, block_dims=(), input_dims=(), num_heads=(2, 2)
    )
    extra = QueryKeyBlock(facts)
    extra.norm1 = torch.nn.Identity()
    with torch.no_grad():  # a token is its query and its key, the same in both heads
        extra.qk.weight.copy_(torch.eye(4).view(2, 2, 4).repeat_interleave(2, dim=0).flatten(0, 1))
    scores = extra(torch.tensor([[[1.0, 0.0, 1.0, 1.0], [0.0, 2.0, 2.0, -1.0]]]))
    golden = torch.tensor([[0.7071067812, 1.4142135624], [1.4142135624, -1.4142135624]])
    torch.testing.assert_close(scores, golden.expand(1, 2, 2, 2))
