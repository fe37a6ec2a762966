"""Segmenters of every family: sizes as published, starts, other image sizes, what is frozen."""

import pytest
import torch

from limbeck.errors import UserError
from limbeck.models.build import build_student
from limbeck.models.dense.build import at_img_size, blocks_of, build_segmenter
from limbeck.models.options import SegmenterOptions, StudentOptions
from limbeck.ops.pos_embed import interpolate_pos_embed
from limbeck.records import Tap
from tests.models.families import FAMILIES, HIERARCHICAL, IMG_SIZE, small_encoder

LOGITS = Tap("logits")
UPERNET, FPN = SegmenterOptions(head="upernet"), SegmenterOptions(head="semantic-fpn")


def logits_of(segmenter, images):
    return segmenter(images, None, (LOGITS,)).taps[LOGITS]


def count(*modules):
    return sum(value.numel() for module in modules for value in module.parameters())


@pytest.mark.parametrize(
    ("student", "options", "total", "backbone"),
    [
        ("vit_tiny", UPERNET, 11_028_284, 6_273_936),
        ("vit_tiny:num_heads=12", FPN, 7_045_990, 6_361_296),
        ("vit_small", UPERNET, 41_997_644, 24_049_440),
    ],
)
def test_published_sizes(student, options, total, backbone):
    encoder = build_student(StudentOptions(name=student), seed=0)
    segmenter = build_segmenter(encoder, 150, options, 0, (512, 512))
    assert count(segmenter) == total
    assert count(segmenter.backbone, segmenter.neck) == backbone
    table = segmenter.backbone.model.blocks[0].attn.relative_position_bias_table
    assert table.shape == (3972, encoder.facts.num_heads[0]) and not table.any()
    assert (segmenter.backbone.model.blocks[3].gamma_1 == 1).all()


def test_positions_are_those_of_the_encoder_bicubic():
    encoder = small_encoder("mae")
    segmenter = build_segmenter(encoder, 3, UPERNET, 0, (64, 48))
    expected = interpolate_pos_embed(encoder.model.pos_embed, 1, (4, 4), (8, 6), antialias=False)
    assert torch.equal(segmenter.backbone.model.pos_embed, expected)
    smoothed = interpolate_pos_embed(encoder.model.pos_embed, 1, (4, 4), (8, 6))
    assert not torch.allclose(expected, smoothed, atol=1e-3)


def test_fresh_relative_positions_and_scales_change_nothing_and_the_encoder_is_left_alone():
    encoder = small_encoder("mae")
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    images = torch.rand(2, 3, IMG_SIZE, IMG_SIZE)
    taps = tuple(Tap("tokens", block) for block in range(3))
    with_them, without = (
        build_segmenter(encoder, 3, SegmenterOptions(rel_pos=rel_pos), 0)
        for rel_pos in (True, False)
    )
    expected = encoder(images, None, taps).taps
    for segmenter in (with_them, without):
        found = segmenter(images, None, taps).taps
        for tap in taps:
            torch.testing.assert_close(found[tap], expected[tap], rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        for value in with_them.parameters():
            value.add_(1)
        for value in without.parameters():
            value.add_(1)
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())


def test_heads_are_a_function_of_the_seed():
    encoder = small_encoder("mae")
    first, again, other = (build_segmenter(encoder, 3, UPERNET, s).state_dict() for s in (1, 1, 2))
    assert all(torch.equal(value, again[name]) for name, value in first.items())
    name = "head.fuse.conv.weight"
    assert not torch.equal(first[name], other[name])


