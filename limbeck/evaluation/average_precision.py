"""How well boxes and masks are found: COCO's average precision, and what a threshold gives.

Average precision is faster-coco-eval's, whose numbers are those of COCO's own tool, by its C++
(extra "detect"). Of an image only boxes, scores and run lengths are kept, never a mask of its size.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from limbeck.data.scenes.objects.source import Annotated
from limbeck.errors import RunError
from limbeck.ops.outlines import coco_tools
from limbeck.ops.paste import paste
from limbeck.records import Detections

SIZES = ("small", "medium", "large")
OVERLAP = 0.5  # from which on a box counts as found, where a threshold is chosen
MOST = (1, 10, 100)  # COCO's numbers of answers an image


@dataclass(frozen=True)
class BoxScores:
    """What was found, all 0..1; NaN of what there is nothing of.

    ``boxes`` and ``masks`` (None without) are COCO's numbers by name: "ap" (mean over overlaps of
    0.5 to 0.95), "ap50", "ap75", "ap_small", "ap_medium", "ap_large", "ar100"; ``of_classes`` is
    the "ap" of boxes by class. At ``threshold``, the score from which on the F1 of all answers at
    an overlap of 0.5 is highest, are ``f1``, ``precision`` and ``recall``; ``thresholds`` are those
    of classes. ``confusion`` (C + 1, C + 1) int64 counts there: row the object's class, column the
    answer's, the last of both the background.
    """

    boxes: dict[str, float]
    masks: dict[str, float] | None
    of_classes: dict[str, float]
    threshold: float
    f1: float
    precision: float
    recall: float
    thresholds: dict[str, float]
    confusion: np.ndarray

    def plain(self) -> dict[str, float]:
        """Numbers by name, "ap/CLASS" of a class, without NaN."""
        names = ("threshold", "f1", "precision", "recall")
        found = self.boxes | {name: getattr(self, name) for name in names}
        found |= {f"mask_{name}": value for name, value in (self.masks or {}).items()}
        found |= {f"ap/{name}": value for name, value in self.of_classes.items()}
        return {name: value for name, value in found.items() if value == value}


class _Image(NamedTuple):
    """Of one image what is kept: boxes xyxy float64, and masks as run lengths."""

    size: tuple[int, int]
    truth: Annotated
    boxes: np.ndarray
    scores: np.ndarray
    classes: np.ndarray
    masks: list[Any]


class Answers(NamedTuple):
    """Answers (n,): their scores, whether each finds an object that no surer one does (overlap
    0.5), classes, images; and objects ``counts`` (images, classes)."""

    scores: np.ndarray
    is_right: np.ndarray
    classes: np.ndarray
    images: np.ndarray
    counts: np.ndarray


class AveragePrecision:
    """Objects and answers of any number of images; ``has_masks``: of outlines, too."""

    def __init__(self, classes: Sequence[str], *, has_masks: bool = False) -> None:
        self.classes, self.has_masks = tuple(classes), has_masks
        self.images: list[_Image] = []
        self.tools = coco_tools()

    def add(self, size: tuple[int, int], truth: Annotated, found: Detections) -> None:
        """Keep an image of (H, W): its objects, and its answers in its own pixels."""
        boxes = found.boxes.double().cpu().numpy()
        scores = found.scores.float().cpu().numpy().astype(np.float64)
        if not (np.isfinite(boxes).all() and np.isfinite(scores).all()):
            raise RunError("The detector's answers are not finite; use precision fp32.")
        masks = []
        if self.has_masks and found.masks is not None:
            encode = self.tools.core.mask.encode
            for box, mask in zip(found.boxes.cpu(), found.masks.float().cpu(), strict=True):
                masks.append(encode(np.asfortranarray(paste(mask, box, size).numpy(), np.uint8)))
        self.images.append(_Image(size, truth, boxes, scores, found.classes.cpu().numpy(), masks))

    def score(self) -> BoxScores:
        """The scores of what was kept. Raises RunError where there is no object."""
        if not any(len(image.truth.boxes) for image in self.images):
            raise RunError("No image has an object, so there is nothing to score.")
        boxes, of_classes = self._coco("bbox")
        masks = self._coco("segm")[0] if self.has_masks else None
        scores, is_right, kinds, _, of_images = self.answers()
        counts = of_images.sum(0)
        threshold, f1, precision, recall = _best(scores, is_right, int(counts.sum()))
        own = {
            name: _best(scores[kinds == index], is_right[kinds == index], int(counts[index]))[0]
            for index, name in enumerate(self.classes)
            if counts[index]
        }
        confusion = sum(_confusion(image, threshold, len(self.classes)) for image in self.images)
        return BoxScores(
            boxes, masks, of_classes, threshold, f1, precision, recall, own, np.asarray(confusion)
        )

    def f1_at(self, threshold: float) -> float:
        """F1 of all answers of at least this score."""
        scores, is_right, *_, counts = self.answers()
        is_sure = scores >= threshold
        return float(2 * (is_right & is_sure).sum() / max(1, is_sure.sum() + counts.sum()))

    def answers(self) -> "Answers":
        """What an interval is drawn of: every answer, and every object, by class and image."""
        columns: list[list[np.ndarray]] = [[], [], [], []]
        counts = np.zeros((len(self.images), len(self.classes)), np.int64)
        for index, image in enumerate(self.images):
            parts = _hits(image)
            for column, part in zip(columns, (*parts, np.full(len(parts[0]), index)), strict=True):
                column.append(part)
            single = image.truth.classes[~image.truth.is_crowd]
            counts[index] = np.bincount(single, minlength=len(self.classes))
        scores, is_right, classes, indices = map(np.concatenate, columns)
        return Answers(scores, is_right, classes, indices, counts)

    def _coco(self, kind: str) -> tuple[dict[str, float], dict[str, float]]:
        """COCO's numbers and the "ap" of each class, of "bbox" or "segm"."""
        tools, is_boxes = self.tools, kind == "bbox"
        images, truths, answers = [], [], []
        for index, image in enumerate(self.images, 1):
            images.append({"id": index, "height": image.size[0], "width": image.size[1]})
            truth = image.truth
            for box, shape, area, crowd, value in zip(
                _xywh(truth.boxes), truth.shapes, truth.areas.tolist(), truth.is_crowd.tolist(),
                truth.classes.tolist(), strict=True,
            ):  # fmt: skip
                each = {
                    "id": len(truths) + 1, "image_id": index, "category_id": value + 1,
                    "bbox": box, "area": area, "iscrowd": int(crowd),
                }  # fmt: skip
                truths.append(
                    each if is_boxes else each | {"segmentation": shape or [_corners(box)]}
                )
            each_of = zip(
                _xywh(image.boxes), image.scores.tolist(), image.classes.tolist(), strict=True
            )
            for place, (box, score, value) in enumerate(each_of):
                # What COCO's reader of results would add, box by box, with an outline of each.
                what = {"bbox": box, "area": box[2] * box[3], "iscrowd": 0, "id": len(answers) + 1}
                if not is_boxes:
                    what = {"segmentation": image.masks[place]}
                answers.append({"image_id": index, "category_id": value + 1, "score": score} | what)
        categories = [{"id": k + 1, "name": name} for k, name in enumerate(self.classes)]
        truth = tools.COCO({"images": images, "annotations": truths, "categories": categories})
        if not answers:
            return dict.fromkeys(_NAMES, 0.0), dict.fromkeys(self.classes, 0.0)
        parts = {"images": images, "annotations": answers, "categories": categories}
        said = tools.COCO(parts) if is_boxes else truth.loadRes(answers)
        found = tools.COCOeval_faster(truth, said, kind, print_function=_silent)
        found.params.maxDets = list(MOST)
        found.evaluate()
        found.accumulate()
        precision, recall = found.eval["precision"], found.eval["recall"]
        thresholds = np.asarray(found.params.iouThrs)

        def mean(values: np.ndarray) -> float:
            kept = values[values > -1]
            return float(kept.mean()) if kept.size else float("nan")

        last = len(MOST) - 1
        whole = precision[:, :, :, 0, last]
        scores = {
            "ap": mean(whole),
            "ap50": mean(whole[np.isclose(thresholds, 0.5)]),
            "ap75": mean(whole[np.isclose(thresholds, 0.75)]),
        }
        for place, name in enumerate(SIZES, 1):
            scores[f"ap_{name}"] = mean(precision[:, :, :, place, last])
        scores["ar100"] = mean(recall[:, :, 0, last])
        return scores, {
            name: mean(precision[:, :, index, 0, last]) for index, name in enumerate(self.classes)
        }


