import multiprocessing
import os
import signal

import pytest
import torch

from limbeck.data.loader import (
    HostBatch,
    eval_batches,
    num_cores,
    to_device,
    train_batches,
)
from limbeck.data.options import DataOptions, ViewOptions
from limbeck.data.skipped import SkippedLog
from limbeck.data.source import RawImage, Subset
from limbeck.data.views import erase
from limbeck.errors import RunError, UserError
from tests.data.images import MemorySource, memory_photos

CPU = torch.device("cpu")
JITTER = ViewOptions(color_jitter=(0.4, 0.4, 0.4))
STRONG = ViewOptions(
    color_jitter=(0.4, 0.4, 0.4), rand_augment="rand-m9-mstd0.5-inc1", erase_prob=0.5
)


def batches(source, views=JITTER, num_workers=0, max_bad_ratio=0.0, skipped=None, **changes):
    arguments = {
        "img_size": 16,
        "run_seed": 5,
        "global_batch_size": 4,
        "accumulate_steps": 1,
        "rank": 0,
        "world_size": 1,
        "start_step": 0,
        "total_steps": 4,
        "device": CPU,
        "erase_mean": (0.5, 0.5, 0.5),
        "erase_std": (0.2, 0.2, 0.2),
    }
    return train_batches(
        source,
        data=DataOptions(num_workers=num_workers),
        views=views,
        skipped=skipped or SkippedLog(None, len(source), max_bad_ratio),
        **(arguments | changes),
    )


def evaluated(source, num_workers=0, batch_size=4, max_bad_ratio=0.0):
    return list(
        eval_batches(
            source,
            data=DataOptions(num_workers=num_workers),
            img_size=16,
            crop_ratio=0.875,
            batch_size=batch_size,
            device=CPU,
            skipped=SkippedLog(None, len(source), max_bad_ratio),
        )
    )


def is_same(one, other):
    return (
        one.keys == other.keys
        and torch.equal(one.images, other.images)
        and torch.equal(one.teacher_images, other.teacher_images)
        and torch.equal(one.view_seeds, other.view_seeds)
        and (one.labels is other.labels is None or torch.equal(one.labels, other.labels))
    )


def test_a_batch_is_as_its_record_says():
    (batch, *_) = batches(memory_photos(8, num_classes=3))
    for images in (batch.images, batch.teacher_images):
        assert images.shape == (4, 3, 16, 16) and images.dtype == torch.float32
        assert images.min() >= 0 and images.max() <= 1 and images.max() > 0.1
    assert not torch.equal(batch.images, batch.teacher_images)
    assert batch.labels.dtype == torch.int64
    assert batch.labels.tolist() == [int(key.split()[1]) % 3 for key in batch.keys]
    assert batch.view_seeds.dtype == torch.int64 and batch.ids_keep is None


def test_unlabelled_and_undisturbed():
    (batch, *_) = batches(memory_photos(4), views=ViewOptions())
    assert batch.labels is None and batch.teacher_images is batch.images


@pytest.mark.parametrize("num_workers", [1, 3])
def test_same_pixels_for_any_number_of_workers(num_workers):
    source = memory_photos(10, num_classes=2)
    alone = list(batches(source, STRONG))
    together = list(batches(source, STRONG, num_workers))
    assert len(alone) == len(together) == 4
    assert all(is_same(*pair) for pair in zip(alone, together, strict=True))


@pytest.mark.parametrize(("world_size", "accumulate_steps"), [(2, 1), (1, 2), (2, 2)])
def test_same_pixels_for_any_number_of_ranks(world_size, accumulate_steps):
    source = memory_photos(10, num_classes=2)
    changes = {"world_size": world_size, "accumulate_steps": accumulate_steps}
    ranks = [list(batches(source, STRONG, rank=rank, **changes)) for rank in range(world_size)]
    for step, whole in enumerate(batches(source, STRONG)):
        first = step * accumulate_steps
        parts = [rank[micro] for micro in range(first, first + accumulate_steps) for rank in ranks]
        assert sum((part.keys for part in parts), ()) == whole.keys
        assert torch.equal(torch.cat([part.images for part in parts]), whole.images)
        assert torch.equal(torch.cat([part.labels for part in parts]), whole.labels)


def test_resuming_at_a_step_is_starting_at_it():
    source = memory_photos(10)
    whole = list(batches(source, STRONG, accumulate_steps=2))
    resumed = list(batches(source, STRONG, accumulate_steps=2, start_step=3))
    assert all(is_same(*pair) for pair in zip(whole[6:], resumed, strict=True))
    assert list(batches(source, start_step=4)) == []


