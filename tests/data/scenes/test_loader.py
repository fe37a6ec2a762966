import json
from pathlib import Path

import numpy as np
import pytest
import torch

from limbeck.data.scenes.loader import eval_scenes, scene_batches
from limbeck.data.scenes.open import open_both
from limbeck.data.scenes.options import SceneOptions, SceneViewOptions
from limbeck.data.scenes.scene import Scenes
from limbeck.data.scenes.views import train_scene
from limbeck.data.skipped import SkippedLog
from limbeck.data.source import BadImage
from limbeck.data.views import view_seed
from limbeck.errors import RunError, UserError
from limbeck.records import IGNORE
from tests.data.images import memory_photos

CPU = torch.device("cpu")
PLACES = [folder / "shared" / "data" / "camvid" for folder in Path(__file__).resolve().parents]
CAMVID = next((place for place in PLACES if place.is_dir()), None)


class MemoryScenes(Scenes):
    classes, layout = ("a", "b", "c"), "memory"

    def __init__(self, number, bad=()):
        self.number, self.bad = number, bad

    def __len__(self):
        return self.number

    def key(self, index):
        return f"scene {index}"

    def read(self, index):
        return b""

    def read_scene(self, index):
        if index in self.bad:
            raise BadImage("it has no mask")
        rng = np.random.default_rng(index)
        size = (20 + index, 30 - index)
        return rng.integers(0, 256, (*size, 3), np.uint8), rng.integers(0, 3, size, np.uint8)

    def read_mask(self, index):
        return self.read_scene(index)[1]

    def mask_name(self, index):
        return f"mask {index}"


def batches(scenes, num_workers=0, skipped=None, max_bad_ratio=0.0, **changes):
    arguments = {
        "img_size": 16,
        "run_seed": 5,
        "global_batch_size": 4,
        "accumulate_steps": 1,
        "rank": 0,
        "world_size": 1,
        "start_step": 0,
        "total_steps": 5,
        "device": CPU,
    }
    return list(
        scene_batches(
            scenes,
            data=SceneOptions(num_workers=num_workers),
            views=SceneViewOptions(),
            skipped=skipped or SkippedLog(None, len(scenes), max_bad_ratio),
            **(arguments | changes),
        )
    )


def is_same(one, other):
    names = ("images", "teacher_images", "labels", "view_seeds")
    return one.keys == other.keys and all(
        torch.equal(getattr(one, name), getattr(other, name)) for name in names
    )


def test_a_batch_is_as_its_record_says():
    first = batches(MemoryScenes(8))[0]
    assert first.images.shape == (4, 3, 16, 16) and first.images.dtype == torch.float32
    assert first.images.min() >= 0 and first.images.max() <= 1
    assert first.teacher_images is first.images
    assert first.labels.shape == (4, 16, 16) and first.labels.dtype == torch.int64
    assert set(first.labels.unique().tolist()) <= {0, 1, 2, IGNORE}
    assert len(set(first.keys)) == 4


