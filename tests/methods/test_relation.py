"""Relation distillation: alignment of heads and tokens, and the loss it composes."""

import itertools
import math

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


@pytest.mark.parametrize(
    ("relations", "kinds"),
    [(("qq",), "q"), (("vv", "kk"), "kv"), (("qk",), "qk"), (("qq", "kk", "vv"), "qkv")],
)
def test_taps_only_what_the_relations_need(relations, kinds):
    facts = FakeEncoder().facts
    method = Relation(RelationOptions(relations=relations), facts, facts)
    names = {"q": "queries", "k": "keys", "v": "values"}
    assert [tap.kind for tap in method.teacher_taps] == [names[letter] for letter in kinds]


def loop_loss(a, b, target_a, target_b, softmax, temperature):
    """One relation's loss of (B, nh, N, hd) in float64, with plain loops from the formula."""
    B, heads, N, _ = a.shape
    total = 0.0
    for sample, head, query in itertools.product(range(B), range(heads), range(N)):
        rows = []
        for x, y in ((a, b), (target_a, target_b)):
            x, y = x[sample, head].tolist(), y[sample, head].tolist()
            scale = 1 / (math.sqrt(len(x[0])) * temperature)
            rows.append([scale * sum(map(float.__mul__, x[query], key)) for key in y])
        if softmax:
            own, target = ([math.exp(s) / sum(map(math.exp, row)) for s in row] for row in rows)
            total += sum(t * math.log(t / s) for s, t in zip(own, target, strict=True))
        else:
            total += sum((s - t) ** 2 for s, t in zip(*rows, strict=True)) / N
    return total / (B * heads * N)


@pytest.mark.parametrize("softmax", [True, False])
@pytest.mark.parametrize("relations", [("qk", "vv"), ("qq", "kk", "vv"), ("qk",), ("vv",)])
def test_every_arm_equals_a_loop_written_from_the_formula(relations, softmax):
    options = RelationOptions(
        relations=relations, softmax=softmax, temperature=1.7 if softmax else 1.0
    )
    student, teacher = FakeEncoder(embed_dim=8), FakeEncoder(embed_dim=12, seed=1)
    method = Relation(options, student.facts, teacher.facts)
    sides = []
    for taps, dim in ((method.student_taps, 4), (method.teacher_taps, 6)):
        drawn = {tap: torch.randn(2, 2, 5, dim, dtype=torch.float64) for tap in taps}
        sides.append(Features(None, 1, (2, 2), drawn))
    losses = method(*sides, batch(images()))
    letters = {"q": "queries", "k": "keys", "v": "values"}
    for relation in relations:
        values = [
            next(value for tap, value in side.taps.items() if tap.kind == letters[letter])
            for side in sides
            for letter in relation
        ]
        expected = loop_loss(*values, softmax, options.temperature)
        assert losses.parts[relation].item() == pytest.approx(expected, rel=1e-10)
    assert losses.total.item() == pytest.approx(sum(map(float, losses.parts.values())), rel=1e-12)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"relations": ()}, "at least one"),
        ({"relations": ("qk", "qk")}, "at most once"),
        ({"softmax": False, "temperature": 2.0}, "no effect without softmax"),
        ({"relations": ("kq",)}, "qq"),
    ],
)
def test_options_without_effect_or_sense_are_refused(values, message):
    with pytest.raises(UserError, match=message):
        RelationOptions(**values)


def test_features_are_all_it_sees():
    """The method works from tensors alone: no model is at hand."""
    q = torch.randn(1, 2, 5, 4)
    method = Relation(RelationOptions(), FakeEncoder().facts, FakeEncoder().facts)
    student = Features(None, 1, (2, 2), dict.fromkeys(method.student_taps, q))
    teacher = Features(None, 1, (2, 2), dict.fromkeys(method.teacher_taps, q))
    assert method(student, teacher, batch(images())).total.item() == pytest.approx(0, abs=1e-6)
