"""Attention-score distillation: the formula, golden numbers, and what learns from which loss."""

from dataclasses import replace

import pytest
import torch

from limbeck.errors import UserError
from limbeck.methods.attention_map import AttentionMap
from limbeck.methods.distiller import Distiller
from limbeck.methods.options import (
    AttentionMapOptions,
    ReconstructionOptions,
    RegressionOptions,
)
from limbeck.methods.teacher import Teacher
from limbeck.models.build import build_student
from limbeck.models.options import StudentOptions
from limbeck.records import Batch, Tap
from tests.fakes import FakeEncoder
from tests.models.families import small_encoder

CPU = torch.device("cpu")


def build(student=None, teacher=None, **options):
    student, teacher = student or FakeEncoder(), teacher or FakeEncoder(seed=1)
    options = {"mask_ratio": 0.5} | options
    return AttentionMap(AttentionMapOptions(**options), student.facts, teacher.facts)


def batch(side=8):
    images, teacher_images = torch.rand(2, 3, 3, side, side)
    return Batch(images, teacher_images, None, tuple("abc"), torch.arange(3))


def vit_tiny(**shape):
    with torch.device("meta"):
        return build_student(StudentOptions(name="vit_tiny", num_heads=12, **shape), seed=0)


S = [[[1.0, 2.0], [3.0, 4.0]], [[0.0, 1.0], [0.0, -1.0]]]
T = [[[1.0, 1.0], [1.0, 1.0]], [[2.0, 0.0], [0.0, 2.0]]]


@pytest.mark.parametrize(
    ("mixer", "expected"), [([[1.0, 0.0], [0.0, 1.0]], 3.5), ([[0.0, 1.0], [0.5, -1.0]], 1.4375)]
)
def test_the_golden_numbers_of_two_heads(mixer, expected):
    method = build(weight=1.0)
    method.mixers[0].weight.data = torch.tensor(mixer)
    ((own, theirs),) = method.pairs
    losses = method.compare({own: torch.tensor([S])}, {theirs: torch.tensor([T])})
    assert losses["scores"].item() == pytest.approx(expected)
    if mixer[0][0] == 1:
        as_it_is = build(mixer="identity")
        again = as_it_is.compare({own: torch.tensor([S])}, {theirs: torch.tensor([T])})
        torch.testing.assert_close(again["scores"], losses["scores"])


def test_equals_a_loop_over_heads_and_tokens():
    method = build(teacher=FakeEncoder(num_heads=4, seed=1), weight=0.5).double()
    mixer = method.mixers[0].weight
    ((own, theirs),) = method.pairs
    s, t = torch.randn(2, 2, 3, 3).double(), torch.randn(2, 4, 3, 3).double()
    errors = [
        (sum(mixer[h, g] * s[b, g, i, j] for g in range(2)) - t[b, h, i, j]) ** 2
        for b in range(2) for h in range(4) for i in range(3) for j in range(3)
    ]  # fmt: skip
    loss = method.compare({own: s}, {theirs: t})["scores"]
    torch.testing.assert_close(loss, 0.5 * sum(errors) / len(errors))


def test_the_mixer_starts_as_a_convolution_does():
    facts = vit_tiny().facts
    (mixer,) = AttentionMap(AttentionMapOptions(), facts, facts).mixers
    assert sum(p.numel() for p in mixer.parameters()) == 144
    bound = 12**-0.5
    assert 0.9 * bound < mixer.weight.abs().max() <= bound
    assert mixer.weight.diagonal().sub(1).abs().min() > 0.5  # not the identity


def test_parameter_counts():
    student = vit_tiny()
    options = AttentionMapOptions()
    method = AttentionMap(options, student.facts, student.facts)
    count = sum(p.numel() for module in (student, method) for p in module.parameters())
    assert count == 5_748_624
    decoupled = AttentionMap(AttentionMapOptions(decoupled=True), student.facts, student.facts)
    block = sum(p.numel() for p in decoupled.extra_block.parameters())
    values_rows = 192 * 192 + 192
    assert block + values_rows == 111_552
    packed = (6 / (192 + 3 * 192)) ** 0.5  # as rows of the packed projection
    assert 0.99 * packed < decoupled.extra_block.qk.weight.abs().max() <= packed


