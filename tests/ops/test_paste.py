"""Masks over boxes: against a slow bilinear sum, and at the image's edges."""

import pytest
import torch

from limbeck.ops.paste import paste


def slow(mask, box, size):
    left, top, right, bottom = box.double().tolist()
    side = len(mask)
    whole = torch.zeros(size, dtype=torch.bool)
    for row in range(size[0]):
        for column in range(size[1]):
            x, y = column + 0.5, row + 0.5
            if not (left < x < right and top < y < bottom):
                continue
            v = (y - top) / (bottom - top) * side - 0.5
            u = (x - left) / (right - left) * side - 0.5
            total = 0.0
            for i in range(side):
                for j in range(side):
                    share = max(0, 1 - abs(v - i)) * max(0, 1 - abs(u - j))
                    total += share * float(mask[i, j])
            whole[row, column] = total >= 0.5
    return whole


@pytest.mark.parametrize(
    "box", [(2.0, 3.0, 9.0, 11.0), (-3.5, 4.25, 6.0, 30.0), (8.2, 8.2, 8.3, 8.3)]
)
def test_it_is_bilinear_between_cells(box):
    mask = torch.rand(5, 5, generator=torch.Generator().manual_seed(0))
    found = paste(mask, torch.tensor(box), (14, 12))
    assert torch.equal(found, slow(mask, torch.tensor(box), (14, 12)))


def test_a_full_mask_fills_its_inner_box():
    found = paste(torch.ones(7, 7), torch.tensor([2.0, 3.0, 16.0, 17.0]), (20, 20))
    assert found.sum() > 13 * 13 and not found[:3].any() and not found[:, 16:].any()
