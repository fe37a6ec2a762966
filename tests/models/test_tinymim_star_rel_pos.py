"""TinyMIM* with relative positions: published sizes and entries, and what its weights become."""

import pytest
import torch

from limbeck.errors import UserError
from limbeck.models.build import build_student
from limbeck.models.dense.build import build_segmenter
from limbeck.models.heads import with_classifier
from limbeck.models.options import SegmenterOptions, StudentOptions
from limbeck.models.rel_pos import with_rel_pos
from limbeck.models.tinymim_star_rel_pos import TinyMimStarRelPos, TwoTokenAttention
from limbeck.models.vit import build_encoder
from limbeck.records import Tap
from tests.models.families import architecture_of, small_encoder, small_images

OUTPUT = Tap("output")


def test_the_published_segmenter_has_the_published_size():
    student = build_student(StudentOptions(name="vit_tiny:num_heads=12"), seed=0)
    star = with_classifier(student, 10, None, 0, head="tinymim-star")
    options = SegmenterOptions(head="upernet", neck="wide")
    segmenter = build_segmenter(star, 150, options, 0, (512, 512))
    sizes = {
        name: sum(value.numel() for value in part.parameters())
        for name, part in segmenter.named_children()
    }
    assert sizes == {
        "backbone": 6_507_824, "neck": 11_063_424, "head": 67_963_542, "aux_head": 1_808_534,
    }  # fmt: skip
    assert sum(sizes.values()) == 87_343_324
    assert segmenter.layer_id("backbone.model.dist_token") == 13
    assert segmenter.layer_id("backbone.model.conv1x1.1.weight") == 13
    assert segmenter.layer_id("backbone.model.cls_token") == 0


def test_the_entries_of_the_two_tokens():
    """Of 32 x 32 patches; class and distillation token are not of one another's kind."""
    attention = TwoTokenAttention(12, 1, (32, 32))
    index = attention.relative_position_index
    assert attention.relative_position_bias_table.shape == (3975, 1)
    assert (index[1, 2:] == 3969).all() and (index[2:, 1] == 3970).all() and index[1, 1] == 3971
    assert (index[0, 1:] == 3972).all() and (index[1:, 0] == 3973).all() and index[0, 0] == 3974
    assert (index[2, 2], index[2, -1], index[-1, 2]) == (1984, 0, 3968)


def test_a_fine_tuned_one_goes_on_as_it_is():
    star = small_encoder("tinymim-star")
    made = with_rel_pos(star, "qkv-bias", 1.0)
    assert isinstance(made.model, TinyMimStarRelPos)
    images = small_images()
    found, expected = (each(images, None, (OUTPUT,)).taps[OUTPUT] for each in (made, star))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_the_table_is_added_to_the_scores():
    encoder = small_encoder("tinymim-star-rel-pos")
    scores, before = Tap("scores", 1), Tap("block_input", 1)
    with_table = encoder(small_images(), None, (scores, before)).taps
    table = encoder.model.blocks[1].attn.relative_position_bias_table
    with torch.no_grad():
        table.zero_()
    without = encoder(small_images(), None, (scores, before)).taps
    assert torch.equal(with_table[before], without[before])
    difference = (with_table[scores] - without[scores])[0]
    encoder = small_encoder("tinymim-star-rel-pos")
    attention = encoder.model.blocks[1].attn
    expected = attention.relative_position_bias_table[attention.relative_position_index]
    torch.testing.assert_close(difference, expected.permute(2, 0, 1), rtol=1e-4, atol=1e-5)


def test_no_classifier():
    architecture = architecture_of("tinymim-star-rel-pos")
    architecture["kwargs"]["num_classes"] = 3
    with pytest.raises(UserError, match="has no classifier"):
        build_encoder(architecture)