def test_student_and_teacher_see_the_same_patches():
    seen = []

    class Watched(FakeEncoder):
        def forward(self, images, ids_keep=None, taps=(), mask_token=None):
            seen.append(ids_keep)
            return super().forward(images, ids_keep, taps, mask_token)

    student, teacher = Watched(), Watched(seed=1)
    Distiller(student, build(student, teacher), Teacher(teacher, CPU, "fp32"))(batch())
    assert torch.equal(*seen) and seen[0].shape == (3, 2)


def small_vit(depth, seed=0):
    shape = StudentOptions(
        name="vit_tiny", img_size=32, patch_size=8, embed_dim=24, depth=depth, num_heads=3
    )
    return build_student(shape, seed=seed)


def gradients(weight):
    """Of the student's parts by name, and the method, after one backward pass of D2-MAE."""
    student, teacher = small_vit(6), small_vit(2, seed=1)
    options = AttentionMapOptions(
        decoupled=True, reconstruction=ReconstructionOptions(weight=1, before_block=4)
    )
    method = AttentionMap(options, student.facts, teacher.facts)
    method.weight_of_teacher = weight
    Distiller(student, method, Teacher(teacher, CPU, "fp32"))(batch(32)).total.backward()

    def size(module):
        grads = [p.grad for p in module.parameters() if p.grad is not None]
        return sum(grad.abs().sum().item() for grad in grads)

    return [size(block) for block in student.model.blocks], size(student.model.norm), method


def test_decoupled_the_last_blocks_learn_from_the_teacher_alone():
    blocks, norm, method = gradients(weight=0.0)
    assert all(blocks[:4]) and not any(blocks[4:])
    assert norm == 0  # its own norm, not the student's, is fitted to that depth
    assert not any(p.grad.any() for p in method.extra_block.parameters())
    assert method.reconstruction.norm.weight.grad.any()
    blocks, norm, method = gradients(weight=1.0)
    assert all(blocks) and norm == 0
    assert method.extra_block.qk.bias.grad[24:].any()  # of the keys: no softmax swallows it
    assert all(p.grad.any() for p in method.mixers.parameters())


@pytest.mark.parametrize(("depth", "block"), [(12, 8), (6, 4), (2, 1)])
def test_decoupled_the_reconstruction_leaves_early_unless_told(depth, block):
    student, teacher = small_vit(depth).facts, small_vit(2).facts
    method = AttentionMap(AttentionMapOptions(decoupled=True), student, teacher)
    assert method.reconstruction.taps == (Tap("block_input", block),)
    coupled = AttentionMap(AttentionMapOptions(), student, teacher)
    assert coupled.reconstruction.taps == (Tap("output"),)
    alone = ReconstructionOptions(weight=0)
    assert (
        AttentionMap(
            AttentionMapOptions(decoupled=True, reconstruction=alone), student, teacher
        ).reconstruction
        is None
    )


