"""Batches under corruptions: the same images for every condition, on any number of workers."""

import numpy as np
import pytest
import torch

from limbeck.data import corrupted
from limbeck.data.corrupted import CLEAN, corrupted_batches
from limbeck.data.corruptions import corrupt
from limbeck.data.decode import decode_image
from limbeck.data.options import DataOptions
from limbeck.data.skipped import SkippedLog
from limbeck.data.views import eval_view
from tests.data.images import memory_photos

CONDITIONS = [CLEAN, ("gaussian_noise", 2), ("pixelate", 5)]


def show(source, batch_size=3, num_workers=0, max_bad_ratio=0.0):
    """Images and keys of every condition."""
    skipped = SkippedLog(None, len(source), max_bad_ratio)
    shown = {condition: [] for condition in CONDITIONS}
    for condition, batch in corrupted_batches(
        source,
        CONDITIONS,
        data=DataOptions(num_workers=num_workers),
        img_size=16,
        crop_ratio=0.8,
        batch_size=batch_size,
        device=torch.device("cpu"),
        skipped=skipped,
    ):
        assert batch.images.dtype == torch.float32
        assert batch.teacher_images is batch.images
        assert batch.labels.tolist() == [int(key.split()[1]) % 2 for key in batch.keys]
        shown[condition].append(batch)
    return {
        condition: (
            torch.cat([batch.images for batch in batches]),
            [key for batch in batches for key in batch.keys],
        )
        for condition, batches in shown.items()
    }


def test_crops_are_corrupted_by_their_own_name():
    source = memory_photos(5, num_classes=2)
    shown = show(source)
    for index in range(5):
        image = decode_image(source.read(index).data, 10**6)
        crop = eval_view(image, 16, 0.8).permute(1, 2, 0).numpy()
        for condition, (images, keys) in shown.items():
            expected = crop if condition == CLEAN else corrupt(crop, *condition, keys[index])
            assert keys[index] == f"image {index}"
            found = (images[index] * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
            assert np.array_equal(found, expected)


@pytest.mark.parametrize("changes", [{"batch_size": 2}, {"num_workers": 2}])
def test_batches_and_workers_change_nothing(changes):
    source = memory_photos(7, num_classes=2)
    first, second = show(source), show(source, **changes)
    for condition in CONDITIONS:
        assert torch.equal(first[condition][0], second[condition][0])
        assert first[condition][1] == second[condition][1]


def test_each_image_is_decoded_once(monkeypatch):
    source = memory_photos(4, num_classes=2)
    read = []
    monkeypatch.setattr(source, "read", lambda i, real=source.read: read.append(i) or real(i))
    show(source)
    assert read == [0, 1, 2, 3]


def test_many_images_come_part_by_part(monkeypatch):
    source = memory_photos(7, num_classes=2)
    whole = show(source)
    monkeypatch.setattr(corrupted, "MOST_BYTES", 4 * 3 * 16 * 16)
    parts = show(source)
    for condition in CONDITIONS:
        assert torch.equal(whole[condition][0], parts[condition][0])


def test_bad_images_are_left_out_of_all_conditions():
    source = memory_photos(5, num_classes=2)
    source.files[1] = b"no image"
    shown = show(source, max_bad_ratio=0.5)
    for images, keys in shown.values():
        assert keys == ["image 0", "image 2", "image 3", "image 4"] and len(images) == 4
