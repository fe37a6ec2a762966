"""Relation distillation: alignment of heads and tokens, and the loss it composes."""

import pytest
import torch

from limbeck.errors import UserError
from limbeck.methods.options import RelationOptions
from limbeck.methods.relation import Relation
from limbeck.ops.relations import relation_loss
from limbeck.records import Batch, Features, Tap
from tests.fakes import FakeEncoder


def images():
    return torch.rand(2, 3, 8, 8)


def batch(images):
    return Batch(images, images, None, ("a", "b"), torch.arange(2))


def test_is_zero_when_student_and_teacher_are_one():
    encoder = FakeEncoder()
    method = Relation(RelationOptions(), encoder.facts, encoder.facts)
    x = images()
    losses = method(
        encoder(x, None, method.student_taps), encoder(x, None, method.teacher_taps), batch(x)
    )
    assert losses.total.item() == pytest.approx(0, abs=1e-6)  # float32


def test_is_the_plain_sum_of_qk_and_vv():
    student, teacher = FakeEncoder(seed=1), FakeEncoder(seed=2)
    method = Relation(RelationOptions(), student.facts, teacher.facts)
    x = images()
    s, t = student(x, None, method.student_taps), teacher(x, None, method.teacher_taps)
    (s_q, s_k, s_v), (t_q, t_k, t_v) = (list(f.taps.values()) for f in (s, t))
    losses = method(s, t, batch(x))
    qk, vv = relation_loss(s_q, s_k, t_q, t_k), relation_loss(s_v, s_v, t_v, t_v)
    torch.testing.assert_close(losses.total, qk + vv)
    torch.testing.assert_close(losses.parts["qk"], qk.detach())


def test_the_student_s_last_block_takes_the_head_count_of_the_teacher_s_block():
    student = FakeEncoder(embed_dim=24, depth=3, num_heads=3)
    teacher = FakeEncoder(embed_dim=32, depth=5, num_heads=4)
    teacher.set_num_heads(2, 8)
    method = Relation(RelationOptions(teacher_block=2), student.facts, teacher.facts)
    assert method.student_taps == tuple(Tap(kind, -1, 8) for kind in ("queries", "keys", "values"))
    assert method.teacher_taps == tuple(Tap(kind, 2, 8) for kind in ("queries", "keys", "values"))


def test_cls_token_takes_part_where_both_have_one():
    student, teacher = FakeEncoder(), FakeEncoder(seed=1)
    method = Relation(RelationOptions(), student.facts, teacher.facts)
    full = student(images(), None, method.student_taps)
    assert method._shared_tokens(full, method.student_taps)[0].shape[2] == 5  # CLS and 4 patches


@pytest.mark.parametrize(("prefix_student", "prefix_teacher"), [(1, 5), (0, 1), (1, 0), (2, 0)])
def test_registers_and_lone_cls_tokens_are_left_out(prefix_student, prefix_teacher):
    student = FakeEncoder(num_prefix_tokens=prefix_student)
    teacher = FakeEncoder(num_prefix_tokens=prefix_teacher, seed=1)
    method = Relation(RelationOptions(), student.facts, teacher.facts)
    x = images()
    s, t = student(x, None, method.student_taps), teacher(x, None, method.teacher_taps)
    has_cls = int(prefix_student > 0 and prefix_teacher > 0)
    for features, taps in ((s, method.student_taps), (t, method.teacher_taps)):
        q = features.taps[taps[0]]
        kept = method._shared_tokens(features, taps)[0]
        assert kept.shape[2] == 4 + has_cls
        torch.testing.assert_close(kept[:, :, has_cls:], q[:, :, features.num_prefix_tokens :])
        if has_cls:
            torch.testing.assert_close(kept[:, :, 0], q[:, :, 0])
    assert method(s, t, batch(x)).total.isfinite()


def test_a_block_that_the_teacher_has_not_is_named():
    facts = FakeEncoder(depth=2).facts
    with pytest.raises(UserError, match="has 2 blocks.*no block 2"):
        Relation(RelationOptions(teacher_block=2), facts, facts)


def test_needs_a_teacher():
    with pytest.raises(UserError, match="--teacher"):
        Relation(RelationOptions(), FakeEncoder().facts, None)


def test_features_are_all_it_sees():
    """The method works from tensors alone: no model is at hand."""
    q = torch.randn(1, 2, 5, 4)
    method = Relation(RelationOptions(), FakeEncoder().facts, FakeEncoder().facts)
    student = Features(None, 1, (2, 2), dict.fromkeys(method.student_taps, q))
    teacher = Features(None, 1, (2, 2), dict.fromkeys(method.teacher_taps, q))
    assert method(student, teacher, batch(images())).total.item() == pytest.approx(0, abs=1e-6)
