"""Which place answers for which object: against a slow loop, ties, tiny objects, chunks."""

import pytest
import torch

from limbeck.models.dense import assignment
from limbeck.models.dense.assignment import assign


def made_up(seed, count=5, num_classes=3, side=64, stride=8):
    generator = torch.Generator().manual_seed(seed)
    places = (torch.arange(side // stride) + 0.5) * stride
    centres = torch.stack(torch.meshgrid(places, places, indexing="xy"), -1).flatten(0, 1)
    scores = torch.rand(len(centres), num_classes, generator=generator)
    sides = 4 + 20 * torch.rand(len(centres), 4, generator=generator)
    boxes = torch.cat([centres - sides[:, :2], centres + sides[:, 2:]], 1)
    low = torch.rand(count, 2, generator=generator) * 40
    truth = torch.cat([low, low + 3 + 25 * torch.rand(count, 2, generator=generator)], 1)
    classes = torch.randint(0, num_classes, (count,), generator=generator)
    return scores, boxes, centres, truth, classes


def iou(one, other):
    low, high = torch.maximum(one[:2], other[:2]), torch.minimum(one[2:], other[2:])
    inside = (high - low).clamp(min=0).prod()
    areas = (one[2:] - one[:2]).prod() + (other[2:] - other[:2]).prod()
    return float(inside / (areas - inside))


def slow(scores, boxes, centres, truth, classes, count):
    """{place: (object, quality)} by the formula: s u^6 within an object, the best ``count``."""
    wanted = {}
    suits = torch.zeros(len(truth), len(centres), dtype=torch.float64)
    overlap = torch.zeros_like(suits)
    for n, box in enumerate(truth):
        inside = [
            p for p, (x, y) in enumerate(centres) if box[0] < x < box[2] and box[1] < y < box[3]
        ]
        if not inside:
            middle = (box[:2] + box[2:]) / 2
            inside = [int((centres - middle).square().sum(1).argmin())]
        for p in inside:
            overlap[n, p] = iou(box, boxes[p])
            suits[n, p] = float(scores[p, classes[n]]) * overlap[n, p] ** 6
        best = sorted(inside, key=lambda p, n=n: -suits[n, p])[:count]
        for p in best:
            if p not in wanted or overlap[n, p] > overlap[wanted[p], p]:
                wanted[p] = n
    quality = {}
    for p, n in wanted.items():
        own = [q for q, other in wanted.items() if other == n]
        most = max(float(suits[n, q]) for q in own)
        quality[p] = (n, float(suits[n, p]) / most * max(float(overlap[n, q]) for q in own))
    return quality


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("count", [1, 4])
def test_it_is_the_formula(seed, count):
    case = made_up(seed)
    found = assign(*case, count)
    expected = slow(*case, count)
    got = {
        place: (own, quality)
        for place, own, quality in zip(*(each.tolist() for each in found), strict=True)
    }
    assert got.keys() == expected.keys()
    for place, (own, quality) in expected.items():
        assert got[place][0] == own
        assert got[place][1] == pytest.approx(quality, rel=1e-4)  # float32 to the sixth power


def test_parts_of_many_objects_change_nothing(monkeypatch):
    case = made_up(0, count=30)
    whole = assign(*case, 4)
    monkeypatch.setattr(assignment, "CHUNK", 100)
    for one, other in zip(whole, assign(*case, 4), strict=True):
        assert torch.equal(one, other)


def test_nothing_to_be_found_and_boxes_that_never_overlap():
    scores, boxes, centres, truth, classes = made_up(1)
    none = assign(scores, boxes, centres, truth[:0], classes[:0], 4)
    assert all(len(each) == 0 for each in none)
    # Far off: they have places all the same, of no quality yet.
    found = assign(scores, boxes + 500, centres, truth, classes, 4)
    assert len(found.places) >= len(truth) and (found.quality == 0).all()
    inside = centres[found.places]
    own = truth[found.objects]
    assert ((inside > own[:, :2] - 8) & (inside < own[:, 2:] + 8)).all()
