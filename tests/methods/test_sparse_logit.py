"""Sparse-logit distillation: its losses against the formula, live and stored, mixed, refusals."""

from dataclasses import replace

import pytest
import torch

from limbeck.data.options import CropOptions, PairMixOptions
from limbeck.errors import UserError
from limbeck.methods.options import SparseLogitOptions
from limbeck.methods.sparse_logit import SparseLogit
from limbeck.ops.soft_labels import top_k
from limbeck.records import Batch, Features, Tap
from tests.fakes import FakeEncoder

LOGITS = Tap("logits")
MIXED = PairMixOptions(mixup_alpha=0.8, cutmix_alpha=1.0)


def batch(num_images=5, labels=True, **changes):
    one = Batch(
        torch.rand(num_images, 3, 8, 8),
        torch.rand(num_images, 3, 8, 8),
        torch.arange(num_images) % 3 if labels else None,
        tuple("abcdefgh"[:num_images]),
        torch.arange(num_images),
    )
    return replace(one, **changes)


def method_of(**options):
    facts = FakeEncoder().facts
    return SparseLogit(SparseLogitOptions(**options), facts, facts)


def said(logits):
    return Features(None, 1, (2, 2), {LOGITS: logits})


def kept(logits, k, temperature):
    """Of one image: the K largest at temperature 1, the others alike, then the temperature."""
    p = logits.softmax(0)
    order = p.argsort(descending=True)
    p[order[k:]] = p[order[k:]].mean() if k < len(p) else 0
    powers = p ** (1 / temperature)
    return powers / powers.sum()


@pytest.mark.parametrize("k", [1, 2, 3, None])
@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("weight", [0.0, 0.3])
@pytest.mark.parametrize("is_mixed", [False, True])
def test_the_loss_is_the_formula_in_float64(k, temperature, weight, is_mixed):
    method = method_of(top_k=k, temperature=temperature, label_weight=weight)
    own, target = 2 * torch.randn(2, 5, 3, dtype=torch.float64)
    shares = torch.tensor([0.7, 0.7, 0.2, 0.2, 1.0]).double()
    one = batch(mix_shares=shares if is_mixed else None)
    expected = 0.0
    for image, partner in enumerate((1, 0, 3, 2, 4)):
        share = float(shares[image]) if is_mixed else 1.0
        y = share * kept(target[image], k or 3, temperature)
        y += (1 - share) * kept(target[partner], k or 3, temperature)
        soft = -(y * (own[image] / temperature).log_softmax(0)).sum() * temperature**2
        lp = own[image].log_softmax(0)
        label = -share * lp[image % 3] - (1 - share) * lp[partner % 3]
        expected += ((1 - weight) * soft + weight * label) / 5
    losses = method(said(own), said(target), one)
    torch.testing.assert_close(losses.total, expected)
    torch.testing.assert_close(sum(losses.parts.values()), losses.total)
    assert set(losses.parts) == ({"soft", "label"} if weight else {"soft"})


def test_stored_labels_do_for_logits():
    method, own, target = method_of(top_k=2), torch.randn(5, 3), torch.randn(5, 3)
    stored = Features(None, 1, (2, 2), soft_labels=top_k(target, 2))
    live = method(said(own), said(target), batch()).total
    assert torch.equal(method(said(own), stored, batch()).total, live)


def test_the_gradient_is_that_of_finite_differences():
    method, target = method_of(top_k=2, temperature=2.0, label_weight=0.2), torch.randn(4, 3)
    one = batch(4, mix_shares=torch.tensor([0.6, 0.6, 1.0, 1.0]).double())
    assert torch.autograd.gradcheck(
        lambda own: method(said(own), said(target.double()), one).total,
        torch.randn(4, 3, dtype=torch.float64, requires_grad=True),
    )


def test_it_is_least_at_the_teacher_itself():
    method, logits = method_of(temperature=2.0), torch.randn(5, 3, requires_grad=True)
    method(said(logits), said(logits.detach().clone()), batch()).total.backward()
    assert logits.grad.abs().max() < 1e-6


def test_the_teacher_sees_the_students_images_before_they_are_mixed():
    one = batch()
    assert method_of().prepare(one).teacher_images is one.images
    mixed = method_of(mix=MIXED).prepare(one)
    assert mixed.teacher_images is one.images
    assert not torch.equal(mixed.images[:4], one.images[:4])
    assert torch.equal(mixed.images[4], one.images[4]) and mixed.mix_shares[4] == 1
    # What a teacher is shown does not hang on the mixing: one store is for both.
    assert method_of().shown_to_teacher() == method_of(mix=MIXED).shown_to_teacher()


@pytest.mark.parametrize("size", [2, 4])
def test_the_loss_of_a_mixed_batch_is_the_mean_over_its_even_parts(size):
    """Pairs, their seeds and so the loss are the same in one batch or cut into smaller ones."""
    method, one = method_of(mix=MIXED, temperature=2.0, label_weight=0.3), batch(8)
    target = torch.randn(8, 3)

    def loss(rows):
        part = replace(
            one, images=one.images[rows], labels=one.labels[rows], keys=one.keys[rows],
            view_seeds=one.view_seeds[rows],
        )  # fmt: skip
        part = method.prepare(part)
        own = part.images.flatten(1)[:, :3]  # what a student says hangs on the mixing
        return method(said(own), said(target[rows]), part).total

    parts = [loss(slice(first, first + size)) for first in range(0, 8, size)]
    torch.testing.assert_close(torch.stack(parts).mean(), loss(slice(0, 8)))


def test_its_one_view_is_the_papers():
    (view,) = SparseLogitOptions().views(CropOptions(scale=(0.08, 1.0)))
    assert (view.rand_augment, view.erase_prob) == ("rand-m9-mstd0.5-inc1", 0.25)
    assert view.scale == (0.08, 1.0) and view.color_jitter == (0, 0, 0)
    (plain,) = SparseLogitOptions(rand_augment="", erase_prob=0.0).views(CropOptions())
    assert plain.rand_augment is None


def test_what_is_no_teacher_of_these_classes_is_refused():
    student = FakeEncoder().facts
    with pytest.raises(UserError, match="The teacher fake has no classifier; fine-tune it first"):
        SparseLogit(SparseLogitOptions(), student, replace(student, num_classes=0))
    with pytest.raises(UserError, match="knows 5 classes and the student learns 3"):
        SparseLogit(SparseLogitOptions(), student, replace(student, num_classes=5))


def test_labels_that_are_not_there_are_missed():
    logits = torch.randn(5, 3)
    assert not method_of().needs_labels and method_of(label_weight=0.1).needs_labels
    with pytest.raises(UserError, match=r"sparse_logit\.label_weight needs labelled images"):
        method_of(label_weight=0.1)(said(logits), said(logits), batch(labels=False))


def test_options_without_effect_or_out_of_range_are_refused():
    with pytest.raises(UserError, match="no effect without mixing"):
        SparseLogitOptions(mix=PairMixOptions(mix_prob=0.5))
    with pytest.raises(UserError, match="switch_prob is for mixup and cutmix together"):
        SparseLogitOptions(mix=PairMixOptions(mixup_alpha=1.0, switch_prob=0.1))
    for values in ({"top_k": 0}, {"temperature": 0.0}, {"label_weight": 1.0}):
        with pytest.raises(UserError, match=next(iter(values))):
            SparseLogitOptions(**values)
    with pytest.raises(UserError, match="rand_augment"):
        SparseLogitOptions(rand_augment="strong")