def test_a_view_follows_from_seed_epoch_and_key():
    scenes = MemoryScenes(8)
    for step, batch in enumerate(batches(scenes)):
        for key, image, labels, seed in zip(
            batch.keys, batch.images, batch.labels, batch.view_seeds.tolist(), strict=True
        ):
            assert seed == view_seed(5, step // 2, key)
            scene = scenes.read_scene(int(key.split()[1]))
            expected = train_scene(*scene, seed, SceneViewOptions(), 16)
            assert torch.equal((image * 255).round().byte(), expected[0])
            assert torch.equal(labels, expected[1].long())


def test_any_step_can_be_resumed_at():
    scenes = MemoryScenes(8)
    whole = batches(scenes)
    for start in (1, 3):
        rest = batches(scenes, start_step=start)
        assert len(rest) == 5 - start
        assert all(is_same(a, b) for a, b in zip(whole[start:], rest, strict=True))


@pytest.mark.parametrize("bad", [(), (2, 3)])
def test_ranks_and_accumulation_share_the_global_batch(bad):
    scenes = MemoryScenes(8, bad)
    whole = batches(scenes, max_bad_ratio=0.5)
    ranks = [batches(scenes, max_bad_ratio=0.5, rank=rank, world_size=2) for rank in range(2)]
    parts = batches(scenes, max_bad_ratio=0.5, accumulate_steps=2)
    for step, batch in enumerate(whole):
        for shares in ([each[step] for each in ranks], parts[2 * step : 2 * step + 2]):
            assert sum((share.keys for share in shares), ()) == batch.keys
            assert torch.equal(torch.cat([share.images for share in shares]), batch.images)
            assert torch.equal(torch.cat([share.labels for share in shares]), batch.labels)


def test_workers_change_nothing():
    scenes = MemoryScenes(8)
    pairs = zip(batches(scenes), batches(scenes, num_workers=2), strict=True)
    assert all(is_same(a, b) for a, b in pairs)


def test_bad_scenes_are_replaced_and_written_down(tmp_path):
    file = tmp_path / "skipped.jsonl"
    skipped = SkippedLog(file, 8, 0.5)
    found = batches(MemoryScenes(8, bad=(2, 3)), skipped=skipped)
    assert all(len(batch.keys) == 4 for batch in found)
    assert not {"scene 2", "scene 3"} & {key for batch in found for key in batch.keys}
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    expected = [{"key": f"scene {n}", "reason": "it has no mask"} for n in (2, 3)]
    assert sorted(lines, key=lambda line: line["key"]) == expected


def test_too_many_bad_scenes_end_the_run():
    with pytest.raises(RunError, match="more than --data.max-bad-ratio 0.2 allows"):
        batches(MemoryScenes(8, bad=(0, 1, 2)), max_bad_ratio=0.2)
    with pytest.raises(UserError, match="8 images to train on, fewer than one batch of 16"):
        batches(MemoryScenes(8), global_batch_size=16)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_evaluation_sees_every_scene_at_its_own_size(num_workers):
    scenes = MemoryScenes(5, bad=(1,))
    skipped = SkippedLog(None, 5, 0.5)
    data = SceneOptions(num_workers=num_workers)
    found = list(eval_scenes(scenes, data=data, device=CPU, skipped=skipped))
    assert [batch.keys for batch in found] == [(f"scene {n}",) for n in (0, 2, 3, 4)]
    for batch in found:
        image, labels = scenes.read_scene(int(batch.keys[0].split()[1]))
        assert torch.equal(
            (batch.images[0] * 255).round().byte().permute(1, 2, 0), torch.tensor(image)
        )
        assert torch.equal(batch.labels[0], torch.tensor(labels).long())
    assert skipped.reasons == {"scene 1": "it has no mask"}


def test_images_without_masks_are_seen_likewise():
    source = memory_photos(2)
    skipped = SkippedLog(None, 2, 0.0)
    data = SceneOptions(num_workers=0)
    found = list(eval_scenes(source, data=data, device=CPU, skipped=skipped))
    assert [batch.images.shape for batch in found] == [(1, 3, 40, 48)] * 2
    assert all(batch.labels is None for batch in found)


@pytest.mark.skipif(CAMVID is None, reason="the shared data set CamVid is not here")
def test_camvid():
    train, held_out = open_both(SceneOptions(root=str(CAMVID)))
    assert (len(train), len(held_out)) == (367, 101)
    assert train.classes[:4] == ("sky", "building", "pole", "road") and len(train.classes) == 11
    image, labels = train.read_scene(0)
    assert image.shape == (360, 480, 3)
    assert set(np.unique(labels)) <= {*range(11), IGNORE}
    (batch,) = batches(train, total_steps=1, img_size=64)
    assert batch.images.shape == (4, 3, 64, 64) and len(batch.labels.unique()) > 3