def test_each_epoch_has_views_of_its_own():
    source = memory_photos(4)
    first, second, *_ = batches(source)
    assert set(first.keys) == set(second.keys)
    assert not set(first.view_seeds.tolist()) & set(second.view_seeds.tolist())


def test_the_global_generators_are_left_alone():
    torch.manual_seed(3)
    state = torch.get_rng_state()
    list(batches(memory_photos(8), STRONG, num_workers=1))
    list(batches(memory_photos(8), STRONG))
    assert torch.equal(torch.get_rng_state(), state)


def test_only_the_student_is_erased():
    source = memory_photos(4)
    (batch, *_) = batches(source, ViewOptions(erase_prob=1.0))
    is_erased = batch.images != batch.teacher_images
    assert is_erased.flatten(1).any(1).all() and not is_erased.all()
    plain = next(batches(source, ViewOptions()))
    assert torch.equal(batch.teacher_images, plain.images)
    boxes = torch.zeros(4, 4, dtype=torch.int64)
    assert torch.equal(
        erase(plain.images, boxes, plain.view_seeds, (0,) * 3, (1,) * 3), plain.images
    )


def with_bad(num_images, bad):
    source = memory_photos(num_images, num_classes=2)
    for index in bad:
        source.files[index] = None if index % 2 else b"no image"
    return source


@pytest.mark.parametrize("num_workers", [0, 2])
def test_bad_images_are_replaced_by_the_next_readable_one_and_recorded(num_workers, tmp_path):
    source = with_bad(10, bad=[3, 4, 9])
    good = memory_photos(10, num_classes=2)
    skipped = SkippedLog(tmp_path / "skipped.jsonl", 10, 0.3)
    expected = {"image 3": "image 5", "image 4": "image 5", "image 9": "image 0"}
    pairs = zip(
        batches(source, num_workers=num_workers, skipped=skipped, total_steps=6),
        batches(good, total_steps=6),
        strict=True,
    )
    for batch, wished in pairs:
        assert batch.keys == tuple(expected.get(key, key) for key in wished.keys)
        same = torch.tensor([key not in expected for key in wished.keys])
        assert torch.equal(batch.images[same], wished.images[same])
        assert batch.labels.tolist() == [int(key.split()[1]) % 2 for key in batch.keys]
    assert set(skipped.reasons) == set(expected)
    assert skipped.reasons["image 3"] == "it is gone"
    assert len((tmp_path / "skipped.jsonl").read_text().splitlines()) == 3


def test_too_many_bad_images_stop_the_run():
    with pytest.raises(RunError, match="of 10 images can't be used"):
        list(batches(with_bad(10, bad=[1, 2, 3]), max_bad_ratio=0.1, total_steps=10))
    with pytest.raises(RunError, match="can't be used"):
        list(batches(with_bad(6, bad=range(6)), max_bad_ratio=0.5))
    with pytest.raises(RunError, match="No readable image"):
        list(batches(with_bad(6, bad=range(6)), max_bad_ratio=1.0))


def test_what_does_not_fit_is_said_before_the_first_batch():
    with pytest.raises(UserError, match="3 images"):
        batches(memory_photos(3))
    with pytest.raises(UserError, match="2 processes"):
        batches(memory_photos(9), global_batch_size=9, world_size=2)


def test_evaluation_keeps_the_order_and_leaves_bad_images_out():
    source = with_bad(10, bad=[0, 5, 8, 9])
    found = evaluated(source, max_bad_ratio=0.5)
    assert [batch.keys for batch in found] == [
        ("image 1", "image 2", "image 3"),
        ("image 4", "image 6", "image 7"),
    ]
    assert [batch.labels.tolist() for batch in found] == [[1, 0, 1], [0, 0, 1]]
    assert found[0].images.shape == (3, 3, 16, 16)
    assert found[0].teacher_images is found[0].images
    with pytest.raises(RunError, match="can't be used"):
        evaluated(source, max_bad_ratio=0.1)


def test_evaluation_is_the_same_for_any_number_of_workers_and_any_batch():
    source = memory_photos(9)
    alone = evaluated(source)
    assert [len(batch.keys) for batch in alone] == [4, 4, 1] and alone[0].labels is None
    together = evaluated(source, num_workers=2)
    assert all(is_same(*pair) for pair in zip(alone, together, strict=True))
    whole = evaluated(source, batch_size=100)
    assert torch.equal(whole[0].images, torch.cat([batch.images for batch in alone]))
    assert evaluated(Subset(source, [])) == []


