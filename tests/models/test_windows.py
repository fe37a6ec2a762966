"""Windows that follow from the image size, and what timm is told of them."""

import pytest

from limbeck.errors import UserError
from limbeck.models.windows import img_size_of, timm_kwargs, window_sizes_for, with_img_size


@pytest.mark.parametrize(
    ("side", "windows"),
    [(224, [7, 14, 7]), (256, [8, 16, 8]), (384, [12, 24, 12]), (512, [16, 32, 16]),
     (32, [4, 2, 1]), (64, [8, 4, 2]), (160, [10, 10, 5])],
)  # fmt: skip
def test_windows_are_as_published_and_divide_every_map(side, windows):
    found = window_sizes_for((side, side))
    assert found[1:] == windows
    for stage, window in enumerate(found):
        assert side // (4 * 2**stage) % window == 0


def test_images_that_are_not_square_have_windows_that_divide_both_sides():
    assert window_sizes_for((224, 448)) == [7, 7, 14, 7]
    assert window_sizes_for((96, 64)) == [8, 4, 2, 1]


def test_stated_windows_keep_their_share_of_the_map():
    kwargs = {"img_size": 224, "window_sizes": [7, 14, 7, 7], "num_classes": 3}
    assert with_img_size(kwargs, (384, 384)) == {
        "img_size": [384, 384], "window_sizes": [12, 24, 12, 12], "num_classes": 3
    }  # fmt: skip
    assert with_img_size(kwargs, (224, 224))["window_sizes"] == [7, 14, 7, 7]
    assert with_img_size({"embed_dim": 8}, (32, 32)) == {"embed_dim": 8, "img_size": [32, 32]}


def test_the_backbone_of_a_segmenter_has_its_size():
    parts = {"img_size": [32, 32], "backbone": {"kind": "vit", "kwargs": {"img_size": [32, 32]}}}
    assert with_img_size(parts, (64, 64)) == {
        "img_size": [64, 64], "backbone": {"kind": "vit", "kwargs": {"img_size": [64, 64]}},
    }  # fmt: skip


def test_timm_is_told_windows_in_place_of_a_size():
    assert timm_kwargs("tiny_vit_5m_224", {"img_size": [64, 64], "num_classes": 2}) == {
        "window_sizes": [8, 8, 4, 2],
        "num_classes": 2,
    }
    assert timm_kwargs("tiny_vit_21m_512.dist_in22k_ft_in1k", {})["window_sizes"][2] == 32
    own = {"window_sizes": [1, 2, 3, 4], "img_size": 64}
    assert timm_kwargs("tiny_vit_5m_224", own) == {"window_sizes": [1, 2, 3, 4]}
    other = {"img_size": 64, "depth": 3}
    assert timm_kwargs("vit_tiny_patch16_224", other) == other
    assert img_size_of("tiny_vit_21m_384", {}) == (384, 384)
    assert img_size_of("tiny_vit_21m_384", {"img_size": [96, 64]}) == (96, 64)


@pytest.mark.parametrize(
    "shape", [{"depths": [1, 1, 1]}, {"depths": [1] * 4, "num_heads": [1] * 3}]
)
def test_stages_that_do_not_agree_are_refused(shape):
    with pytest.raises(UserError, match="one value each.*give as many of all"):
        timm_kwargs("tiny_vit_5m_224", shape)