_NAMES = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large", "ar100")


def _silent(*words: object, **more: object) -> None:
    del words, more


def _xywh(boxes: np.ndarray) -> list[list[float]]:
    return np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], 1).tolist()


def _corners(box: list[float]) -> list[float]:
    left, top, width, height = box
    right, bottom = left + width, top + height
    return [left, top, right, top, right, bottom, left, bottom]


def _overlaps(truth: np.ndarray, boxes: np.ndarray, *, of_crowd: bool = False) -> np.ndarray:
    """Intersection over union (n, m) in float64; of a crowd over the answer's own area."""
    low = np.maximum(truth[:, None, :2], boxes[None, :, :2])
    high = np.minimum(truth[:, None, 2:], boxes[None, :, 2:])
    inside = (high - low).clip(min=0).prod(2)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    if of_crowd:
        return inside / areas.clip(min=1e-12)
    own = (truth[:, 2:] - truth[:, :2]).prod(1)
    return inside / (own[:, None] + areas[None] - inside).clip(min=1e-12)


def _objects_of(overlap: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Of overlaps (n objects, m answers) the object that each answer finds, -1 for none: the surest
    comes first, and takes what of the free ones it overlaps most."""
    found, is_free = np.full(len(scores), -1), np.ones(len(overlap), bool)
    order = np.argsort(-scores, kind="stable")
    for answer in order[(overlap >= OVERLAP).any(0)[order]]:  # few of all
        fits = np.where(is_free, overlap[:, answer], 0)
        if fits[best := fits.argmax()] >= OVERLAP:
            is_free[best], found[answer] = False, best
    return found


def _hits(image: _Image) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores of the answers, whether each finds an object of its class that no surer one does, and
    classes; those within crowds of their class are left out."""
    truth = image.truth
    is_same = truth.classes[:, None] == image.classes[None]
    single, crowd = ~truth.is_crowd, truth.is_crowd
    overlap = _overlaps(truth.boxes[single], image.boxes) * is_same[single]
    within = _overlaps(truth.boxes[crowd], image.boxes, of_crowd=True) * is_same[crowd]
    is_right = _objects_of(overlap, image.scores) >= 0
    is_counted = is_right | ~(within >= OVERLAP).any(0)
    return image.scores[is_counted], is_right[is_counted], image.classes[is_counted]


def _best(scores: np.ndarray, is_right: np.ndarray, count: int) -> tuple[float, ...]:
    """A threshold of the highest F1, that, and precision and recall there."""
    if not len(scores) or not count:
        return 0.5, 0.0, 0.0, 0.0
    order = np.argsort(-scores, kind="stable")
    hits = np.cumsum(is_right[order])
    number = np.arange(1, len(order) + 1)
    f1 = 2 * hits / (number + count)
    # A threshold lets in all answers of its score.
    is_last = np.append(np.diff(scores[order]) != 0, True)
    best = int(np.where(is_last, f1, -1).argmax())
    # Half-way to the next, so that rounding turns no answer away.
    between = scores[order][best : best + 2].mean()
    return (
        float(between), float(f1[best]),
        float(hits[best] / number[best]), float(hits[best] / count),
    )  # fmt: skip


def _confusion(image: _Image, threshold: float, num_classes: int) -> np.ndarray:
    """Objects by the class of the answer that overlaps them most, at least half, the surest first
    whatever its class; the rest against the background."""
    counts = np.zeros((num_classes + 1, num_classes + 1), np.int64)
    is_single = ~image.truth.is_crowd
    truth, kinds = image.truth.boxes[is_single], image.truth.classes[is_single]
    is_sure = image.scores >= threshold
    boxes, said = image.boxes[is_sure], image.classes[is_sure]
    within = _overlaps(image.truth.boxes[~is_single], boxes, of_crowd=True)
    found = _objects_of(_overlaps(truth, boxes), image.scores[is_sure])
    is_none = (found < 0) & ~(within >= OVERLAP).any(0)
    np.add.at(counts, (kinds[found[found >= 0]], said[found >= 0]), 1)
    np.add.at(counts, (num_classes, said[is_none]), 1)
    np.add.at(counts, (np.delete(kinds, found[found >= 0]), num_classes), 1)
    return counts