def test_decoupled_the_regression_leaves_early_too_and_of_stages_where_it_is_told():
    options = AttentionMapOptions(mask_ratio=0.5, masking="mask-token", decoupled=True)
    plain = small_encoder("augreg").facts
    options = replace(options, regression=RegressionOptions(weight=1.0, mask_patch_size=16))
    method = AttentionMap(options, plain, plain)
    assert method.reconstruction.tap == Tap("block_input", 2 * plain.depth // 3)
    swin = small_encoder("swin").facts
    with pytest.raises(UserError, match=r"set attention_map.regression.before_block, from 1 to 3"):
        AttentionMap(options, swin, swin)


def test_decoupled_the_decoder_reads_what_enters_the_block():
    student = small_vit(4).eval()
    options = AttentionMapOptions(reconstruction=ReconstructionOptions(weight=1, before_block=2))
    method = AttentionMap(options, student.facts, student.facts)
    assert method.reconstruction.taps == (Tap("block_input", 2),)
    assert method.student_taps == (Tap("scores", 3), Tap("block_input", 2))


@pytest.mark.parametrize("places", [None, torch.tensor([[3, 0], [1, 2], [2, 1]])])
def test_scores_lose_tokens_on_both_axes(places):
    teacher = FakeEncoder(num_prefix_tokens=3, seed=1)
    method = build(FakeEncoder(num_prefix_tokens=0), teacher)
    tap = Tap("scores", 1)
    full = teacher(batch().images, None, (tap,))
    shared = method._shared_tokens(full, tap, places)
    order = [[0, 1, 2, 3]] * 3 if places is None else places.tolist()
    for sample, ids in enumerate(order):
        rows = torch.tensor([3 + i for i in ids])
        torch.testing.assert_close(shared[sample], full.taps[tap][sample][:, rows][:, :, rows])


def test_hidden_states_are_numbered_as_released():
    student, teacher = small_vit(2), small_vit(3, seed=1)
    pairs = ((0, 0), (1, 2), (2, 3), (-1, -1))
    options = AttentionMapOptions(target="tokens", block_pairs=pairs)
    method = AttentionMap(options, student.facts, teacher.facts)
    first, end = Tap("attention_input", 0), Tap("output")
    assert method.pairs == [
        (first, first), (Tap("attention_input", 1), Tap("attention_input", 2)), (end, end),
        (end, end),
    ]  # fmt: skip
    assert method.mixers[0].weight.shape == (24, 24)


def test_a_hidden_state_loss_is_the_mean_of_squares_with_the_cls_token():
    method = build(target="tokens", block_pairs=((0, 0),), mixer="identity", weight=2.0)
    s, t = torch.randn(2, 3, 8), torch.randn(2, 3, 8)
    loss = method.compare({Tap("attention_input", 0): s}, {Tap("attention_input", 0): t})
    torch.testing.assert_close(loss["tokens"], 2 * (s - t).square().mean())


def test_maps_are_compared_after_the_softmax():
    method = build(target="maps", mixer="identity")
    ((own, theirs),) = method.pairs
    s, t = torch.randn(2, 2, 3, 3), torch.randn(2, 2, 3, 3)
    loss = method.compare({own: s}, {theirs: t})["maps"]
    p, q = t.softmax(-1), s.softmax(-1)
    torch.testing.assert_close(loss, (p * (p / q).log()).sum(-1).mean())
    assert method.compare({own: t + 1}, {theirs: t})["maps"].abs() < 1e-6  # shifts do not count


def test_the_teacher_s_last_block_is_only_projected():
    student, teacher = small_vit(2), small_vit(2, seed=1)
    method = build(student, teacher)
    teacher.model.blocks[-1].attn.proj.register_forward_hook(lambda *_: pytest.fail("it was run"))
    Distiller(student, method, Teacher(teacher, CPU, "fp32"))(batch(32))


def test_blocks_of_another_grid_are_told():
    facts = FakeEncoder().facts
    stages = replace(facts, block_strides=(2, 4), input_strides=(2, 2))
    with pytest.raises(
        UserError, match="student has 4 x 4 tokens and block 1 of the teacher 2 x 2"
    ):
        AttentionMap(AttentionMapOptions(mask_ratio=0.5, block_pairs=((0, 1),)), stages, facts)
    AttentionMap(AttentionMapOptions(mask_ratio=0.5), stages, facts)


def test_in_a_chain_the_next_teacher_is_read_where_it_has_learnt():
    options = AttentionMapOptions(block_pairs=((0, 5), (0, 7), (-1, 11)))
    assert options.for_next_stage().block_pairs == ((0, 0), (-1, -1))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"mask_ratio": 0.0}, "set mask_ratio .* or reconstruction.weight 0"),
        ({"block_pairs": ()}, "at least one"),
        ({"block_pairs": ((0, 0), (0, 0))}, "names each pair once"),
        ({"decoupled": True, "target": "tokens"}, "another target than tokens"),
        ({"decoupled": True, "block_pairs": ((0, 1),)}, "name student block -1"),
        ({"decoupled": True, "block_pairs": ((-1, 0), (-1, 1))}, "one of block_pairs"),
        ({"weight": 0.0}, "weight"),
        ({"regression": {"weight": 0.5}}, "regression have no effect with masking drop"),
        ({"masking": "mask-token", "reconstruction": {"weight": 0.5}}, "reconstruction have no"),
    ],
)
def test_options_without_effect_are_refused(values, message):
    with pytest.raises(UserError, match=message):
        AttentionMapOptions(**values)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"block_pairs": ((2, 0),)}, "student has 2 blocks.* not of 2: change block_pairs"),
        ({"block_pairs": ((0, -3),)}, "teacher has 2 blocks.* not of -3: change block_pairs"),
        ({"target": "tokens", "block_pairs": ((3, 0),)}, "of 0 to 2 .* not of 3"),
        ({"mixer": "identity"}, "not 2 and 4; choose mixer learned"),
        ({"reconstruction": {"weight": 1, "before_block": 2}}, "there is no block 2"),
    ],
)
def test_what_does_not_fit_is_told(values, message):
    teacher = FakeEncoder(num_heads=4, seed=1)
    with pytest.raises(UserError, match=message):
        build(teacher=teacher, **values)
