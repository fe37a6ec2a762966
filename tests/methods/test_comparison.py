"""What methods that compare share under mask tokens; the rest is in ``test_transfer.py``."""

from dataclasses import replace

import pytest
import torch

from limbeck.errors import UserError
from limbeck.methods.attention_map import AttentionMap
from limbeck.methods.comparison import Comparison
from limbeck.methods.distiller import Distiller
from limbeck.methods.options import AttentionMapOptions, RegressionOptions, RelationOptions
from limbeck.methods.relation import Relation
from limbeck.methods.teacher import Teacher
from limbeck.records import Batch, Tap
from tests.fakes import FakeEncoder

REPLACED = {"mask_ratio": 0.5, "masking": "mask-token"}


class Watched(FakeEncoder):
    """Remembers what it was shown of the images."""

    def forward(self, images, ids_keep=None, taps=(), mask_token=None):
        self.shown = ids_keep, mask_token
        return super().forward(images, ids_keep, taps, mask_token)


def distiller(student, teacher, **options):
    section = RegressionOptions(mask_patch_size=4, weight=0.5)
    options = RelationOptions(regression=section, **REPLACED | options)
    method = Relation(options, student.facts, teacher.facts)
    return Distiller(student, method, Teacher(teacher, torch.device("cpu"), "fp32"))


def batch():
    images = torch.rand(3, 3, 8, 8)
    return Batch(images, images, None, tuple("abc"), torch.arange(3))


def test_a_comparison_is_abstract():
    with pytest.raises(TypeError, match="abstract"):
        Comparison(RelationOptions(), FakeEncoder().facts, FakeEncoder().facts)


def test_a_teacher_with_its_own_mask_token_sees_the_same_mask():
    student, teacher = Watched(), Watched(seed=1)
    token = torch.randn(1, 1, 8)
    teacher.mask_token = token
    distiller(student, teacher)(batch())
    (own_ids, own_token), (ids, given) = student.shown, teacher.shown
    assert torch.equal(own_ids, ids) and own_ids.shape == (3, 2)
    assert torch.equal(given, token) and not torch.equal(own_token, token)


@pytest.mark.parametrize("has_token", [False, True])
def test_another_teacher_sees_all(has_token):
    student, teacher = Watched(), Watched(seed=1)
    if has_token:
        teacher.mask_token = torch.randn(1, 1, 8)
    sees = {"teacher_sees": "all"} if has_token else {}
    losses = distiller(student, teacher, **sees)(batch())
    assert teacher.shown[0] is None
    assert student.shown[0] is not None
    assert losses.total.isfinite()


def test_all_tokens_are_compared():
    student, teacher = FakeEncoder(), FakeEncoder(seed=1)
    method = distiller(student, teacher, teacher_sees="all").method
    one = method.prepare(batch())
    taps = method.student_taps
    features = student(one.images, one.ids_keep, taps, one.mask_token)
    assert method._shared_tokens(features, taps[0]).shape[2] == 5


def test_the_mask_token_learns_and_vanishes_with_the_method():
    module = distiller(FakeEncoder(), FakeEncoder(seed=1))
    module(batch()).total.backward()
    assert module.method.masking.mask_token.grad.any()
    assert not any("mask_token" in name for name in module.student.state_dict())


def test_units_of_patches_can_t_be_picked_from_a_whole_image():
    facts = replace(FakeEncoder().facts, patch_size=2, block_strides=(), mask_unit=4)
    options = RelationOptions(mask_ratio=0.5, teacher_sees="all")
    with pytest.raises(UserError, match="in units of 4 pixels"):
        Relation(options, facts, facts)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"masking": "mask-token"}, "masking has no effect with mask_ratio 0"),
        ({"regression": {"weight": 1.0}}, "regression have no effect with masking drop"),
        (REPLACED | {"reconstruction": {"weight": 1.0}}, "reconstruction have no effect"),
        (REPLACED | {"regression": {"decoder_depth": 1}}, "effect with regression.weight 0"),
        (REPLACED | {"regression": {"weight": 1, "decoder_embed_dim": 8}}, "with decoder_depth 0"),
    ],
)
def test_options_without_effect_are_refused(values, message):
    with pytest.raises(UserError, match=message):
        RelationOptions(**values)


def test_the_reconstruction_s_taps_are_asked_for_once():
    method = distiller(FakeEncoder(), FakeEncoder(seed=1)).method
    assert method.student_taps.count(Tap("output")) == 1
    assert Tap("output") not in method.compared


def test_the_mask_token_is_kept_and_gone_on_with():
    one, other = (distiller(FakeEncoder(), FakeEncoder(seed=1)).method for _ in range(2))
    other.recall(one.keepsakes())
    assert torch.equal(other.masking.mask_token, one.masking.mask_token)


@pytest.mark.parametrize("role", ["student", "teacher"])
def test_a_network_without_blocks_is_refused(role):
    facts = {"student": FakeEncoder().facts, "teacher": FakeEncoder().facts}
    facts[role] = replace(facts[role], depth=0)
    with pytest.raises(UserError, match=f"The {role} has no blocks.*limbeck finetune"):
        AttentionMap(AttentionMapOptions(mask_ratio=0.5), facts["student"], facts["teacher"])
