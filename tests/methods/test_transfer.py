"""What the arms share: tokens that both networks have, masks, blocks, the reconstruction."""

import pytest
import torch

from limbeck.errors import UserError
from limbeck.methods.cls_token import ClsToken
from limbeck.methods.distiller import Distiller
from limbeck.methods.feature import Feature
from limbeck.methods.options import FeatureOptions, ReconstructionOptions, RelationOptions
from limbeck.methods.reconstruction import Reconstruction
from limbeck.methods.relation import Relation
from limbeck.methods.teacher import Teacher
from limbeck.records import Batch, Tap
from tests.fakes import FakeEncoder
from tests.methods.arms import ARMS

TRANSFERS = [name for name, (method_class, _) in ARMS.items() if method_class.Options.needs_teacher]
MASKED = {"mask_ratio": 0.5}


def batch():
    images, teacher_images = torch.rand(2, 3, 3, 8, 8)
    return Batch(images, teacher_images, None, tuple("abc"), torch.arange(3))


def relation(student=None, teacher=None, **options):
    student, teacher = student or FakeEncoder(), teacher or FakeEncoder(seed=1)
    return Relation(RelationOptions(**options), student.facts, teacher.facts)


@pytest.mark.parametrize(
    ("prefix_student", "prefix_teacher"), [(1, 1), (1, 5), (0, 1), (1, 0), (2, 0)]
)
def test_registers_and_lone_cls_tokens_are_left_out(prefix_student, prefix_teacher):
    student = FakeEncoder(num_prefix_tokens=prefix_student)
    teacher = FakeEncoder(num_prefix_tokens=prefix_teacher, seed=1)
    method = relation(student, teacher)
    x = batch().images
    s, t = student(x, None, method.student_taps), teacher(x, None, method.teacher_taps)
    has_cls = int(prefix_student > 0 and prefix_teacher > 0)
    for features, taps in ((s, method.student_taps), (t, method.teacher_taps)):
        q = features.taps[taps[0]]
        kept = method._shared_tokens(features, taps[0])
        assert kept.shape[2] == 4 + has_cls
        torch.testing.assert_close(kept[:, :, has_cls:], q[:, :, features.num_prefix_tokens :])
        if has_cls:
            torch.testing.assert_close(kept[:, :, 0], q[:, :, 0])
    assert method(s, t, batch()).total.isfinite()


@pytest.mark.parametrize("kind", ["keys", "tokens"])
def test_of_a_teacher_that_sees_all_the_student_s_patches_are_compared_in_their_order(kind):
    teacher = FakeEncoder(num_prefix_tokens=3, seed=1)
    method = relation(teacher=teacher, teacher_sees="all", **MASKED)
    full = teacher(batch().images, None, (Tap(kind),))
    places = torch.tensor([[3, 0], [1, 2], [2, 1]])
    value, picked = full.taps[Tap(kind)], method._shared_tokens(full, Tap(kind), places)
    for sample, ids in enumerate(places.tolist()):
        expected = value[sample][..., [0, *(3 + i for i in ids)], :]
        torch.testing.assert_close(picked[sample], expected)


def test_without_a_mask_the_batch_stays_as_it_is():
    one = batch()
    assert relation().prepare(one) is one


def test_the_mask_is_the_students_alone_or_both_s():
    both = relation(**MASKED).prepare(batch())
    assert both.ids_keep.shape == (3, 2) and both.teacher_ids_keep is both.ids_keep
    alone = relation(teacher_sees="all", **MASKED).prepare(batch())
    torch.testing.assert_close(alone.ids_keep, both.ids_keep)  # from the view seeds
    assert alone.teacher_ids_keep is None


def test_the_weighted_reconstruction_is_added_and_trains_the_student_s_output():
    student, teacher = FakeEncoder(), FakeEncoder(seed=1)
    options = {"reconstruction": ReconstructionOptions(weight=0.25), **MASKED}
    method = relation(student, teacher, **options)
    assert Tap("output") in method.student_taps and Tap("output") not in method.teacher_taps
    one = method.prepare(batch())
    s = student(one.images, one.ids_keep, method.student_taps)
    t = teacher(one.images, one.ids_keep, method.teacher_taps)
    losses = method(s, t, one)
    assert isinstance(method.reconstruction, Reconstruction)
    pixel = method.reconstruction(s, one)
    torch.testing.assert_close(losses.parts["pixel"], 0.25 * pixel.detach())
    torch.testing.assert_close(
        losses.total.detach(), losses.parts["qk"] + losses.parts["vv"] + losses.parts["pixel"]
    )


