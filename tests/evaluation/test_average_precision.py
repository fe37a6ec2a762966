"""Average precision equals pycocotools'; thresholds and confusions equal slow loops."""

import contextlib
import io
import tracemalloc

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from limbeck.data.scenes.objects.source import Annotated
from limbeck.data.scenes.raster import fill_polygon
from limbeck.errors import RunError
from limbeck.evaluation.average_precision import AveragePrecision
from limbeck.records import Detections

CLASSES = ("a", "b", "c", "never")
NAMES = ["ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large"]


def made_up(seed, num_images=12, has_masks=False, ties=False):
    """Sizes, objects and answers of images: crowds, empty images, a class without objects."""
    rng = np.random.default_rng(seed)
    found = []
    for number in range(num_images):
        size = (int(rng.integers(60, 200)), int(rng.integers(60, 200)))
        count = 0 if number % 5 == 4 else int(rng.integers(1, 9))
        boxes = random_boxes(rng, count, size)
        kinds = rng.integers(0, 3, count)
        areas = (boxes[:, 2:] - boxes[:, :2]).prod(1) * rng.uniform(0.5, 1, count)
        shapes = [None] * count
        if has_masks:
            shapes = [outline(rng, box) for box in boxes]
        crowd = rng.random(count) < 0.15
        if has_masks:
            shapes = [
                runs(shape, size) if is_crowd else shape
                for shape, is_crowd in zip(shapes, crowd, strict=True)
            ]
        truth = Annotated(boxes, kinds, crowd, areas, tuple(shapes))
        noisy = boxes + rng.normal(0, 4, boxes.shape)
        more = random_boxes(rng, int(rng.integers(0, 130 if number == 1 else 8)), size)
        answers = np.concatenate([noisy, noisy[: count // 2], more])
        answers = np.clip(answers, 0, (size[1], size[0], size[1], size[0]))
        answers[:, 2:] = np.maximum(answers[:, 2:], answers[:, :2] + 1)
        scores = rng.random(len(answers))
        if ties:
            scores = np.round(scores, 1)
        said = np.concatenate([kinds, rng.integers(0, 4, len(answers) - count)])
        masks = torch.from_numpy(rng.random((len(answers), 14, 14))) if has_masks else None
        found.append((size, truth, Detections(
            torch.from_numpy(answers), torch.from_numpy(scores), torch.from_numpy(said),
            None if masks is None else masks.float(),
        )))  # fmt: skip
    return found


def random_boxes(rng, count, size):
    low = rng.uniform(0, 0.7, (count, 2)) * (size[1], size[0])
    high = low + rng.uniform(3, 0.9 * min(size), (count, 2))
    return np.concatenate([low, np.minimum(high, (size[1], size[0]))], 1)


def outline(rng, box):
    left, top, right, bottom = box
    middle = (left + right) / 2
    return [[left, top, right, top, middle, bottom, left, bottom]]


def runs(shape, size):
    patch = fill_polygon(shape[0], *size)
    whole = np.zeros(size, bool)
    rows, columns = patch.is_inside.shape
    whole[patch.top : patch.top + rows, patch.left : patch.left + columns] = patch.is_inside
    inside = whole.T.ravel()
    ends = np.flatnonzero(np.diff(inside)) + 1
    counts = np.diff([0, *ends, inside.size]).tolist()
    return {"counts": [0, *counts] if inside[0] else counts, "size": list(size)}


def ours(found, has_masks=False):
    scores = AveragePrecision(CLASSES, has_masks=has_masks)
    for size, truth, answers in found:
        scores.add(size, truth, answers)
    return scores


def theirs(kept, kind):
    """COCO's own tool on what was kept: its six numbers of precision, and AR100."""
    images, truths, answers = [], [], []
    for index, image in enumerate(kept.images, 1):
        images.append({"id": index, "height": image.size[0], "width": image.size[1]})
        for k, box in enumerate(image.truth.boxes):
            left, top, right, bottom = map(float, box)
            corners = [left, top, right, top, right, bottom, left, bottom]
            truths.append({
                "id": len(truths) + 1, "image_id": index,
                "category_id": int(image.truth.classes[k]) + 1,
                "bbox": [left, top, right - left, bottom - top],
                "area": float(image.truth.areas[k]), "iscrowd": int(image.truth.is_crowd[k]),
                "segmentation": image.truth.shapes[k] or [corners],
            })  # fmt: skip
        for k, (left, top, right, bottom) in enumerate(image.boxes.tolist()):
            what = {"bbox": [left, top, right - left, bottom - top]}
            if kind == "segm":
                what = {"segmentation": image.masks[k]}
            score, kind_of = float(image.scores[k]), int(image.classes[k]) + 1
            answers.append({"image_id": index, "category_id": kind_of, "score": score} | what)
    categories = [{"id": k + 1, "name": name} for k, name in enumerate(CLASSES)]
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = {"images": images, "annotations": truths, "categories": categories}
        truth.createIndex()
        run = COCOeval(truth, truth.loadRes(answers), kind)
        run.evaluate()
        run.accumulate()
        run.summarize()
    by_class = [run.eval["precision"][:, :, k, 0, 2] for k in range(len(CLASSES))]
    own = {
        name: float(each[each > -1].mean()) if (each > -1).any() else float("nan")
        for name, each in zip(CLASSES, by_class, strict=True)
    }
    return [float("nan") if value == -1 else value for value in run.stats], own


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("ties", [False, True])
def test_boxes_are_scored_as_pycocotools_does(seed, ties, capfd):
    kept = ours(made_up(seed, ties=ties))
    scores = kept.score()
    assert capfd.readouterr() == ("", "")
    expected, by_class = theirs(kept, "bbox")
    assert [scores.boxes[name] for name in NAMES] == pytest.approx(
        expected[:6], abs=1e-12, nan_ok=True
    )
    assert scores.boxes["ar100"] == pytest.approx(expected[8], abs=1e-12)
    assert scores.of_classes == pytest.approx(by_class, abs=1e-12, nan_ok=True)
    assert np.isnan(scores.of_classes["never"]) and "ap/never" not in scores.plain()


@pytest.mark.parametrize("seed", range(2))
def test_masks_are_scored_as_pycocotools_does(seed):
    kept = ours(made_up(seed, has_masks=True), has_masks=True)
    scores = kept.score()
    expected, _ = theirs(kept, "segm")
    assert [scores.masks[name] for name in NAMES] == pytest.approx(
        expected[:6], abs=1e-12, nan_ok=True
    )
    assert scores.plain()["mask_ap"] == scores.masks["ap"]


def iou(one, other):
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    inside = max(width, 0) * max(height, 0)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
    return inside / (sum(areas) - inside)


def slow_f1(found, threshold):
    """Hits, answers and objects at a threshold, by loops; without crowds."""
    hits = number = count = 0
    for _, truth, answers in found:
        count += len(truth.boxes)
        is_free = [True] * len(truth.boxes)
        for place in np.argsort(-answers.scores.numpy(), kind="stable"):
            if answers.scores[place] < threshold:
                continue
            number += 1
            own = [
                (iou(box, answers.boxes[place].tolist()), k)
                for k, box in enumerate(truth.boxes.tolist())
                if is_free[k] and truth.classes[k] == answers.classes[place]
            ]
            if own and max(own)[0] >= 0.5:
                is_free[max(own)[1]] = False
                hits += 1
    return hits, number, count


def test_the_threshold_is_that_of_the_best_f1():
    found = [
        (size, truth._replace(is_crowd=np.zeros(len(truth.boxes), bool)), answers)
        for size, truth, answers in made_up(7, 8)
    ]
    scores = ours(found).score()
    tried = {}
    for threshold in {float(v) for _, _, each in found for v in np.float32(each.scores)}:
        hits, number, count = slow_f1(found, threshold - 1e-7)
        tried[threshold] = 2 * hits / (number + count)
    assert scores.f1 == pytest.approx(max(tried.values()), abs=1e-12)
    assert min(abs(scores.threshold - each) for each in tried) > 1e-5  # none is on the edge
    hits, number, count = slow_f1(found, scores.threshold)
    assert 2 * hits / (number + count) == pytest.approx(scores.f1)
    assert (scores.precision, scores.recall) == pytest.approx((hits / number, hits / count))
    assert set(scores.thresholds) == {"a", "b", "c"}


def test_the_confusion_counts_every_object_and_sure_answer():
    truth = Annotated(
        np.array([[0.0, 0, 10, 10], [20, 20, 40, 40], [50, 50, 60, 60]]), np.array([0, 1, 2]),
        np.array([False, False, True]), np.ones(3), (None,) * 3,
    )  # fmt: skip
    boxes = torch.tensor([[0.0, 0, 10, 9], [20, 20, 40, 38], [70, 70, 80, 80], [51, 51, 59, 59]])
    scores = AveragePrecision(CLASSES)
    scores.add((90, 90), truth, Detections(
        boxes, torch.tensor([0.9, 0.9, 0.9, 0.9]), torch.tensor([0, 2, 1, 2]),
    ))  # fmt: skip
    found = scores.score()
    expected = np.zeros((5, 5), int)
    expected[0, 0] = expected[1, 2] = expected[4, 1] = 1  # the crowd's answer counts nowhere
    assert np.array_equal(found.confusion, expected)
    assert found.threshold == pytest.approx(0.9)


def test_without_answers_and_without_objects():
    none = Detections(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64))
    size, truth, _ = made_up(0)[0]
    scores = ours([(size, truth, none)]).score()
    assert scores.boxes["ap"] == 0 and scores.f1 == 0
    empty = truth._replace(
        boxes=np.zeros((0, 4)), classes=np.zeros(0, int), is_crowd=np.zeros(0, bool),
        areas=np.zeros(0), shapes=(),
    )  # fmt: skip
    with pytest.raises(RunError, match="No image has an object"):
        ours([(size, empty, none)]).score()
    bad = Detections(torch.full((1, 4), float("nan")), torch.ones(1), torch.zeros(1).long())
    with pytest.raises(RunError, match="not finite"):
        ours([(size, truth, bad)])


def test_masks_of_large_images_are_never_held():
    side, count = 3000, 60
    rng = np.random.default_rng(0)
    boxes = random_boxes(rng, count, (side, side))
    truth = Annotated(
        boxes, np.zeros(count, int), np.zeros(count, bool), np.ones(count), (None,) * count
    )
    answers = Detections(
        torch.from_numpy(boxes), torch.rand(count), torch.zeros(count).long(),
        torch.rand(count, 28, 28),
    )  # fmt: skip
    kept = AveragePrecision(CLASSES, has_masks=True)
    tracemalloc.start()
    kept.add((side, side), truth, answers)
    now, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert now < 4 * 2**20 and most < 6 * side * side  # of 60 masks of 9 MB each
