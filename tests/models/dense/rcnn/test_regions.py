"""Heads of regions: golden losses and targets, levels, sizes."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torchvision.ops import roi_align

from limbeck.models.dense.rcnn.regions import (
    BoxHead,
    MaskHead,
    alone,
    assign,
    box_losses,
    joined,
    level_of,
    mask_loss,
    mask_targets,
    pool,
    sample,
)
from limbeck.records import Objects
from tests.models.dense.fills import sin_ramp

PROPOSALS = torch.tensor(
    [[8.0, 8, 40, 40], [20, 12, 60, 32], [0, 0, 16, 16], [30, 30, 60, 60]], dtype=torch.float64
)
TRUTH = torch.tensor([[8.0, 8, 40, 48], [20, 10, 60, 30]])


def objects(boxes=TRUTH, classes=(1, 0), masks=None):
    return Objects(boxes, torch.tensor(classes, dtype=torch.int64), (64, 64), masks)


def count(module):
    return sum(p.numel() for p in module.parameters())


def test_golden_levels_and_pooling():  # row 14
    sides = torch.tensor([16.0, 111, 112, 223, 224, 447, 448, 900])
    boxes = torch.stack((sides * 0, sides * 0, sides, sides), 1)
    assert level_of(boxes, 4).tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    values = torch.arange(64.0).view(1, 1, 8, 8)
    levels = [values] + [torch.zeros(1, 1, 4, 4)] * 3
    box = torch.tensor([[4.0, 4, 20, 20]])
    own = pool(levels, (4, 8, 16, 32), alone(box), 2)
    assert own.flatten().tolist() == [13.5, 15.5, 29.5, 31.5]
    other = roi_align(values, [box], 2, 0.25, 0, aligned=False)
    assert other.flatten().tolist() == [18, 20, 34, 36]


def test_pooling_keeps_the_order():
    levels = [torch.full((2, 1, 64 >> k, 64 >> k), float(k)) for k in range(4)]
    for level in levels:
        level[1] += 10
    boxes = torch.tensor([[0.0, 0, 250, 250], [0, 0, 20, 20], [0, 0, 120, 120]])
    pooled = pool(levels, (4, 8, 16, 32), alone(boxes)._replace(images=torch.tensor([1, 0, 1])), 2)
    assert pooled[:, 0, 0, 0].tolist() == [12, 0, 11]


def test_golden_losses():  # row 16, of float32
    regions = assign(PROPOSALS, 0, objects(), 3, 0.5)
    assert regions.classes.tolist() == [1, 0, 3, 3] and regions.objects[:2].tolist() == [0, 1]
    logits, deltas = sin_ramp(4, 4), sin_ramp(4, 3, 4)
    of_classes, of_boxes = box_losses(logits, deltas, regions, (10, 5))
    assert of_classes.item() == pytest.approx(1.4065245390, rel=3e-7)
    assert of_boxes.item() == pytest.approx(1.7686694860, rel=3e-7)
    of_classes, of_boxes = box_losses(logits * 0, deltas * 0, regions, (10, 5))
    assert of_classes.item() == pytest.approx(1.3862943611, rel=3e-7)
    assert of_boxes.item() == pytest.approx(0.8414294720, rel=3e-7)


def test_class_weights_and_agnostic_boxes():
    regions = assign(PROPOSALS, 0, objects(), 3, 0.5)
    logits, deltas = sin_ramp(4, 4), sin_ramp(4, 1, 4)
    one_each = nn.functional.cross_entropy(logits, regions.classes, reduction="none")
    found, of_boxes = box_losses(logits, deltas, regions, (10, 5), torch.tensor([3.0, 2, 1]))
    expected = (2 * one_each[0] + 3 * one_each[1] + one_each[2] + one_each[3]) / 4
    assert found.item() == pytest.approx(expected.item())
    same, _ = deltas.expand(4, 3, 4), None
    assert of_boxes.item() == pytest.approx(box_losses(logits, same, regions, (10, 5))[1].item())


def test_sampling():
    boxes = torch.tensor([[8.0, 8, 40, 48]]).repeat(300, 1)
    boxes[200:] += 100
    regions = assign(boxes, 0, objects(), 3, 0.5)
    drawn = sample(regions, 3, torch.Generator().manual_seed(0), 100)
    assert (drawn.classes < 3).sum() == 25 and len(drawn.boxes) == 100
    again = sample(regions, 3, torch.Generator().manual_seed(0), 100)
    assert torch.equal(drawn.boxes, again.boxes)
    few = sample(regions.at(regions.classes < 3), 3, torch.Generator(), 16)
    assert len(few.boxes) == 4  # the rest would be background, of which there is none


def test_golden_mask_target():  # row 17, the route of bitmaps
    masks = torch.zeros(2, 56, 56, dtype=torch.bool)
    masks[1, 10:30, 5:45] = True
    box = torch.tensor([[0.0, 0, 56, 56]])
    (found,) = mask_targets(masks, box, torch.tensor([1]), 28)
    rows, columns = found.nonzero(as_tuple=True)
    assert found.sum() == 210
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (5, 14, 2, 22)


def test_targets_of_many_objects_are_their_own():
    masks = torch.zeros(40, 32, 32, dtype=torch.bool)
    for index in range(40):
        masks[index, :, : index % 20] = True
    which = torch.arange(40).flip(0)
    found = mask_targets(masks, torch.tensor([[0.0, 0, 32, 32]]).repeat(40, 1), which, 32)
    assert torch.equal(found, masks[which])


def test_mask_loss_is_of_objects_with_masks():
    masks = torch.zeros(2, 64, 64, dtype=torch.bool)
    masks[0, 8:48, 8:24] = True
    masks[1, 10:20, 30:60] = True
    seen = [objects(masks=masks), objects()]
    regions = joined(assign(PROPOSALS[:2], k, each, 3, 0.5) for k, each in enumerate(seen))
    logits = torch.zeros(4, 28, 28, dtype=torch.float64)
    logits[2:] = 100  # of the image without
    wanted = mask_targets(masks, regions.boxes[:2], regions.objects[:2], 28)
    logits[:2][wanted] = -1
    expected = (wanted.sum() * 1.3132616875 + (~wanted).sum() * 0.6931471806) / wanted.numel()
    assert mask_loss(logits, regions, seen).item() == pytest.approx(expected.item())
    assert mask_loss(logits[:0], regions.at(slice(0)), seen) == 0


def test_what_has_a_box_alone_teaches_no_mask():
    masks = torch.zeros(2, 64, 64, dtype=torch.bool)
    masks[1, 10:20, 30:60] = True
    regions = assign(PROPOSALS[:2], 0, objects(), 3, 0.5)
    logits = torch.zeros(2, 28, 28, dtype=torch.float64)
    logits[0] = 100  # of the first
    logits[1] = 1 - 2 * mask_targets(masks, regions.boxes, regions.objects, 28)[1].double()
    loss = mask_loss(logits, regions, [objects(masks=masks)])
    assert loss.item() == pytest.approx(1.3132616875)


def test_golden_mask_target_of_outlines():  # row 17, the route of polygons
    outline = np.array([[5.0, 10], [45, 10], [45, 30], [5, 30]])
    masks = torch.zeros(1, 56, 56, dtype=torch.bool)
    masks[0, 10:30, 5:45] = True
    box = torch.tensor([[0.0, 0, 56, 56]])
    truth = Objects(box, torch.tensor([1]), (56, 56), masks, ([outline],))
    logits = torch.full((1, 28, 28), -1.0)
    logits[0, 5:15, 3:23] = 1.0  # its 200 places
    regions = assign(box, 0, truth, 3, 0.5)
    assert mask_loss(logits, regions, [truth]).item() == pytest.approx(0.3132616875)
    other = replace(truth, outlines=(None,))
    assert mask_loss(logits, regions, [other]).item() == pytest.approx(0.3132616875 + 10 / 784)


def test_published_sizes_and_starts():  # section 2.6
    with torch.device("meta"):
        plain, masks = BoxHead(256, 80, is_agnostic=False), MaskHead(256, 80)
        cascade = [BoxHead(256, 80, is_agnostic=True) for _ in range(3)]
    assert count(plain) == 15207424 + 411025 and count(masks) == 2644304
    assert sum(map(count, cascade)) == 45883647
    torch.manual_seed(0)
    head = BoxHead(32, 3, is_agnostic=False)
    assert head.convs[0].weight.std().item() == pytest.approx((2 / (32 * 9)) ** 0.5, rel=0.05)
    assert head.fc.weight.abs().max().item() == pytest.approx((3 / (32 * 49)) ** 0.5, rel=0.01)
    assert head.classes.weight.std().item() == pytest.approx(0.01, rel=0.2)
    assert head.deltas.weight.std().item() == pytest.approx(0.001, rel=0.2)
    assert (head.convs[0].norm.weight == 1).all() and not head.fc.bias.any()


def test_heads_answer_for_their_classes():
    head = MaskHead(8, 3)
    x = torch.rand(2, 8, 14, 14)
    both, first = head(x, torch.tensor([2, 1])), head(x, torch.tensor([0, 1]))
    assert both.shape == (2, 28, 28)
    assert torch.equal(both[1], first[1]) and not torch.equal(both[0], first[0])
    logits, deltas = BoxHead(8, 3, is_agnostic=False)(torch.rand(2, 8, 7, 7))
    assert logits.shape == (2, 4) and deltas.shape == (2, 3, 4)


def test_an_image_without_objects():
    regions = assign(PROPOSALS, 0, objects(torch.zeros(0, 4), ()), 3, 0.5)
    assert regions.classes.tolist() == [3] * 4
    logits = torch.zeros(4, 4, dtype=torch.float64, requires_grad=True)
    of_classes, of_boxes = box_losses(logits, sin_ramp(4, 3, 4), regions, (10, 5))
    of_classes.backward()
    assert of_boxes == 0 and (logits.grad[:, :3] > 0).all() and (logits.grad[:, 3] < 0).all()
