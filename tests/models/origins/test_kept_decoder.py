"""Decoders kept beside an encoder: what is kept of them, and how one goes on."""

import pytest
import torch

from limbeck.errors import UserError
from limbeck.models.finished import Keepsake
from limbeck.models.mae import MaeDecoder, build_projection
from limbeck.models.origins.kept_decoder import (
    fill_decoder,
    fill_feature_decoder,
    keep_decoder,
    keep_feature_decoder,
)


def small_decoder(width=16, depth=1, heads=2, grid=(4, 4), patch_size=8):
    return MaeDecoder(32, grid, patch_size, width, depth, heads, True)


def projections(width=16, teacher=40):
    return {"decoderfeature_pred": build_projection(width, teacher)}


def feature_decoder(**shape):
    decoder = small_decoder(patch_size=None, **shape)
    decoder.decoder_blocks[0].norm1.bias.data += 0.1  # as if trained
    return decoder


def test_filling_one_that_was_built_from_options():
    kept = keep_decoder(small_decoder())
    assert kept.facts == {"num_heads": 2, "grid": [4, 4]}
    decoder = small_decoder()
    fill_decoder(decoder, kept)
    assert all(torch.equal(v, decoder.state_dict()[n]) for n, v in kept.weights.items())
    wider = small_decoder(grid=(6, 6))
    fill_decoder(wider, kept)
    assert torch.equal(wider.decoder_embed.weight, decoder.decoder_embed.weight)


@pytest.mark.parametrize("shape", [{"width": 24}, {"depth": 2}, {"heads": 4}])
def test_other_options_are_refused_with_the_ones_to_set(shape):
    message = "set decoder_embed_dim 16, decoder_depth 1 and decoder_num_heads 2, or fresh_decoder"
    with pytest.raises(UserError, match=message):
        fill_decoder(small_decoder(**shape), keep_decoder(small_decoder()))


def test_where_nobody_knows_the_heads_the_options_do():
    weights = keep_decoder(small_decoder()).weights
    fill_decoder(small_decoder(heads=8), Keepsake(weights))


def test_such_a_decoder_is_kept_and_goes_on():
    decoder, own = feature_decoder(), projections()
    kept = keep_feature_decoder(decoder, own)
    assert kept.facts == {"num_heads": 2, "grid": [4, 4]}
    assert kept.weights.keys() == {*decoder.state_dict()} | {
        f"decoderfeature_pred.{part}.{value}" for part in ("fc1", "fc2")
        for value in ("weight", "bias")
    }  # fmt: skip
    with_pixels = small_decoder()
    assert keep_feature_decoder(with_pixels, own).weights.keys() == kept.weights.keys()
    again, others = feature_decoder(grid=(6, 6)), projections()
    fill_feature_decoder(again, others, kept)
    assert torch.equal(again.decoder_embed.weight, decoder.decoder_embed.weight)
    assert torch.equal(
        others["decoderfeature_pred"].fc2.weight, own["decoderfeature_pred"].fc2.weight
    )


def test_a_projection_that_is_not_brought_starts_anew_and_says_so(caplog):
    kept = keep_feature_decoder(feature_decoder(), projections())
    both = projections() | {"encoderfeature_pred": build_projection(32, 48)}
    before = both["encoderfeature_pred"].fc1.weight.clone()
    with caplog.at_level("INFO", "limbeck"):
        fill_feature_decoder(feature_decoder(), both, kept)
    assert "student.weights bring no encoderfeature_pred: it starts anew." in caplog.text
    assert torch.equal(both["encoderfeature_pred"].fc1.weight, before)


def test_one_of_another_shape_is_refused_with_what_to_set():
    kept = keep_feature_decoder(feature_decoder(), projections())
    with pytest.raises(UserError, match="set decoder_embed_dim 16, decoder_depth 1 and"):
        fill_feature_decoder(feature_decoder(depth=2), projections(), kept)
    with pytest.raises(UserError, match="for a teacher of another width.*or set fresh_decoder"):
        fill_feature_decoder(feature_decoder(), projections(teacher=24), kept)