def test_an_arm_compares_no_more_than_it_asked_for():
    student, teacher = FakeEncoder(), FakeEncoder(seed=1)
    options = {"reconstruction": ReconstructionOptions(weight=0.25), **MASKED}
    method = relation(student, teacher, **options)
    seen = []
    compare = method.compare
    method.compare = lambda own, theirs: seen.append((own, theirs)) or compare(own, theirs)
    Distiller(student, method, Teacher(teacher, torch.device("cpu"), "fp32"))(batch())
    kinds = [[tap.kind for tap in side] for side in seen[0]]
    assert kinds == [["queries", "keys", "values"]] * 2


def test_without_a_weight_there_is_no_decoder():
    assert not list(relation().parameters())


@pytest.mark.parametrize("role", ["teacher", "student"])
@pytest.mark.parametrize("method_class", [Relation, Feature, ClsToken])
def test_a_block_that_is_not_there_is_named(method_class, role):
    facts = FakeEncoder(depth=2).facts
    options = method_class.Options(**{f"{role}_block": 2})
    with pytest.raises(UserError, match=f"{role} has 2 blocks.*no block 2: change {role}_block"):
        method_class(options, facts, facts)


def test_a_mask_that_leaves_nothing_is_refused():
    with pytest.raises(UserError, match="keeps 0 of 4 patches"):
        relation(mask_ratio=0.9)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"teacher_sees": "all"}, "no effect with mask_ratio 0"),
        ({"reconstruction": {"weight": 1.0}}, "needs masked patches"),
        ({"reconstruction": {"decoder_depth": 2}}, "no effect with reconstruction.weight 0"),
        ({"mask_ratio": 1.0}, "less than 1"),
    ],
)
@pytest.mark.parametrize("method_class", [Relation, Feature, ClsToken])
def test_options_without_effect_are_refused(method_class, values, message):
    with pytest.raises(UserError, match=message):
        method_class.Options(**values)


@pytest.mark.parametrize("arm", TRANSFERS)
def test_gradients_by_finite_differences(arm):
    method_class, values = ARMS[arm]
    options = method_class.Options(**values)
    decoder_depth = 4 if options.reads_decoder else 0
    student = FakeEncoder().double()
    teacher = FakeEncoder(embed_dim=12, seed=1, decoder_depth=decoder_depth).double()
    method = method_class(options, student.facts, teacher.facts).double()
    one = method.prepare(
        Batch(*2 * [torch.rand(2, 3, 8, 8).double()], None, ("a", "b"), torch.arange(2))
    )
    seen = None if one.mask_token is not None else one.teacher_ids_keep  # it has no mask token
    said = teacher(one.teacher_images, seen, method.teacher_taps)
    weight = student.weight.detach()
    # Along one direction: the loss is a scalar of a scalar, so one difference says it all.
    direction = torch.randn_like(weight)

    def total(step):
        student.weight = torch.nn.Parameter(weight + step * direction)
        features = student(one.images, one.ids_keep, method.student_taps, one.mask_token)
        losses = method(features, said, one)
        losses.total.backward()
        return losses.total.item(), (student.weight.grad * direction).sum().item()

    step = 1e-5
    (above, _), (below, _), (_, slope) = total(step), total(-step), total(0.0)
    # The reconstruction's targets pass through float32 means.
    assert slope == pytest.approx((above - below) / (2 * step), rel=1e-5, abs=1e-9)


def test_feature_output_has_no_block():
    with pytest.raises(UserError, match="come.*after all blocks"):
        FeatureOptions(target="output", teacher_block=3)


def test_masked_teacher_computes_only_what_it_sees():
    student, teacher = FakeEncoder(), FakeEncoder(seed=1)
    method = relation(student, teacher, **MASKED)
    distiller = Distiller(student, method, Teacher(teacher, torch.device("cpu"), "fp32"))
    one = batch()
    changed = one.teacher_images.clone()
    ids = method.prepare(one).ids_keep
    hidden = next(i for i in range(4) if i not in ids[0])
    y, x = divmod(hidden, 2)
    before = distiller(one).parts["qk"]
    # The fake's prefix token is the mean of the patches it sees, so nothing else can leak.
    changed[0, :, 4 * y : 4 * y + 4, 4 * x : 4 * x + 4] += 1.0
    after = distiller(Batch(one.images, changed, None, one.keys, one.view_seeds)).parts["qk"]
    torch.testing.assert_close(before, after, rtol=0, atol=0)


def test_a_teacher_without_blocks_is_sent_to_fine_tuning():
    with pytest.raises(UserError, match="The teacher has no blocks: only its logits are known"):
        relation(teacher=FakeEncoder(depth=0))
