import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from limbeck.data.decode import decode_image
from limbeck.data.loader import VIEW_SEEDS, train_batches
from limbeck.data.options import DataOptions, ReleasedViews, ViewOptions
from limbeck.data.released_views import released_noise, released_view
from limbeck.data.skipped import SkippedLog
from limbeck.data.view_makers import view_maker
from limbeck.data.views import train_view, view_noise
from limbeck.errors import UserError
from tests.data.images import MemorySource, encode, memory_photos, photo

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def test_each_recipe_has_its_pixels_and_its_noise():
    image = np.array(photo(60, 50))
    options = ViewOptions(color_jitter=(0.4, 0.4, 0.4))
    own, released = view_maker(options, 24), view_maker(ReleasedViews(), 24)
    assert torch.equal(own(image, 5).student, train_view(image, 5, options, 24).student)
    assert torch.equal(released(image, 5).student, released_view(image, 5, 24).student)
    assert own.draw_noise is view_noise and released.draw_noise is released_noise
    again = pickle.loads(pickle.dumps(released))
    assert torch.equal(again(image, 5).student, released(image, 5).student)


def test_released_views_are_of_pixels_as_they_lie_in_the_file():
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    data = encode(photo(40, 30), exif=exif)
    maker = view_maker(ReleasedViews(), 24)
    assert decode_image(data, 10**6).shape == (40, 30, 3)
    assert maker.decode(data, 10**6).shape == (30, 40, 3)


class Stored:
    """What a converted store has: a seed for each image and view, and a target."""

    seed = None
    num_views = 2

    def __init__(self, num_images):
        self.seeds = torch.arange(2 * num_images, dtype=torch.int32).view(num_images, 2) + 1

    def __contains__(self, index):
        return index != 3

    def read(self, indices, view):
        return {VIEW_SEEDS: self.seeds[indices, view], "target": torch.tensor(indices) + 100}


def batches(source, num_workers=0, **changes):
    arguments = {
        "data": DataOptions(num_workers=num_workers),
        "views": ReleasedViews(),
        "img_size": 32,
        "run_seed": 5,
        "global_batch_size": 4,
        "accumulate_steps": 1,
        "rank": 0,
        "world_size": 1,
        "start_step": 0,
        "total_steps": 6,
        "device": torch.device("cpu"),
        "erase_mean": MEAN,
        "erase_std": STD,
        "skipped": SkippedLog(None, len(source), 0.5),
        "targets": Stored(len(source)),
    }
    return list(train_batches(source, **(arguments | changes)))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_the_loader_makes_released_views_from_stored_seeds(num_workers):
    source, stored = memory_photos(8), Stored(8)
    num_erased = 0
    for step, batch in enumerate(batches(source, num_workers)):
        assert set(batch.targets) == {"target"}
        view = step // 2 % 2  # two steps are an epoch
        for row, key in enumerate(batch.keys):
            index = int(key.split()[1])
            assert index != 3 and batch.targets["target"][row] == index + 100
            seed = int(stored.seeds[index, view])
            assert batch.view_seeds[row] == seed
            expected = released_view(decode_image(source.files[index], 10**6), seed, 32)
            image = expected.student / 255
            top, left, height, width = expected.erase_box
            if height:
                noise = torch.from_numpy(released_noise(expected.noise_seed, (3, height, width)))
                patch = noise * torch.tensor(STD)[:, None, None] + torch.tensor(MEAN)[:, None, None]
                image[:, top : top + height, left : left + width] = patch
                num_erased += 1
            torch.testing.assert_close(batch.images[row], image, atol=1e-6, rtol=0)
    assert num_erased > 2


def test_several_released_views_of_an_image_are_refused():
    source = memory_photos(4)
    for more in ({"other_views": [ViewOptions()]}, {"local_views": [(ViewOptions(), 16)]}):
        with pytest.raises(UserError, match="one per image"):
            batches(source, **more)


def test_a_bad_image_is_replaced_with_the_targets_of_the_next():
    files = [*memory_photos(3).files, None]
    (batch, *_) = batches(MemorySource(files[:2] + [None] + files[2:3]), total_steps=1)
    assert sorted(batch.targets["target"].tolist()) == sorted(
        int(key.split()[1]) + 100 for key in batch.keys
    )
