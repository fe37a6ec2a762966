"""Resizing images: size, range, and what stays as it is."""

import torch

from limbeck.ops.resize import resize_images


def test_images_of_this_size_are_untouched():
    images = torch.rand(2, 3, 8, 8)
    assert resize_images(images, (8, 8)) is images


def test_a_flat_image_stays_flat():
    resized = resize_images(torch.full((1, 3, 16, 12), 0.25), (8, 6))
    torch.testing.assert_close(resized, torch.full((1, 3, 8, 6), 0.25))


def test_edges_do_not_overshoot():
    edge = torch.zeros(1, 3, 8, 8)
    edge[..., 4:] = 1
    resized = resize_images(edge, (21, 21))
    assert resized.shape == (1, 3, 21, 21)
    assert resized.min() == 0 and resized.max() == 1
