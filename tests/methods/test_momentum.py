"""What MoCo-v3 and DINO share: whose vector stands for a view, the copies, a refused teacher."""

import pytest
import torch

from limbeck.methods.distiller import Distiller
from limbeck.methods.moco_v3 import MocoV3
from limbeck.methods.options import MocoV3Options
from limbeck.ops.schedules import cosine_momentum
from limbeck.records import Batch, Features
from tests.fakes import FakeEncoder

OPTIONS = MocoV3Options(hidden_dim=6, out_dim=4, momentum=0.5)


def test_a_view_is_its_cls_token_or_the_mean_of_its_tokens():
    tokens = torch.randn(4, 5, 8)
    with_cls = MocoV3(OPTIONS, FakeEncoder().facts, None)
    first, second = with_cls.split_views(Features(tokens, 1, (2, 2)), 2)
    torch.testing.assert_close(first, tokens[[0, 2], 0])
    torch.testing.assert_close(second, tokens[[1, 3], 0])
    without = MocoV3(OPTIONS, FakeEncoder(num_prefix_tokens=0).facts, None)
    first, _ = without.split_views(Features(tokens[:, 1:], 0, (2, 2)), 2)
    torch.testing.assert_close(first, tokens[[0, 2], 1:].mean(1))


def test_encoder_and_head_follow_along_half_a_cosine():
    student = FakeEncoder()
    distiller = Distiller(student, MocoV3(OPTIONS, student.facts, None), None)
    before = distiller.follower.network.weight.clone()
    head_before = distiller.method.teacher_head.network[0].weight.clone()
    with torch.no_grad():
        student.weight.add_(1.0)
        distiller.method.head[0].weight.add_(1.0)
    distiller.after_step(6, 10)
    moved = 1 - cosine_momentum(5, 10, 0.5)
    assert moved == pytest.approx(0.25)
    torch.testing.assert_close(distiller.follower.network.weight, before + moved)
    head = distiller.method.teacher_head.network[0].weight
    torch.testing.assert_close(head, head_before + moved)


def test_teacher_and_student_see_the_same_views():
    student = FakeEncoder()
    distiller = Distiller(student, MocoV3(OPTIONS, student.facts, None), None)
    seen = {}
    distiller.follower.register_forward_hook(lambda module, args, out: seen.update(args=args))
    images = torch.rand(4, 3, 8, 8)
    distiller(Batch(images, images, None, ("a", "b"), torch.arange(4)))
    assert seen["args"][0] is images