@pytest.mark.parametrize("options", [SegmenterOptions(), UPERNET, FPN], ids=lambda o: o.head)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_segments_and_learns(family, options):
    if family.startswith("tinymim-star") and options.head == "upernet":
        options = SegmenterOptions(head="upernet", neck="wide")
    segmenter = build_segmenter(small_encoder(family), 5, options, 0).train()
    size = IMG_SIZE // 4 if family in HIERARCHICAL else 4 * IMG_SIZE // segmenter.facts.patch_size
    logits = logits_of(segmenter, torch.rand(2, 3, IMG_SIZE, IMG_SIZE))
    assert logits.shape == (2, 5, size, size)
    (logits**2).sum().backward()
    unused = [name for name, value in segmenter.named_parameters() if value.grad is None]
    assert all(name.startswith("aux_head.") for name in unused), unused


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_takes_other_grids_than_the_square(family):
    segmenter = build_segmenter(small_encoder(family), 5, SegmenterOptions(), 0).eval()
    wide = at_img_size(segmenter, (IMG_SIZE, 3 * IMG_SIZE))
    assert wide.facts.img_size == (IMG_SIZE, 3 * IMG_SIZE)
    images = torch.rand(1, 3, *wide.facts.img_size)
    rows, columns = logits_of(wide, images).shape[-2:]
    assert columns == 3 * rows
    assert wide.head is segmenter.head
    again = at_img_size(segmenter, (IMG_SIZE, IMG_SIZE))
    assert again is segmenter
    # Nothing of the first one has changed, and the two directions are not mistaken.
    tall = at_img_size(segmenter, (3 * IMG_SIZE, IMG_SIZE))
    assert logits_of(tall, images.mT).shape[-2:] == (columns, rows)


def test_windows_of_a_tiny_vit_stay():
    segmenter = build_segmenter(small_encoder("tiny-vit"), 5, SegmenterOptions(), 0, (96, 64))
    assert segmenter.backbone.window_sizes == small_encoder("tiny-vit").window_sizes
    assert logits_of(segmenter.eval(), torch.rand(1, 3, 96, 64)).shape == (1, 5, 24, 16)


def test_blocks_that_are_read():
    for depth, published, quarters in (
        (12, [3, 5, 7, 11], [2, 5, 8, 11]),
        (24, [7, 11, 15, 23], [5, 11, 17, 23]),
        (10, [2, 4, 6, 9], [1, 4, 7, 9]),
        (1, [0, 0, 0, 0], [0, 0, 0, 0]),
    ):
        shape = StudentOptions(name=f"vit_tiny:embed_dim=12:num_heads=1:depth={depth}")
        encoder = build_student(shape, seed=0)
        assert blocks_of(encoder, "published") == published
        assert blocks_of(encoder, "quarters") == quarters
    assert blocks_of(small_encoder("swin"), "published") == [1, 3, 3, 3]
    assert blocks_of(small_encoder("tiny-vit"), "published") == [1, 3, 5, 5]
    hiera = build_segmenter(small_encoder("mae"), 2, SegmenterOptions(taps="quarters"), 0)
    assert hiera.facts.architecture["kwargs"]["blocks"] == [0, 1, 1, 2]


def test_published_positions_that_an_encoder_cannot_have_are_told(caplog):
    encoder = small_encoder("augreg")
    encoder.set_num_heads(encoder.facts.depth - 1, 1)
    with caplog.at_level("WARNING", "limbeck"):
        build_segmenter(encoder, 3, SegmenterOptions(), 0)
        assert not caplog.messages
        build_segmenter(encoder, 3, UPERNET, 0)
    assert "can't have relative positions" in caplog.text and "--num-heads" in caplog.text
    with pytest.raises(UserError, match="segmenter.taps is for plain ViTs"):
        build_segmenter(small_encoder("tiny-vit"), 3, SegmenterOptions(taps="quarters"), 0)


def test_a_frozen_encoder_stays_as_it_is():
    encoder = small_encoder("tiny-vit").train()
    segmenter = build_segmenter(encoder, 3, SegmenterOptions(freeze=True), 0)
    assert segmenter.training and not segmenter.backbone.training
    before = {name: value.clone() for name, value in segmenter.backbone.state_dict().items()}
    logits_of(segmenter.train(), torch.rand(2, 3, IMG_SIZE, IMG_SIZE)).sum().backward()
    assert all(value.grad is None for value in segmenter.backbone.parameters())
    assert any(value.grad is not None for value in segmenter.head.parameters())
    state = segmenter.backbone.state_dict()
    assert all(torch.equal(value, before[name]) for name, value in state.items())


def test_what_does_not_fit_is_refused():
    with pytest.raises(UserError, match="segmenter.neck is for upernet and semantic-fpn"):
        SegmenterOptions(neck="wide")
    with pytest.raises(UserError, match="segmenter.rel_pos is for plain ViTs, and swin"):
        build_segmenter(small_encoder("swin"), 3, SegmenterOptions(rel_pos=True), 0)
    with pytest.raises(UserError, match="set segmenter.neck wide"):
        build_segmenter(small_encoder("tinymim-star"), 3, UPERNET, 0)
