"""DINO against a slow reference in float64; its center, its frozen layer, its small crops."""

import pytest
import torch

from limbeck.errors import UserError
from limbeck.methods.dino import Dino, Head
from limbeck.methods.options import DinoOptions
from limbeck.records import Batch, Features
from tests.fakes import FakeEncoder

SHAPE = {"hidden_dim": 6, "bottleneck_dim": 4, "out_dim": 5}
BATCH = Batch(torch.rand(6, 3, 8, 8), torch.rand(6, 3, 8, 8), None, tuple("abc"), torch.arange(6))


def build(**options):
    return Dino(DinoOptions(**SHAPE, **options), FakeEncoder().facts, None).double()


def features(seed, rows=6, local=None):
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randn(rows, 5, 8, dtype=torch.float64, generator=generator)
    return Features(tokens, 1, (2, 2), local=local)


def outputs(head, x):
    x = head.mlp(x)
    rows = head.last_layer / head.last_layer.norm(dim=1, keepdim=True)
    return x / x.norm(dim=1, keepdim=True) @ rows.T


@pytest.mark.parametrize("num_local", [0, 2])
def test_the_loss_is_the_paper_s(num_local):
    method = build(num_local_crops=num_local, local_img_size=4) if num_local else build()
    method.center.copy_(torch.randn(5))
    local = features(3, rows=3 * num_local) if num_local else None
    student, teacher = features(1, local=local), features(2)
    views = [student.tokens[view::2, 0] for view in (0, 1)]
    views += [local.tokens[view::num_local, 0] for view in range(num_local)]
    total, pairs = 0.0, 0
    for t in (0, 1):
        said = outputs(method.teacher_head.network, teacher.tokens[t::2, 0])
        p = ((said - method.center) / 0.04).softmax(1)
        for s, view in enumerate(views):
            if s != t:
                q = (outputs(method.head, view) / 0.1).softmax(1)
                total -= sum((p[i] * q[i].log()).sum().item() for i in range(3)) / 3
                pairs += 1
    assert pairs == 2 * (1 + num_local)
    losses = method(student, teacher, BATCH)
    assert losses.total.item() == pytest.approx(total / pairs, rel=1e-10)


def test_the_center_is_a_moving_average_over_the_batches_of_a_step():
    method = build(center_momentum=0.9)
    means = []
    for seed in (1, 2):
        teacher = features(seed)
        method(features(0), teacher, BATCH)
        means.append(outputs(method.teacher_head.network, teacher.tokens[:, 0]).mean(0).detach())
    assert not method.center.any()  # within a step it stays
    method.after_step(1, 10)
    torch.testing.assert_close(method.center, 0.1 * (means[0] + means[1]) / 2)
    method(features(0), features(1), BATCH)
    expected = 0.9 * method.center + 0.1 * means[0]
    method.after_step(2, 10)
    torch.testing.assert_close(method.center, expected)


def test_the_last_layer_is_frozen_at_first():
    method = build(last_layer_frozen=0.3)
    for step in range(4):
        method.zero_grad()
        method(features(1), features(2), BATCH).total.backward()
        assert bool(method.head.last_layer.grad.any()) == (step >= 3)
        assert method.head.mlp[0].weight.grad.any()
        method.after_step(step + 1, 10)


def test_what_a_continued_run_needs_is_saved():
    names = build().state_dict()
    assert {"center", "is_frozen", "teacher_head.network.last_layer"} <= names.keys()


@pytest.mark.parametrize("local_img_size", [6, 8])
def test_small_crops_must_be_smaller_and_of_whole_patches(local_img_size):
    with pytest.raises(UserError, match="a multiple of the patch size, 4, and less than"):
        build(num_local_crops=2, local_img_size=local_img_size)


def test_options_of_small_crops_without_them_are_refused():
    with pytest.raises(UserError, match="no effect without dino.num_local_crops"):
        DinoOptions(local_img_size=32)


def test_the_head_starts_small():
    head = Head(embed_dim=64, hidden_dim=64, bottleneck_dim=64, out_dim=64)
    layers = [layer for layer in head.mlp if isinstance(layer, torch.nn.Linear)]
    for weight in (head.last_layer, *(layer.weight for layer in layers)):
        assert weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert not any(layer.bias.any() for layer in layers)
