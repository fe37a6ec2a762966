"""Whole shapes: what a name stands for, said in full, without a weight in memory."""

import pytest

from limbeck.errors import UserError
from limbeck.models.options import StudentOptions
from limbeck.models.whole_shape import build_outline, whole_shape


def test_a_tiny_vit_in_full():
    assert whole_shape(StudentOptions(name="tiny_vit_5m")).text == (
        "tiny_vit_5m:img_size=224:mlp_ratio=4:embed_dims=64-128-160-320:depths=2-2-6-2"
        ":window_sizes=7-7-14-7:head_dim=32:mbconv_expand_ratio=4"
    )


def test_a_plain_vit_in_full():
    whole = whole_shape(StudentOptions(name="vit_small", img_size=96, depth=10))
    assert whole.text == (
        "vit_small:img_size=96:patch_size=16:embed_dim=384:depth=10:num_heads=6:mlp_ratio=4"
    )
    assert whole_shape(whole) == whole


def test_windows_adapt_to_small_images():
    assert whole_shape(StudentOptions(name="tiny_vit_5m:img_size=32")).window_sizes == (4, 4, 2, 1)


def test_an_outline_has_no_weights():
    encoder = build_outline(StudentOptions(name="vit_tiny", img_size=32, patch_size=8))
    assert {value.device.type for value in encoder.model.parameters()} == {"meta"}


def test_models_that_are_not_contracted_are_refused():
    with pytest.raises(UserError, match="'swin_48' can't be contracted"):
        whole_shape(StudentOptions(name="swin_48"))
