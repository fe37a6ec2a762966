"""Stored class probabilities: planned, encoded, read again, and refused where they do not fit."""

from dataclasses import asdict, replace

import pytest
import torch

from limbeck.data.options import StoreOptions
from limbeck.errors import NotFiniteError, UserError
from limbeck.methods.options import RelationOptions, SparseLogitOptions
from limbeck.methods.relation import Relation
from limbeck.methods.soft_targets import LOGITS, ProbTargets
from limbeck.methods.sparse_logit import SparseLogit
from limbeck.methods.targets import plan_targets
from limbeck.methods.teacher import Teacher
from limbeck.models.encoder import EncoderFacts
from limbeck.ops.soft_labels import top_k
from limbeck.records import Features
from tests.fakes import FakeEncoder


def teacher_of(num_classes=3):
    encoder = FakeEncoder()
    encoder._facts["num_classes"] = num_classes
    encoder.head = torch.nn.Linear(8, max(1, num_classes))
    return Teacher(encoder, torch.device("cpu"), "fp32")


def method_of(teacher, **options):
    return SparseLogit(SparseLogitOptions(**options), teacher.facts, teacher.facts)


def plan(teacher, store=None, **options):
    return plan_targets(store or StoreOptions(), method_of(teacher, **options), teacher)


def said(logits):
    return Features(None, 1, (2, 2), {LOGITS: logits})


def test_what_was_encoded_is_read_again_by_who_knows_the_manifest_alone():
    teacher = teacher_of(50)
    targets = plan(teacher)
    assert targets.taps == (LOGITS,) and targets.weights == {}
    logits = 3 * torch.randn(4, 50)
    arrays = targets.encode(said(logits))
    (name,), (spec,) = arrays, targets.arrays.values()
    assert arrays[name].shape == (4, *spec.shape) and spec.dtype == "uint8"
    facts = EncoderFacts.from_plain(asdict(teacher.facts))
    read = ProbTargets.from_store(targets.params, facts, {}).decode(arrays, (LOGITS,)).soft_labels
    labels = top_k(logits, 10)
    assert torch.equal(read.classes, labels.classes) and read.num_classes == 50
    torch.testing.assert_close(read.probs, labels.probs, rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(read.rest, labels.rest)


@pytest.mark.parametrize(
    ("num_classes", "store", "own", "kept"),
    [
        (3, None, None, 3),
        (1000, None, None, 10),
        (1001, None, None, 100),
        (1000, 7, None, 7),
        (1000, None, 7, 7),
        (1000, 7, 7, 7),
        (5, 7, None, 5),
    ],
)
def test_how_many_are_kept(num_classes, store, own, kept):
    targets = plan(teacher_of(num_classes), StoreOptions(top_k=store), top_k=own)
    assert targets.params["top_k"] == kept
    assert targets.params["num_classes"] == num_classes


def test_what_can_not_be_stored_is_refused():
    teacher = teacher_of()
    with pytest.raises(UserError, match=r"store\.top_k is 2 and the method's top_k 1; leave one"):
        plan(teacher, StoreOptions(top_k=2), top_k=1)
    without = teacher_of(0)
    with pytest.raises(UserError, match="The teacher fake has no classifier; fine-tune it first"):
        ProbTargets.plan(StoreOptions(), method_of(teacher), without)
    with pytest.raises(UserError, match="token_dtype has no effect for SparseLogit"):
        plan(teacher, StoreOptions(token_dtype="bf16"))
    with pytest.raises(NotFiniteError, match="logits are not finite"):
        plan(teacher).encode(said(torch.tensor([[0.0, float("nan"), 1.0]])))
    teacher.encoder.train()
    with pytest.raises(UserError, match=r"drop path says something else each time"):
        plan(teacher)


def test_who_can_not_learn_from_it_is_told():
    teacher = teacher_of(20)
    targets = plan(teacher)
    targets.check(method_of(teacher))
    targets.check(method_of(teacher, top_k=10))
    with pytest.raises(UserError, match="keeps 10 class probabilities of each view, not 5"):
        targets.check(method_of(teacher, top_k=5))
    with pytest.raises(UserError, match="from which Relation can't learn"):
        targets.check(Relation(RelationOptions(), teacher.facts, teacher.facts))
    few = plan(teacher_of(3))
    few.check(replaced(method_of(teacher_of(3)), top_k=100))  # all there are


def test_another_image_shown_to_the_teacher_is_refused():
    class Undisturbed(SparseLogit):
        def prepare(self, batch):
            return batch

        def shown_to_teacher(self):
            return {}

    class Silent(Undisturbed):
        def shown_to_teacher(self):
            return None

    teacher = teacher_of()
    own, silent = (
        kind(SparseLogitOptions(), teacher.facts, teacher.facts) for kind in (Undisturbed, Silent)
    )
    with pytest.raises(UserError, match="Undisturbed shows a teacher something else of a view"):
        plan(teacher).check(own)
    with pytest.raises(UserError, match="Silent does not say what it shows the teacher"):
        ProbTargets.plan(StoreOptions(), silent, teacher)


def replaced(method, **options):
    method.top_k = replace(SparseLogitOptions(), **options).top_k
    return method
