"""From the released layout to a store: each image gets its own records, and its views with them."""

import numpy as np
import pytest
import torch

from limbeck.data.decode import decode_as_stored
from limbeck.data.loader import train_batches
from limbeck.data.open import open_source
from limbeck.data.options import DataOptions, ReleasedViews
from limbeck.data.released_logits import ReleasedLogits, soft_labels
from limbeck.data.released_views import released_noise, released_view
from limbeck.data.skipped import SkippedLog
from limbeck.data.target_store.located import LocatedTargets
from limbeck.data.target_store.reader import TargetReader
from limbeck.errors import UserError
from limbeck.methods.targets import StoredTeacher
from limbeck.recipes.targets.reading import drift, remade_fingerprints
from limbeck.recipes.targets.released import Conversion, find_images, find_records
from tests.data.released import write_released

NUM_VIEWS, NUM_CLASSES, NUM_KEPT = 2, 9, 2  # of two both are stored as they are
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@pytest.fixture(scope="module")
def source(images):
    return open_source(str(images), DataOptions(root=str(images)), "train")


@pytest.fixture(scope="module")
def layout(source, tmp_path_factory):
    root = tmp_path_factory.mktemp("released")
    keys = [source.key(index) for index in range(len(source))]
    write_released(
        root, keys, num_epochs=NUM_VIEWS, num_classes=NUM_CLASSES, num_kept=NUM_KEPT, ranks=3
    )
    return ReleasedLogits(root, NUM_CLASSES)


def convert(layout, source, out):
    index_of = find_images(source, list(layout.keys(0)), None)
    places = find_records(layout, index_of, len(source))
    data = DataOptions(root="photos")
    assert Conversion(layout, source, data, places, "clip", "names").write(str(out)) == len(source)
    return TargetReader(str(out))


def test_places_are_those_of_the_keys(layout, source):
    index_of = {source.key(3): 3, source.key(7): 7, "unknown": 11}
    places = find_records(layout, index_of, len(source))
    assert places.shape == (NUM_VIEWS, 48) and places.dtype == np.int32
    for epoch in range(NUM_VIEWS):
        keys = layout.keys(epoch)
        assert places[epoch, [3, 7]].tolist() == [keys[source.key(3)], keys[source.key(7)]]
        assert (np.delete(places[epoch], [3, 7]) == -1).all()


def test_numbers_may_be_names_or_positions(source):
    numbers = [str(number) for number in range(48)]
    with pytest.raises(UserError, match="--keys positions .* or --keys names"):
        find_images(source, numbers, None)
    assert find_images(source, numbers, "positions")["47"] == 47


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_training_sees_the_released_views_and_their_own_labels(
    layout, source, tmp_path, num_workers
):
    reader = convert(layout, source, tmp_path / "store")
    teacher = StoredTeacher(reader.manifest, {}, torch.device("cpu"))
    batches = train_batches(
        source,
        data=DataOptions(num_workers=num_workers),
        views=ReleasedViews(),
        img_size=40,
        run_seed=3,
        global_batch_size=16,
        accumulate_steps=1,
        rank=0,
        world_size=1,
        start_step=2,
        total_steps=11,
        device=torch.device("cpu"),
        erase_mean=MEAN,
        erase_std=STD,
        skipped=SkippedLog(None, len(source), 0.0),
        targets=LocatedTargets(reader, source, None),
    )
    for step, batch in enumerate(batches, 2):
        view = step // 3 % NUM_VIEWS  # three steps are an epoch
        keys = layout.keys(view)
        records = layout.read(view, np.array([keys[key] for key in batch.keys]))
        assert batch.view_seeds.tolist() == records.view_seeds.tolist()
        expected, found = soft_labels(records, NUM_CLASSES), teacher.answer(batch, ()).soft_labels
        assert torch.equal(found.classes, expected.classes)
        torch.testing.assert_close(found.probs, expected.probs, atol=1e-6, rtol=0)
        torch.testing.assert_close(found.rest, expected.rest, atol=1e-6, rtol=0)
        for row in (0, 9):
            index = next(i for i in range(48) if source.key(i) == batch.keys[row])
            pixels = decode_as_stored(source.read(index).data, 10**6)
            view_made = released_view(pixels, int(batch.view_seeds[row]), 40)
            image = view_made.student / 255
            top, left, height, width = view_made.erase_box
            if height:
                noise = released_noise(view_made.noise_seed, (3, height, width))
                scaled = torch.from_numpy(noise) * torch.tensor(STD)[:, None, None]
                image[:, top : top + height, left : left + width] = (
                    scaled + torch.tensor(MEAN)[:, None, None]
                )
            torch.testing.assert_close(batch.images[row], image, atol=1e-6, rtol=0)


def test_views_have_the_pixels_that_they_had_when_converted(layout, source, tmp_path):
    reader = convert(layout, source, tmp_path / "store")
    data = DataOptions(root="photos")
    made = list(remade_fingerprints(reader, source, data, ReleasedViews()))
    assert len(made) == 16 and all(was == now for _, _, was, now in made)
    assert "the same" in drift(reader.manifest)
