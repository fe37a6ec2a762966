import pickle
import tracemalloc

import numpy as np
import pytest
import torch

from limbeck.data.scenes.objects.gather import Packed, RawImage, RawObject
from limbeck.data.scenes.objects.loader import eval_objects, object_batches
from limbeck.data.scenes.objects.options import ObjectOptions, ObjectViewOptions
from limbeck.data.scenes.objects.source import Annotated, ObjectSource
from limbeck.data.scenes.objects.views import train_objects
from limbeck.data.skipped import SkippedLog
from limbeck.data.source import BadImage
from limbeck.data.source import RawImage as Bytes
from limbeck.data.views import view_seed
from limbeck.errors import RunError

CPU = torch.device("cpu")


class MemoryObjects(ObjectSource):
    classes, layout, has_shapes = ("a", "b", "c"), "memory", False

    def __init__(self, number, bad=()):
        self.number, self.bad = number, bad

    def __len__(self):
        return self.number

    def key(self, index):
        return f"image {index}"

    def stamp(self, index):
        return ""

    def read(self, index):
        return Bytes(b"", None)

    def objects(self, index):
        number = index % 3
        boxes = np.array([[k, k, 9 + k, 12 + k] for k in range(number)], np.float64).reshape(-1, 4)
        none = np.zeros(number, bool)
        return Annotated(boxes, np.arange(number), none, np.full(number, 108.0), (None,) * number)

    def read_objects(self, index):
        if index in self.bad:
            raise BadImage("it is none")
        image = np.random.default_rng(index).integers(0, 256, (20 + index, 30, 3), np.uint8)
        return image, self.objects(index)


def batches(source, num_workers=0, max_bad_ratio=0.0, views=None, **changes):
    arguments = {
        "img_size": 16, "has_masks": False, "run_seed": 5, "global_batch_size": 4,
        "accumulate_steps": 1, "rank": 0, "world_size": 1, "start_step": 0, "total_steps": 5,
        "device": CPU, "skipped": SkippedLog(None, len(source), max_bad_ratio),
    }  # fmt: skip
    return list(
        object_batches(
            source, data=ObjectOptions(num_workers=num_workers),
            views=views or ObjectViewOptions(mosaic_prob=0.5), **(arguments | changes),
        )
    )  # fmt: skip


def is_same(one, other):
    pairs = zip(one.objects, other.objects, strict=True)
    return (
        one.keys == other.keys
        and torch.equal(one.images, other.images)
        and all(
            torch.equal(a.boxes, b.boxes) and torch.equal(a.classes, b.classes) and a.size == b.size
            for a, b in pairs
        )
    )


def test_a_batch_has_the_views_of_its_keys():
    source, views = MemoryObjects(9), ObjectViewOptions()
    batch = batches(source, views=views)[0]
    assert batch.images.shape == (4, 3, 16, 16) and batch.images.dtype == torch.float32
    assert batch.labels is None and batch.num_views == 1
    for place, key in enumerate(batch.keys):
        index = int(key.split()[1])
        seed = view_seed(5, 0, key)
        pixels, objects = train_objects(source.read_objects(index), seed, views, 16)
        assert int(batch.view_seeds[place]) == seed
        torch.testing.assert_close(batch.images[place], pixels.float() / 255)
        torch.testing.assert_close(batch.objects[place].boxes, objects.boxes)


def test_any_number_of_workers_ranks_and_restarts_sees_the_same():
    source = MemoryObjects(9)
    whole = batches(source)
    assert all(map(is_same, whole, batches(source, num_workers=1)))
    assert all(map(is_same, whole[2:], batches(source, start_step=2)))
    parts = [batches(source, world_size=2, rank=rank) for rank in range(2)]
    for batch, *own in zip(whole, *parts, strict=True):
        keys = [key for each in own for key in each.keys]
        assert sorted(keys) == sorted(batch.keys)


def test_mosaics_end_with_their_part_of_the_training():
    source = MemoryObjects(8)
    views = ObjectViewOptions(mosaic_prob=1.0, mosaic_epochs=0.5)
    steps = batches(source, views=views, total_steps=8)  # two a epoch
    is_mosaic = [all(each.size == (16, 16) for each in batch.objects) for batch in steps]
    assert is_mosaic[:4] == [True] * 4 and not any(is_mosaic[4:])


def test_bad_images_are_replaced_and_too_many_refused():
    skipped = SkippedLog(None, 9, 0.2)
    found = batches(MemoryObjects(9, bad=(3,)), skipped=skipped)
    assert skipped.reasons == {"image 3": "it is none"}
    assert all("image 3" not in batch.keys for batch in found)
    with pytest.raises(RunError, match="image 3"):
        batches(MemoryObjects(9, bad=(3,)))


def test_evaluation_shows_every_image_once_in_its_order():
    source = MemoryObjects(7, bad=(2,))
    shown, keys = [], []
    for batch, each in eval_objects(
        source, data=ObjectOptions(num_workers=0), img_size=32, batch_size=3, device=CPU,
        skipped=SkippedLog(None, 7, 0.5),
    ):  # fmt: skip
        keys += batch.keys
        shown += each
        assert batch.images.shape[1:] == (3, 32, 32)
    assert keys == [f"image {index}" for index in (0, 1, 3, 4, 5, 6)]
    assert shown[3].own_size == (24, 30) and shown[3].size == (26, 32)
    assert len(shown[3].truth.boxes) == 1


def test_memory_is_flat_over_epochs_and_annotations_are_packed():
    """Complaint 7."""
    source = MemoryObjects(12)
    batches(source, total_steps=3)  # what is made once
    tracemalloc.start()
    peaks = []
    for _ in range(3):
        batches(source, total_steps=3)
        peaks.append(tracemalloc.get_traced_memory()[0])
    tracemalloc.stop()
    assert peaks[2] - peaks[0] < 20_000

    objects = [RawObject("a", (0.0, 0.0, 9.0, 9.0)) for _ in range(20)]
    packed = Packed([RawImage(f"{k}.jpg", (9, 9), objects) for k in range(500)], {"a": 0})
    assert len(pickle.dumps(packed)) < 500 * 20 * 60  # bytes an object; in Python 500 and more
    assert len(packed.of(499).boxes) == 20
