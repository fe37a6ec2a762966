"""Relation distillation between any two head counts: what divides the width works and travels on.

The released code of TinyMIM (arXiv 2301.01296) has a table of head counts, with which three pairs
of networks run.
"""

import itertools

import pytest
import torch

from limbeck.errors import UserError
from limbeck.methods.distiller import Distiller
from limbeck.methods.options import RelationOptions
from limbeck.methods.relation import Relation
from limbeck.methods.teacher import Teacher
from limbeck.models.build import build_student
from limbeck.models.finished import load_student, save_student
from limbeck.models.options import StudentOptions
from limbeck.recipes.run.networks import fit_heads
from limbeck.records import Batch

CPU = torch.device("cpu")
COUNTS = (3, 6, 12, 16)
PAIRS = list(itertools.product(COUNTS, COUNTS))


def vit(embed_dim, num_heads, seed=0):
    """Two blocks on 16 pixels: four patches and the CLS token."""
    shape = StudentOptions(
        name="vit_tiny", img_size=16, patch_size=8, depth=2, embed_dim=embed_dim,
        num_heads=num_heads,
    )  # fmt: skip
    return build_student(shape, seed=seed)


def pair(student, teacher):
    """The distiller of a student that got its head count from the teacher's last block."""
    method = Relation(RelationOptions(), student.facts, teacher.facts)
    fit_heads(student, method)
    return Distiller(student, method, Teacher(teacher, CPU, "fp32"))


def batch():
    images = torch.rand(2, 3, 16, 16)
    return Batch(images, images, None, ("a", "b"), torch.arange(2))


@pytest.mark.parametrize(("of_student", "of_teacher"), PAIRS)
def test_every_pair_that_divides_the_width(of_student, of_teacher, tmp_path):
    student = vit(48, of_student)
    distiller = pair(student, vit(96, of_teacher, seed=1))
    losses = distiller(batch())
    assert losses.total.isfinite()
    assert losses.total > 0
    losses.total.backward()
    qkv = student.model.blocks[-1].attn.qkv.weight
    assert qkv.grad.isfinite().all()
    queries, _, values = qkv.grad.chunk(3)
    assert queries.any()
    assert values.any()
    torch.optim.SGD([qkv], lr=0.1).step()

    assert student.facts.num_heads == (of_student, of_teacher)
    save_student(student, tmp_path, {})
    loaded = load_student(tmp_path)
    assert loaded.facts.num_heads == (of_student, of_teacher)

    # As a teacher it gives its relations, and its head count, as it was trained to.
    next_student = vit(48, 3, seed=2)
    of_next = pair(next_student, loaded)
    assert next_student.facts.num_heads == (3, of_teacher)
    x = batch().images
    taps = of_next.method.teacher_taps
    given = of_next.teacher(x, None, taps).taps
    with torch.no_grad():
        trained = student.eval()(x, None, taps).taps
    for tap in taps:
        assert given[tap].shape == (2, of_teacher, 5, 48 // of_teacher)
        torch.testing.assert_close(given[tap], trained[tap], atol=0, rtol=0)


@pytest.mark.parametrize("embed_dim", [24, 36])
@pytest.mark.parametrize("of_teacher", COUNTS)
def test_a_width_that_does_not_divide_is_told(embed_dim, of_teacher):
    student = vit(embed_dim, 3)
    teacher = vit(48, of_teacher, seed=1)
    if embed_dim % of_teacher == 0:
        assert pair(student, teacher)(batch()).total.isfinite()
        assert student.facts.num_heads == (3, of_teacher)
        return
    message = f"is {embed_dim} wide, which does not divide into {of_teacher} heads; choose"
    with pytest.raises(UserError, match=message):
        pair(student, teacher)
    assert student.facts.num_heads == (3, 3)
