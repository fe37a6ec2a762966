"""Scores of a detector over images: in each image's own pixels, streamed, without a leak."""

import gc

import pytest
import torch

from limbeck.data.scenes.objects.open import open_objects
from limbeck.data.scenes.objects.options import ObjectOptions
from limbeck.data.skipped import SkippedLog
from limbeck.recipes.run.boxes import on_image, scores_over
from limbeck.records import Detections
from tests.models.dense.test_light_detector import small
from tests.recipes.objects import draw_objects


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = draw_objects(tmp_path_factory.mktemp("objects"), 9)
    return open_objects(str(folder), ObjectOptions(root=str(folder)))


def knowing(source, size):
    """A detector that answers with the truth, as it is shown."""
    detector = small(num_classes=2, img_size=size).eval()
    shown = iter(range(len(source)))

    def detect(images, sizes):
        found = []
        for each in sizes:
            index = next(shown)
            truth = source.objects(index)
            height, width = source.packed.sizes[index].tolist()
            factors = [each[1] / width, each[0] / height] * 2
            boxes = torch.from_numpy(truth.boxes).float() * torch.tensor(factors)
            count = len(boxes)
            found.append(Detections(boxes, torch.ones(count), torch.from_numpy(truth.classes)))
        return found

    detector.detect = detect
    return detector


def over(detector, source, batch_size=4):
    return scores_over(
        detector, source, data=ObjectOptions(num_workers=0), batch_size=batch_size,
        skipped=SkippedLog(None, len(source), 0.0),
    )  # fmt: skip


@pytest.mark.parametrize("size", [32, 64])
def test_who_knows_the_truth_is_right_at_any_size(size, source):
    found = over(knowing(source, size), source)
    assert found.score().boxes["ap"] == pytest.approx(1)
    assert len(found.images) == 9  # those without objects, too


def test_batches_change_nothing(source):
    detector = small(num_classes=2).eval()
    one, more = (over(detector, source, size) for size in (1, 4))
    for own, other in zip(one.images, more.images, strict=True):
        torch.testing.assert_close(torch.from_numpy(own.scores), torch.from_numpy(other.scores))


def test_boxes_come_back_to_the_image():
    found = Detections(
        torch.tensor([[1.0, 2, 16, 12]]), torch.ones(1), torch.zeros(1, dtype=torch.int64)
    )
    assert on_image(found, (12, 16), (24, 48)).boxes.tolist() == [[3, 4, 48, 24]]


def test_validations_leave_nothing_behind(source):
    detector = small(num_classes=2, masks=True).eval()

    def count():
        gc.collect()
        return sum(isinstance(each, torch.Tensor) for each in gc.get_objects())

    over(detector, source).score()
    before = count()
    for _ in range(5):
        over(detector, source).score()
    assert count() == before
