"""The reconstruction loss alone: its decoder's shape and a loop from the formula."""

import pytest
import torch

from limbeck.errors import UserError
from limbeck.methods.options import DecoderOptions
from limbeck.methods.reconstruction import Reconstruction
from limbeck.models.finished import Keepsake
from limbeck.models.origins.kept_decoder import DECODER
from limbeck.records import Batch, Features, Tap
from tests.fakes import FakeEncoder
from tests.models.families import small_encoder, small_images


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
        Reconstruction(DecoderOptions(decoder_depth=1), FakeEncoder().facts).recall(kept)


def test_a_decoder_goes_on_in_its_own_shape_where_none_is_asked_for():
    shape = DecoderOptions(decoder_embed_dim=12, decoder_depth=2, decoder_num_heads=3)
    kept = Reconstruction(shape, FakeEncoder().facts).keepsakes()
    state = torch.random.get_rng_state()
    again = Reconstruction(DecoderOptions(decoder_embed_dim=12), FakeEncoder().facts)
    drawn = torch.random.get_rng_state()
    again.recall(kept)
    assert torch.equal(torch.random.get_rng_state(), drawn) and not torch.equal(drawn, state)
    torch.testing.assert_close(again.decoder.state_dict(), kept[DECODER].weights)
    assert again.decoder.decoder_blocks[0].attn.num_heads == 3


def test_a_decoder_whose_heads_nobody_tells_asks_for_them():
    kept = Reconstruction(DecoderOptions(), FakeEncoder().facts).keepsakes()
    untold = {DECODER: Keepsake(kept[DECODER].weights)}
    with pytest.raises(UserError, match="4 wide, which does not tell its heads; set decoder_num_"):
        Reconstruction(DecoderOptions(), FakeEncoder().facts).recall(untold)
    told = Reconstruction(DecoderOptions(decoder_num_heads=2), FakeEncoder().facts)
    told.recall(untold)
    assert told.decoder.decoder_blocks[0].attn.num_heads == 2


def test_a_decoder_that_reads_an_inner_block_is_not_kept():
    facts = FakeEncoder().facts
    inner = Reconstruction(DecoderOptions(), facts, before_block=1)
    assert inner.norm.eps == 1e-6 and inner.keepsakes() == {}
    start = inner.decoder.decoder_embed.weight.clone()
    inner.recall(Reconstruction(DecoderOptions(), facts).keepsakes())
    assert torch.equal(inner.decoder.decoder_embed.weight, start)


def test_a_hierarchical_student_is_drawn_token_by_token_of_its_masked_units():
    encoder = small_encoder("hiera")  # 2 x 2 units of 2 x 2 last tokens of 8 x 8 pixels
    facts = encoder.facts
    loss = Reconstruction(DecoderOptions(norm_pix_loss=False), facts)
    assert loss.taps == (Tap("tokens", 0), Tap("output"))
    assert (
        loss.decoder.decoder_embed.out_features == 32
        and loss.decoder.decoder_pos_embed.requires_grad
    )
    images, ids_keep = small_images(), torch.tensor([[3, 0], [1, 2]])
    one = Batch(images, images, None, ("a", "b"), torch.arange(2), ids_keep)
    student = encoder(images, ids_keep, loss.taps)
    # Tokens of units in rows of units, each unit's in rows.
    places = {0: (0, 1, 4, 5), 1: (2, 3, 6, 7), 2: (8, 9, 12, 13), 3: (10, 11, 14, 15)}
    kept = torch.tensor([[*places[3], *places[0]], [*places[1], *places[2]]])
    guess = loss.decoder(loss.fusion(student.taps), kept)
    mean, std = (torch.tensor(each).view(3, 1, 1) for each in (facts.mean, facts.std))
    errors = []
    for sample, units in enumerate(((1, 2), (0, 3))):
        for place in (place for unit in units for place in places[unit]):
            row, column = (8 * side for side in divmod(place, 4))
            target = ((images[sample] - mean) / std)[:, row : row + 8, column : column + 8]
            errors.append((guess[sample, place] - target.flatten()).square().mean())
    torch.testing.assert_close(loss(student, one), torch.stack(errors).mean())