class DeadlySource(MemorySource):
    def read(self, index: int) -> RawImage:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError


def test_a_killed_worker_ends_the_run_with_a_clear_error():
    source = DeadlySource(memory_photos(4).files)
    with pytest.raises(RunError, match=r"loader process died.*--data\.num-workers"):
        list(batches(source, num_workers=1))


class PatientSource(MemorySource):
    def read(self, index: int) -> RawImage:
        for signum in (signal.SIGINT, signal.SIGTERM):
            os.kill(os.getpid(), signum)
        return super().read(index)


def test_workers_outlive_the_signals_of_the_group():
    source = PatientSource(memory_photos(4).files)
    assert len(list(batches(source, num_workers=1))) == 4


class RaisingSource(MemorySource):
    def read(self, index: int) -> RawImage:
        raise ZeroDivisionError("a bug")


def test_a_bug_in_a_worker_is_not_hidden():
    with pytest.raises(ZeroDivisionError, match="a bug"):
        list(batches(RaisingSource(memory_photos(4).files), num_workers=1))
    assert multiprocessing.active_children() == []


def test_leaving_early_ends_the_workers():
    stream = batches(memory_photos(8), num_workers=2, total_steps=50)
    next(stream)
    assert len(multiprocessing.active_children()) == 2
    stream.close()
    assert multiprocessing.active_children() == []


def test_pinned_batches_keep_their_kind():
    pinned = HostBatch(
        student=torch.zeros(1, 3, 2, 2, dtype=torch.uint8),
        teacher=None,
        erase_boxes=torch.zeros(1, 4, dtype=torch.int64),
        noise_seeds=torch.zeros(1, dtype=torch.int64),
        labels=None,
        view_seeds=torch.zeros(1, dtype=torch.int64),
        keys=["a"],
        skipped=[["b", "bad"]],
    )
    assert to_device(pinned, CPU).keys == ("a",)


def test_default_number_of_workers(monkeypatch):
    from limbeck.data import loader

    monkeypatch.setattr(loader, "num_cores", lambda: 16)
    assert loader.workers_for(DataOptions(), world_size=1) == 15
    assert loader.workers_for(DataOptions(), world_size=4) == 3
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert loader.workers_for(DataOptions(), world_size=4) == 7
    assert loader.workers_for(DataOptions(num_workers=1), world_size=4) == 1
    monkeypatch.setattr(loader, "num_cores", lambda: 1)
    assert loader.workers_for(DataOptions(), world_size=4) == 0
    assert num_cores() >= 1


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_gets_the_same_pixels():
    source = memory_photos(8, num_classes=2)
    cuda = torch.device("cuda")
    pairs = zip(batches(source, STRONG), batches(source, STRONG, 2, device=cuda), strict=True)
    for on_cpu, on_gpu in pairs:
        assert on_gpu.images.device.type == "cuda"
        # The division by 255 may round otherwise.
        torch.testing.assert_close(on_cpu.images, on_gpu.images.cpu(), atol=1e-6, rtol=0)
        assert torch.equal(on_cpu.labels, on_gpu.labels.cpu())


def test_several_views_of_an_image_come_one_after_the_other():
    source = memory_photos(8, num_classes=2)
    gray = ViewOptions(gray_prob=1.0)
    local = ((ViewOptions(scale=(0.05, 0.2)), 8),) * 3
    several = list(batches(source, other_views=[gray], local_views=local))
    for one, many in zip(batches(source), several, strict=True):
        assert many.keys == one.keys and torch.equal(many.labels, one.labels)
        assert many.num_views == 2 and one.num_views == 1 and one.local_images is None
        assert torch.equal(many.images[::2], one.images)  # the first is what it was alone
        assert torch.equal(many.view_seeds[::2], one.view_seeds)
        second = many.images[1::2]
        assert torch.equal(second[:, 0], second[:, 1])
        assert len(many.view_seeds.unique()) == 8
        assert many.teacher_images is many.images
        assert many.local_images.shape == (12, 3, 8, 8)
        assert not torch.equal(many.local_images[0], many.local_images[1])


def test_several_views_are_the_same_on_two_ranks():
    source = memory_photos(8)
    more = {"other_views": [ViewOptions(blur_prob=1.0)], "local_views": ((ViewOptions(), 8),) * 2}
    (whole, *_) = batches(source, **more)
    parts = [next(batches(source, rank=rank, world_size=2, **more)) for rank in (0, 1)]
    assert torch.equal(torch.cat([part.images for part in parts]), whole.images)
    assert torch.equal(torch.cat([part.local_images for part in parts]), whole.local_images)
