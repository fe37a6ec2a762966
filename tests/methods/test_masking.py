"""Masks: how many patches, which, and what is refused."""

from dataclasses import replace

import pytest
import torch

from limbeck.errors import UserError
from limbeck.methods.masking import DropPatches, MaskTokens, check_mask_ratio
from limbeck.records import Batch
from tests.fakes import FakeEncoder


def facts(side=224, patch_size=16, mask_unit=0, **changes):
    return replace(
        FakeEncoder().facts, img_size=(side, side), patch_size=patch_size, block_strides=(),
        input_strides=(), mask_unit=mask_unit, **changes,
    )  # fmt: skip


def batch(count=3):
    images = torch.zeros(count, 3, 1, 1)
    return Batch(images, images, None, ("",) * count, torch.arange(count))


def test_mae_keeps_49_of_196_patches():
    masked = DropPatches(0.75, facts())(batch())
    assert masked.ids_keep.shape == (3, 49)
    assert masked.mask_token is None


def test_units_are_counted_where_there_are_units():
    kept = DropPatches(0.4, facts(patch_size=16, mask_unit=32))(batch()).ids_keep
    assert kept.shape == (3, 29)  # int(49 * 0.6)
    assert kept.max() < 49


def test_simmim_masks_30_of_49_squares_of_32_pixels():
    masking = MaskTokens(0.6, 32, facts())
    masked = masking(batch())
    assert masked.mask_token is masking.mask_token
    assert masked.mask_token.shape == (1, 1, 8)
    for ids in masked.ids_keep:
        assert len(set(ids.tolist())) == 19 * 4
        rows, columns = ids // 14 // 2, ids % 14 // 2
        squares, counts = torch.stack((rows, columns)).unique(dim=1, return_counts=True)
        assert squares.shape[1] == 19 and counts.eq(4).all()


def test_squares_count_units_not_patches():
    swin = facts(patch_size=32, mask_unit=4, can_drop=False)
    assert MaskTokens(0.6, 32, swin)(batch()).ids_keep.shape == (3, 19 * 64)


def test_the_token_starts_small():
    token = MaskTokens(0.6, 32, replace(facts(), input_dims=(4096,))).mask_token
    assert token.std().item() == pytest.approx(0.02, rel=0.1)


def test_an_encoder_that_can_t_drop_is_told_what_can():
    with pytest.raises(UserError, match="can't leave patches out.*--method simmim"):
        DropPatches(0.75, facts(can_drop=False))


@pytest.mark.parametrize(("size", "side"), [(24, 224), (32, 48), (8, 224)])
def test_squares_that_do_not_fit(size, side):
    with pytest.raises(UserError, match=f"Squares of {size} pixels do not fit.*multiple of 16"):
        MaskTokens(0.6, size, facts(side))


@pytest.mark.parametrize(("mask_ratio", "kept"), [(0.9, 0), (0.0, 4)])
def test_a_ratio_that_keeps_or_masks_nothing_is_refused(mask_ratio, kept):
    with pytest.raises(UserError, match=f"keeps {kept} of 4"):
        check_mask_ratio(mask_ratio, 4)


@pytest.mark.parametrize("mask_ratio", [0.75, 0.1])
def test_other_ratios_are_fine(mask_ratio):
    assert DropPatches(mask_ratio, FakeEncoder().facts)(batch()).ids_keep.shape[1] in (1, 3)
