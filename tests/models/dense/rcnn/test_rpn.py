"""Region proposals: golden losses, and which boxes are left."""

import pytest
import torch

from limbeck.models.dense.rcnn import rpn
from limbeck.models.dense.rcnn.boxes import decode, grid_anchors, match
from limbeck.models.dense.rcnn.rpn import RegionProposals, in_rows, proposal_losses, propose
from limbeck.records import Objects
from tests.models.dense.fills import sin_ramp
from tests.models.dense.rcnn.test_boxes import LIKE, all_anchors

TRUTH = torch.tensor([[8.0, 8, 40, 48], [20, 10, 60, 30]])


def objects(boxes=TRUTH):
    return Objects(boxes, torch.arange(len(boxes)), (64, 64))


def losses(logits, deltas, truth=TRUTH, samples=2048, seed=0):
    anchors = all_anchors(64)
    drawn = [torch.Generator().manual_seed(seed)]
    return proposal_losses(logits, deltas, anchors, [objects(truth)], drawn, samples)


def test_golden_losses():  # row 15, of float32
    anchors = all_anchors(64)
    assert len(anchors) == 1023
    found = match(anchors, TRUTH)
    is_object = (found.overlap >= 0.7) | found.is_nearest
    assert is_object.nonzero()[:, 0].tolist() == [267, 270, 273, 307, 355, 403]
    assert ((found.overlap < 0.3) & ~is_object).sum() == 774
    logits, deltas = sin_ramp(1, 1023), 0.1 * sin_ramp(1, 1023, 4)
    of_logits, of_boxes = losses(logits, deltas)
    assert of_logits.item() == pytest.approx(0.2902130485, rel=3e-7)
    assert of_boxes.item() == pytest.approx(0.0015299885, rel=3e-7)
    of_logits, of_boxes = losses(logits * 0, deltas * 0)
    assert of_logits.item() == pytest.approx(0.2639916539, rel=3e-7)
    assert of_boxes.item() == pytest.approx(0.0008968691, rel=3e-7)


def test_half_of_the_samples_are_objects_at_most_and_follow_the_seed():
    logits, deltas = torch.zeros(1, 1023, requires_grad=True), sin_ramp(1, 1023, 4)
    chosen = []
    for seed in (0, 0, 1):
        logits.grad = None
        losses(logits, deltas, samples=8, seed=seed)[0].backward()
        chosen.append(logits.grad[0])
    first, again, other = chosen
    assert (first < 0).sum() == 4 and (first > 0).sum() == 4
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_an_image_without_objects_teaches_the_background():
    logits, deltas = torch.zeros(1, 1023), torch.zeros(1, 1023, 4, requires_grad=True)
    of_logits, of_boxes = losses(logits, deltas, torch.zeros(0, 4), samples=256)
    assert of_logits.item() == pytest.approx(torch.tensor(2.0).log().item(), rel=1e-6)
    of_boxes.backward()
    assert of_boxes == 0 and not deltas.grad.any()


def test_the_network_answers_as_its_anchors_lie():
    head = RegionProposals(4)
    logits, deltas = head(torch.rand(2, 4, 3, 5))
    rows, moves = in_rows(logits, deltas)
    assert rows.shape == (2, 45) and moves.shape == (2, 45, 4)
    y, x, anchor = 2, 1, 1
    place = (y * 5 + x) * 3 + anchor
    assert rows[1, place] == logits[1, anchor, y, x]
    assert torch.equal(moves[1, place], deltas[1, 4 * anchor : 4 * anchor + 4, y, x])
    assert in_rows(logits.bfloat16(), deltas.bfloat16())[0].dtype == torch.float32
    with torch.device("meta"):
        count = sum(p.numel() for p in RegionProposals(256).parameters())
    assert count == 1184015  # section 2.6


def test_published_starts():  # section 2.6
    network = RegionProposals(64)
    for module in (*network.convs, network.objectness, network.deltas):
        assert module.weight.std().item() == pytest.approx(0.01, rel=0.15)
        assert (module.bias == 0).all()


def test_proposals_equal_slow_loops(monkeypatch):
    monkeypatch.setattr(rpn, "MOST_OF_LEVEL", {True: 20, False: 12})
    monkeypatch.setattr(rpn, "MOST", 15)
    torch.manual_seed(0)
    anchors = [grid_anchors((64 // s, 64 // s), s, LIKE) for s in (16, 32)]
    logits = [torch.randn(len(each), dtype=torch.float64) for each in anchors]
    deltas = [0.3 * torch.randn(len(each), 4, dtype=torch.float64) for each in anchors]
    size = (40, 60)
    kept = []
    for own, moves, at in zip(logits, deltas, anchors, strict=True):
        left = []
        for place in own.argsort(descending=True)[:20]:
            box = decode(moves[place][None], at[place][None])[0]
            box = torch.minimum(box.clamp(min=0), box.new_tensor([60, 40, 60, 40]))
            if box[2] <= box[0] or box[3] <= box[1]:
                continue
            if all(match(box[None], other[None]).overlap <= 0.7 for _, other in left):
                left.append((own[place].item(), box))
        kept += left
    kept = sorted(kept, key=lambda each: -each[0])[:15]
    found = propose(logits, deltas, anchors, size, is_training=True)
    torch.testing.assert_close(found, torch.stack([box for _, box in kept]))
    assert len(propose(logits, deltas, anchors, size, is_training=False)) < len(found) + 1
