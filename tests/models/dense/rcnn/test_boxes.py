"""Anchors, deltas and matches: golden values, and slow loops."""

import pytest
import torch

from limbeck.models.dense.rcnn import boxes
from limbeck.models.dense.rcnn.boxes import clip, decode, draw, encode, grid_anchors, match

STRIDES = (4, 8, 16, 32, 64)
LIKE = torch.zeros((), dtype=torch.float64)


def all_anchors(side):
    return torch.cat([grid_anchors((side // s, side // s), s, LIKE) for s in STRIDES])


def test_golden_anchors():  # row 12
    assert [len(all_anchors(side)) for side in (1024, 640, 512)] == [261888, 102300, 65472]
    found = grid_anchors((2, 2), 4, LIKE)
    wide, tall = 22.627417, 11.313708
    first = [[-wide, -tall, wide, tall], [-16, -16, 16, 16], [-tall, -wide, tall, wide]]
    moved = [[first[0][0] + 4, -tall, first[0][2] + 4, tall]]
    expected = torch.tensor([*first, *moved], dtype=torch.float64)
    torch.testing.assert_close(found[:4], expected, rtol=0, atol=1e-6)


def test_golden_deltas():  # row 13
    own, truth = torch.tensor([[[10.0, 20, 50, 40]], [[12, 18, 60, 50]]], dtype=torch.float64)
    plain = torch.tensor([[0.15, 0.2, 0.1823215932, 0.4700036292]], dtype=torch.float64)
    torch.testing.assert_close(encode(own, truth), plain, rtol=0, atol=1e-7)  # float32
    scale = plain.new_tensor([10, 10, 5, 5])
    torch.testing.assert_close(encode(own, truth, (10, 5)), plain * scale, rtol=0, atol=1e-6)
    moved = decode(plain.new_tensor([[0.1, -0.2, 0.3, 10]]), own)
    expected = plain.new_tensor([[7.0028229, -599.00006, 60.9971771, 651.00006]])
    torch.testing.assert_close(moved, expected, rtol=0, atol=1e-4)  # float32
    torch.testing.assert_close(decode(encode(own, truth, (10, 5)), own, (10, 5)), truth)
    plain = encode(own, truth)
    several = decode(plain.expand(1, 3, 4), own)
    torch.testing.assert_close(several, truth[:, None].expand(1, 3, 4))


def test_boxes_are_clipped():
    box = torch.tensor([[-3.0, 5, 70, 90]])
    assert clip(box, (40, 60)).tolist() == [[0, 5, 60, 40]]


def some_boxes(count, seed):
    generator = torch.Generator().manual_seed(seed)
    corner, size = torch.rand(2, count, 2, generator=generator, dtype=torch.float64)
    return torch.cat((corner * 40, corner * 40 + size * 30), 1)


@pytest.mark.parametrize("chunk", [1, 130, 10**6])
def test_matches_equal_slow_loops(chunk, monkeypatch):
    monkeypatch.setattr(boxes, "CHUNK", chunk)
    own, truth = some_boxes(60, 0), some_boxes(7, 1)
    truth[3] = own[5]
    own[6] = own[5]  # a tie
    truth[4] = truth[4] + 1000  # overlaps nothing

    def overlap(a, b):
        width = max(0, min(a[2], b[2]) - max(a[0], b[0]))
        height = max(0, min(a[3], b[3]) - max(a[1], b[1]))
        areas = [(c[2] - c[0]) * (c[3] - c[1]) for c in (a, b)]
        return width * height / (sum(areas) - width * height)

    table = [[overlap(a, b) for b in truth.tolist()] for a in own.tolist()]
    best = [max(row[k] for row in table) for k in range(7)]
    found = match(own, truth)
    for index, row in enumerate(table):
        assert found.overlap[index].item() == pytest.approx(max(row), abs=1e-12)
        assert found.objects[index].item() == row.index(max(row))
        nearest = any(v > 0 and abs(v - b) < 1e-12 for v, b in zip(row, best, strict=True))
        assert found.is_nearest[index].item() == nearest
    assert found.is_nearest[[5, 6]].all()


def test_memory_is_bounded(monkeypatch):  # complaint 8
    asked = []
    real = boxes.box_iou
    monkeypatch.setattr(boxes, "box_iou", lambda a, b: asked.append(len(a) * len(b)) or real(a, b))
    monkeypatch.setattr(boxes, "CHUNK", 20000)
    match(some_boxes(3000, 0), some_boxes(50, 1))
    assert sum(asked) == 150000 and max(asked) <= 20000


def test_nothing_to_match():
    found = match(some_boxes(4, 0), torch.zeros(0, 4))
    assert not found.overlap.any() and not found.is_nearest.any()
    assert len(match(torch.zeros(0, 4), some_boxes(2, 0)).overlap) == 0


def test_what_is_drawn_follows_from_the_seed():
    chosen = torch.arange(100) % 2 == 0
    first, again, other = (
        draw(chosen, 10, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)
    )
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert len(first.unique()) == 10 and chosen[first].all()
    assert torch.equal(draw(chosen, 50, torch.Generator()), chosen.nonzero()[:, 0])
