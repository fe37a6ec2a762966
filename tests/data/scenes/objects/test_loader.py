"""Batches of images with objects: as the views say, wherever they are made."""

import tracemalloc

import numpy as np
import pytest
import torch

from limbeck.data.options import DataOptions
from limbeck.data.scenes.objects.loader import eval_objects, object_batches
from limbeck.data.scenes.objects.options import ObjectViewOptions
from limbeck.data.scenes.objects.source import Annotated, ObjectSource
from limbeck.data.scenes.objects.views import train_objects
from limbeck.data.skipped import SkippedLog
from limbeck.data.source import BadImage
from limbeck.data.views import view_seed

CPU = torch.device("cpu")


class MemoryObjects(ObjectSource):
    classes, layout, has_shapes = ("a", "b"), "memory", False

    def __init__(self, number, bad=()):
        self.number, self.bad = number, bad

    def __len__(self):
        return self.number

    def key(self, index):
        return f"image {index}"

    def read(self, index):
        return b""

    def stamp(self, index):
        return ""

    def objects(self, index):
        boxes = np.array([[2.0, 3, 12, 9], [5, 5, 20, 18]])[: index % 3]
        count = len(boxes)
        return Annotated(
            boxes, np.arange(count), np.zeros(count, bool), np.ones(count), (None,) * count
        )

    def read_objects(self, index):
        if index in self.bad:
            raise BadImage("it is broken")
        image = np.random.default_rng(index).integers(0, 256, (20, 30, 3), np.uint8)
        return image, self.objects(index)


def batches(source, num_workers=0, skipped=None, views=None, **changes):
    arguments = {
        "img_size": 16, "has_masks": True, "run_seed": 5, "global_batch_size": 4,
        "accumulate_steps": 1, "rank": 0, "world_size": 1, "start_step": 0, "total_steps": 4,
    } | changes  # fmt: skip
    return list(object_batches(
        source, data=DataOptions(num_workers=num_workers), device=CPU,
        views=views or ObjectViewOptions(mosaic_prob=0.5),
        skipped=skipped or SkippedLog(None, len(source), 0.5), **arguments,
    ))  # fmt: skip


def same(one, other):
    assert one.keys == other.keys and torch.equal(one.images, other.images)
    for own, theirs in zip(one.objects, other.objects, strict=True):
        assert torch.equal(own.boxes, theirs.boxes) and torch.equal(own.masks, theirs.masks)
        assert torch.equal(own.classes, theirs.classes) and own.size == theirs.size


def test_workers_start_and_ranks_change_nothing():
    source = MemoryObjects(10)
    alone = batches(source)
    for one, other in zip(alone, batches(source, num_workers=2), strict=True):
        same(one, other)
    for one, other in zip(alone[2:], batches(source, start_step=2), strict=True):
        same(one, other)
    halves = [batches(source, rank=rank, world_size=2) for rank in range(2)]
    for whole, *parts in zip(alone, *halves, strict=True):
        assert whole.keys == tuple(key for part in parts for key in part.keys)


def test_a_batch_holds_the_views_of_its_images():
    source, views = MemoryObjects(10), ObjectViewOptions()
    batch = batches(source, views=views)[1]
    for place, key in enumerate(batch.keys):
        sample = source.read_objects(int(key.split()[1]))
        pixels, objects = train_objects(sample, view_seed(5, 0, key), views, 16, has_masks=True)
        assert torch.equal(batch.images[place], pixels.float() / 255)
        assert torch.equal(batch.objects[place].boxes, objects.boxes)
    assert batch.labels is None and batch.objects[0].masks.dtype == torch.bool


def test_mosaics_end():
    source = MemoryObjects(4)
    views = ObjectViewOptions(mosaic_prob=1.0, mosaic_epochs=0.5)
    plain = ObjectViewOptions()
    mixed, whole = batches(source, views=views), batches(source, views=plain)
    assert not torch.equal(mixed[0].images, whole[0].images)
    assert not torch.equal(mixed[1].images, whole[1].images)
    for place in (2, 3):
        same(mixed[place], whole[place])


def test_bad_images_are_replaced_and_named():
    skipped = SkippedLog(None, 10, 0.5)
    found = batches(MemoryObjects(10, bad=(3,)), skipped=skipped)
    assert "image 3" not in {key for batch in found for key in batch.keys}
    assert skipped.reasons == {"image 3": "it is broken"}


def test_all_images_are_shown_with_what_is_there():
    skipped = SkippedLog(None, 5, 0.5)
    found = list(eval_objects(
        MemoryObjects(5, bad=(1,)), data=DataOptions(num_workers=0), img_size=16, batch_size=2,
        device=CPU, skipped=skipped,
    ))  # fmt: skip
    shown = [each for _, part in found for each in part]
    assert [each.key for each in shown] == ["image 0", "image 2", "image 3", "image 4"]
    assert [len(batch.images) for batch, _ in found] == [1, 2, 1]
    assert shown[1].own_size == (20, 30) and shown[1].size == (11, 16)
    assert shown[1].truth.boxes.shape == (2, 4) and skipped.reasons == {"image 1": "it is broken"}


@pytest.mark.parametrize("number", [2000])
def test_memory_does_not_grow_over_epochs(number):
    source = MemoryObjects(number)
    views = ObjectViewOptions()

    def epoch(start):
        for _ in object_batches(
            source, data=DataOptions(num_workers=0), device=CPU, views=views, img_size=8,
            has_masks=False, run_seed=0, global_batch_size=100, accumulate_steps=1, rank=0,
            world_size=1, start_step=start, total_steps=start + 20,
            skipped=SkippedLog(None, number, 0.5),
        ):  # fmt: skip
            pass

    epoch(0)
    tracemalloc.start()
    epoch(20)
    before = tracemalloc.get_traced_memory()[0]
    epoch(40)
    grown = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert grown < 2**16
