"""Segmentation: golden losses, what is ignored, class weights, the auxiliary head."""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from limbeck.engine.distributed import freeze_untrained
from limbeck.errors import UserError
from limbeck.models.dense import upernet
from limbeck.models.dense.neck import PlainNeck
from limbeck.models.dense.semantic_fpn import SemanticFpnHead
from limbeck.models.dense.upernet import AuxHead, UperHead
from limbeck.records import IGNORE, Batch, Features, Tap
from limbeck.tasks.segmentation import Segmentation
from tests.fakes import FakeEncoder
from tests.models.dense.fills import cos_fill, labels, taps
from tests.models.dense.test_segmenter import small

LOGITS, AUX = Tap("logits"), Tap("aux_logits")
DIMS = (8,) * 4


class Maps(FakeEncoder):
    def offered_taps(self):
        return ("logits", "aux_logits")


def batch_of(maps):
    images = torch.zeros(len(maps), 3, 8, 8)
    keys = tuple(map(str, range(len(maps))))
    return Batch(images, images, maps, keys, torch.arange(len(maps)))


def loss_of(found, maps, **options):
    task = Segmentation(Maps(), **options)
    return task.loss(Features(None, 0, (2, 2), found), batch_of(maps))


def test_golden_losses_of_upernet(monkeypatch):
    monkeypatch.setattr(upernet, "AUX_WIDTH", 8)
    maps = cos_fill(PlainNeck("same", DIMS, "batch"))(taps())
    found = {
        LOGITS: cos_fill(UperHead(DIMS, 8, 3, "batch"))(maps),
        AUX: cos_fill(AuxHead(8, 3, "batch"))(maps[2]),
    }
    published = loss_of(found, labels(), mean="all")
    # abs: the loss is computed in float32
    assert published.parts["pixels"].item() == pytest.approx(1.0606845186, abs=1e-6)
    assert published.parts["aux"].item() == pytest.approx(0.4 * 0.8239609529, abs=1e-6)
    assert published.total.item() == pytest.approx(1.3902688998, abs=1e-6)
    valid = loss_of(found, labels())
    assert valid.parts["pixels"].item() == pytest.approx(1.4142460248, abs=1e-6)
    assert loss_of(found, labels(), aux_weight=0).parts.keys() == {"pixels"}


def test_golden_losses_of_semantic_fpn():
    maps = cos_fill(PlainNeck("narrow", DIMS, "batch"))(taps())
    found = {LOGITS: cos_fill(SemanticFpnHead((2,) * 4, 8, 3, "batch"))(maps)}
    for mean, expected in (("all", 0.8560289102), ("valid", 1.1413718803)):
        loss = loss_of(found, labels(), mean=mean, aux_weight=0)
        assert loss.total.item() == pytest.approx(expected, abs=1e-6)


def test_class_weights_are_those_of_cross_entropy():
    logits, weights = torch.randn(2, 3, 8, 8), (0.5, 2.0, 1.0)
    maps = torch.randint(0, 3, (2, 8, 8))
    maps[:, :3] = IGNORE
    found = loss_of({LOGITS: logits}, maps, class_weights=weights, aux_weight=0)
    expected = F.cross_entropy(logits, maps, torch.tensor(weights), ignore_index=IGNORE)
    torch.testing.assert_close(found.total, expected)


@pytest.mark.parametrize("weights", [None, (1.0, 2.0, 3.0)])
def test_a_batch_without_a_label_costs_nothing(weights):
    logits = torch.randn(1, 3, 4, 4, requires_grad=True)
    nothing = torch.full((1, 8, 8), IGNORE)
    loss = loss_of({LOGITS: logits}, nothing, class_weights=weights, aux_weight=0).total
    loss.backward()
    assert loss.item() == 0 and not logits.grad.any()


def test_ignored_pixels_have_no_gradient():
    logits = torch.randn(1, 3, 4, 4, requires_grad=True)
    maps = torch.zeros(1, 4, 4, dtype=torch.long)
    maps[0, 1] = IGNORE
    loss_of({LOGITS: logits}, maps, aux_weight=0).total.backward()
    assert not logits.grad[0, :, 1].any() and logits.grad[0, :, 0].any()


def test_a_real_one_learns_and_nothing_of_it_is_left_out():
    segmenter = small(head="upernet").train()
    task = Segmentation(segmenter)
    images = torch.rand(4, 3, 32, 32)
    batch = replace(batch_of((images.mean(1) * 5).long()), images=images, teacher_images=images)
    assert freeze_untrained(task, batch) == []
    optimizer = torch.optim.AdamW(task.parameters(), 1e-2)
    losses = []
    for _ in range(20):
        loss = task(batch).total
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0], losses
    scores = task.eval().score(task.predict(images), batch.labels)
    assert 0 < scores["aacc"] <= 1


def test_score_counts_valid_pixels():
    logits = torch.eye(3)[torch.tensor([[[0, 1], [2, 0]]])].movedim(-1, 1)
    maps = torch.tensor([[[0, 1], [0, IGNORE]]])
    assert Segmentation(Maps()).score(logits, maps) == {"aacc": pytest.approx(2 / 3)}


def test_as_many_weights_as_classes():
    with pytest.raises(UserError, match="There are 2 class weights for 3 classes; give one each"):
        Segmentation(Maps(), class_weights=(1.0, 2.0))
