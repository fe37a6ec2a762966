"""The reconstruction loss alone: its decoder's shape and a loop from the formula."""

import pytest
import torch

from limbeck.errors import UserError
from limbeck.methods.options import DecoderOptions
from limbeck.methods.reconstruction import Reconstruction
from limbeck.models.finished import Keepsake
from limbeck.records import Batch, Features, Tap
from tests.fakes import FakeEncoder


@pytest.mark.parametrize("norm_pix_loss", [True, False])
def test_equals_a_loop_over_the_masked_patches(norm_pix_loss):
    facts = FakeEncoder().facts  # 8 x 8 pixels, patches of 4, mean and std 0.5
    loss = Reconstruction(DecoderOptions(norm_pix_loss=norm_pix_loss), facts).double()
    images = torch.rand(2, 3, 8, 8, dtype=torch.float64)
    ids_keep = torch.tensor([[0, 3], [2, 1]])
    tokens = torch.randn(2, 3, 8, dtype=torch.float64)
    guess = loss.decoder(tokens, ids_keep)
    errors = []
    for sample, patch in ((0, 1), (0, 2), (1, 0), (1, 3)):
        row, column = divmod(patch, 2)
        target = [
            (float(images[sample, channel, 4 * row + y, 4 * column + x]) - 0.5) / 0.5
            for y in range(4)
            for x in range(4)
            for channel in range(3)
        ]
        if norm_pix_loss:
            mean = sum(target) / 48
            variance = sum((value - mean) ** 2 for value in target) / 47  # unbiased
            target = [(value - mean) / (variance + 1e-6) ** 0.5 for value in target]
        own = guess[sample, patch].tolist()
        errors.append(sum((a - b) ** 2 for a, b in zip(own, target, strict=True)) / 48)
    one = Batch(images, images, None, ("a", "b"), torch.arange(2), ids_keep)
    student = Features(None, 1, (2, 2), {Tap("output"): tokens})
    assert loss(student, one).item() == pytest.approx(sum(errors) / 4, rel=1e-12)


def test_the_decoder_is_half_as_wide_unless_told():
    facts = FakeEncoder(embed_dim=128).facts
    assert Reconstruction(DecoderOptions(), facts).decoder.decoder_embed.out_features == 64
    options = DecoderOptions(decoder_embed_dim=96, decoder_depth=3, decoder_num_heads=2)
    decoder = Reconstruction(options, facts).decoder
    assert decoder.decoder_embed.out_features == 96 and len(decoder.decoder_blocks) == 3
    assert decoder.decoder_blocks[0].attn.num_heads == 2


def test_the_decoder_is_kept_and_gone_on_with():
    facts = FakeEncoder().facts
    kept = Reconstruction(DecoderOptions(), facts).keepsakes()
    assert list(kept) == ["decoder"] and kept["decoder"].facts == {"num_heads": 1, "grid": [2, 2]}
    again = Reconstruction(DecoderOptions(), facts)
    start = again.decoder.decoder_embed.weight.clone()
    again.recall({})
    assert torch.equal(again.decoder.decoder_embed.weight, start)
    again.recall(kept)
    own = again.decoder.state_dict()
    assert all(torch.equal(own[name], value) for name, value in kept["decoder"].weights.items())


def test_a_fresh_decoder_where_there_is_a_choice():
    facts = FakeEncoder().facts
    fresh = Reconstruction(DecoderOptions(fresh_decoder=True), facts)
    start = fresh.decoder.decoder_embed.weight.clone()
    fresh.recall(Reconstruction(DecoderOptions(), facts).keepsakes())
    assert torch.equal(fresh.decoder.decoder_embed.weight, start)
    with pytest.raises(UserError, match="fresh_decoder has no effect"):
        fresh.recall({"other": Keepsake({})})


def test_a_decoder_of_another_shape_is_refused():
    kept = Reconstruction(DecoderOptions(decoder_depth=2), FakeEncoder().facts).keepsakes()
    with pytest.raises(UserError, match="set decoder_embed_dim 4, decoder_depth 2"):
        Reconstruction(DecoderOptions(), FakeEncoder().facts).recall(kept)


def test_a_decoder_that_reads_an_inner_block_is_not_kept():
    facts = FakeEncoder().facts
    inner = Reconstruction(DecoderOptions(), facts, before_block=1)
    assert inner.keepsakes() == {}
    start = inner.decoder.decoder_embed.weight.clone()
    inner.recall(Reconstruction(DecoderOptions(), facts).keepsakes())
    assert torch.equal(inner.decoder.decoder_embed.weight, start)
