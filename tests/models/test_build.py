"""Students: TinyMIM's parameter counts, layers and start values; seeds, tails, classifiers."""

from collections import Counter

import pytest
import torch
from timm.layers import DropPath

from limbeck.errors import UserError
from limbeck.models.build import (
    build_student,
    describe_positions,
    keep_blocks,
    qkv_parts,
    reinit_tail,
    remember,
    set_drop_path,
)
from limbeck.models.heads import with_classifier
from limbeck.models.options import StudentOptions
from limbeck.ops.pos_embed import sincos_2d
from limbeck.records import Tap
from tests.models.families import small_encoder

SMALL = StudentOptions(
    name="vit_tiny", img_size=32, patch_size=8, embed_dim=32, depth=3, num_heads=2
)
IMAGES = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
SIZES = [
    ("vit_tiny", 5_524_416, 5_486_592, 333_696, 5_717_416),
    ("vit_small", 21_665_664, 21_590_016, 1_330_944, 22_050_664),
    ("vit_base", 85_798_656, 85_647_360, 5_316_096, 86_567_656),
]


def count(parameters):
    return sum(parameter.numel() for parameter in parameters)


def tail_names(encoder):
    """What relation distillation leaves without gradient."""
    encoder.zero_grad()
    side = encoder.facts.img_size[0]
    images = torch.rand(1, 3, side, side, device=next(encoder.parameters()).device)
    taps = tuple(Tap(kind) for kind in ("queries", "keys", "values"))
    sum(value.sum() for value in encoder(images, taps=taps).taps.values()).backward()
    return [n for n, p in encoder.named_parameters() if p.requires_grad and p.grad is None]


@pytest.mark.parametrize(("name", "total", "trainable", "untrained", "classifier"), SIZES)
def test_golden_parameter_counts(name, total, trainable, untrained, classifier):
    with torch.device("meta"):
        student = build_student(StudentOptions(name=name), seed=0)
        parameters = dict(student.named_parameters())
        assert count(parameters.values()) == total
        assert count(p for p in parameters.values() if p.requires_grad) == trainable
        assert count(parameters[name] for name in tail_names(student)) == untrained
        model = with_classifier(student, 1000, "avg", seed=0)
    assert count(model.parameters()) == classifier
    assert all(p.requires_grad for p in model.parameters())


def test_golden_layers_of_the_fine_tuning_model():
    with torch.device("meta"):
        student = build_student(StudentOptions(name="vit_base"), seed=0)
        model = with_classifier(student, 1000, "avg", seed=0)
    groups = Counter()
    for name, parameter in model.named_parameters():
        is_decayed = parameter.ndim > 1 and not name.endswith(("pos_embed", "cls_token"))
        groups[model.layer_id(name), is_decayed] += 1
    assert len(groups) == 28
    assert (groups[0, False], groups[0, True]) == (3, 1)
    assert (groups[13, False], groups[13, True]) == (3, 1)
    assert {(groups[i, False], groups[i, True]) for i in range(1, 13)} == {(8, 4)}


def test_start_values_are_maes():
    model = build_student(SMALL, seed=3).model
    bounds = {
        model.blocks[0].attn.qkv: (6 / (32 + 96)) ** 0.5,  # q, k and v as one matrix
        model.blocks[2].attn.proj: (6 / (32 + 32)) ** 0.5,
        model.blocks[1].mlp.fc1: (6 / (32 + 128)) ** 0.5,
        model.patch_embed.proj: (6 / (32 + 192)) ** 0.5,
    }
    for layer, bound in bounds.items():
        assert 0.95 * bound < layer.weight.abs().max() <= bound
        assert layer.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.1)
    assert all(block.attn.qkv.bias.eq(0).all() for block in model.blocks)
    conv_bound = 192**-0.5
    assert 0.5 * conv_bound < model.patch_embed.proj.bias.abs().max() <= conv_bound
    assert model.norm.weight.eq(1).all() and model.norm.bias.eq(0).all()
    assert model.norm.eps == 1e-6
    assert 0.01 < model.cls_token.std() < 0.03
    assert torch.equal(model.pos_embed[0], sincos_2d(32, (4, 4), 1))
    assert [n for n, p in model.named_parameters() if not p.requires_grad] == ["pos_embed"]


def test_students_follow_from_the_seed_and_leave_the_callers_random_state():
    before = torch.get_rng_state()
    first, again = build_student(SMALL, seed=5), build_student(SMALL, seed=5)
    other = build_student(SMALL, seed=6)
    assert torch.equal(torch.get_rng_state(), before)
    weights = first.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in again.state_dict().items())
    assert not torch.equal(
        other.model.blocks[0].attn.qkv.weight, first.model.blocks[0].attn.qkv.weight
    )
    assert not torch.equal(other.model.patch_embed.proj.bias, first.model.patch_embed.proj.bias)


@pytest.mark.parametrize(
    "name",
    [
        "vit_small_patch16_dinov3",
        "deit3_small_patch16_224",
        "deit_tiny_distilled_patch16_224",
        "eva02_tiny_patch14_224",
        "vit_base_patch16_siglip_224",
    ],
)
def test_other_families_are_students_too(name):
    options = StudentOptions(
        name=name, img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=2
    )
    student = build_student(options, seed=0)
    tokens = student(IMAGES).tokens
    assert tokens.mean(-1).abs().max() < 1e-5  # the final norm is there, whatever the pooling
    if student.model.pos_embed is not None:
        assert not student.model.pos_embed.requires_grad


def test_students_that_can_not_be_built_say_why():
    with pytest.raises(UserError, match="Did you mean 'vit_tiny'"):
        build_student(StudentOptions(name="vit_tinny"), seed=0)
    with pytest.raises(UserError, match="'timm:vit_base_patch16_224.mae' starts from weights"):
        build_student(StudentOptions(name="vit_base_patch16_224.mae"), seed=0)
    with pytest.raises(UserError, match="4 divides, not 30"):
        build_student(
            StudentOptions(img_size=32, patch_size=8, embed_dim=30, depth=1, num_heads=2), seed=0
        )


def test_drop_path_is_set_block_by_block():
    student = build_student(SMALL, seed=0)
    assert not any(isinstance(module, DropPath) for module in student.modules())
    set_drop_path(student, [0.1, 0.2, 0.0])
    for block, rate in zip(student.model.blocks, [0.1, 0.2, 0.0], strict=True):
        for branch in (block.drop_path1, block.drop_path2):
            assert (branch.drop_prob if isinstance(branch, DropPath) else 0.0) == rate
    assert student.model.blocks[0].drop_path1.training
    assert not torch.equal(student(IMAGES).tokens, student(IMAGES).tokens)
    student.eval()
    assert torch.equal(student(IMAGES).tokens, student(IMAGES).tokens)
    set_drop_path(student, [0.3] * 3)
    assert not student.model.blocks[0].drop_path1.training
    with pytest.raises(ValueError, match="2 drop-path rates for 3 blocks"):
        set_drop_path(student, [0.1, 0.1])


def test_tail_can_be_kept_drawn_afresh_or_zeroed():
    student = build_student(SMALL, seed=0)
    with torch.no_grad():  # as if it had come from somewhere else
        for parameter in student.parameters():
            parameter.add_(0.5)
    names = tail_names(student)
    assert len(names) == 10
    before = {k: v.clone() for k, v in student.state_dict().items()}

    report = reinit_tail(student, names, "keep", seed=0)
    assert all(torch.equal(v, before[k]) for k, v in student.state_dict().items())
    assert report["how"] == "keep" and report["zeroed"] == []
    assert report["parameters"] == [name.removeprefix("model.") for name in names]
    assert report["num_values"] == count(p for n, p in student.named_parameters() if n in names)

    # timm's bare names are taken as well.
    reinit_tail(student, report["parameters"], "reinit", seed=0)
    after = student.state_dict()
    changed = [name for name in after if not torch.equal(after[name], before[name])]
    assert sorted(changed) == sorted(names)
    last = student.model.blocks[-1]
    fresh = build_student(SMALL, seed=0).model.blocks[-1]
    assert last.mlp.fc1.weight.abs().max() <= (6 / 160) ** 0.5
    assert last.mlp.fc1.bias.eq(0).all() and last.norm2.weight.eq(1).all()
    assert not torch.equal(last.mlp.fc1.weight, fresh.mlp.fc1.weight)

    report = reinit_tail(student, names, "zero", seed=0)
    assert report["zeroed"] == [
        f"blocks.2.{layer}.{part}"
        for layer in ("attn.proj", "mlp.fc2")
        for part in ("weight", "bias")
    ]
    found = student(IMAGES, taps=(Tap("tokens", 1), Tap("tokens", 2))).taps
    assert torch.equal(found[Tap("tokens", 1)], found[Tap("tokens", 2)])


def test_a_tail_of_rows_is_drawn_afresh_and_remembered():
    student = build_student(SMALL, seed=0)
    weight = student.model.blocks[1].attn.qkv.weight
    names = list(qkv_parts("model.blocks.1.attn.qkv.weight", weight))[:2]
    assert names == [f"model.blocks.1.attn.qkv.weight[{kind}]" for kind in ("queries", "keys")]
    assert qkv_parts("blocks.1.attn.proj.weight", weight) == {}
    before = weight.detach().clone()
    restore = remember(student, names)
    report = reinit_tail(student, names, "reinit", seed=0)
    assert report["num_values"] == 64 * 32
    assert not (weight[:64] == before[:64]).any() and torch.equal(weight[64:], before[64:])
    with torch.no_grad():
        weight[64:] += 1
    restore()
    assert torch.equal(weight[:64], before[:64]) and torch.equal(weight[64:], before[64:] + 1)
    with pytest.raises(UserError, match="untrained_tail zero has no effect"):
        reinit_tail(student, names, "zero", seed=0)


def test_tail_of_unknown_names_is_refused():
    with pytest.raises(UserError, match=r"no parameter blocks.9.norm2.weight"):
        reinit_tail(build_student(SMALL, seed=0), ["blocks.9.norm2.weight"], "zero", seed=0)


def test_positions_are_fixed_in_a_fresh_student_and_learned_in_loaded_weights():
    student = build_student(SMALL, seed=0)
    assert describe_positions(student) == "fixed sin-cos"
    assert describe_positions(with_classifier(student, 3, "avg", seed=0)) == "learned"
    assert describe_positions(small_encoder("dinov3")) == "other"


@pytest.mark.parametrize("count", [0, 1, 2])
def test_the_first_blocks_are_kept_and_the_rest_starts_afresh(count):
    student = build_student(SMALL, seed=0)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(0.5)  # so that norms and biases are told from fresh ones
    before = {name: value.clone() for name, value in student.model.state_dict().items()}
    keep_blocks(student, count, seed=0)
    fresh = build_student(SMALL, seed=1).model.state_dict()
    for name, value in student.model.state_dict().items():
        is_kept = student.layer_id(name) <= count
        assert value.equal(before[name] if is_kept else fresh[name]), name
    other = build_student(SMALL, seed=0)
    keep_blocks(other, count, seed=1)
    name = "blocks.2.mlp.fc1.weight"
    assert not other.model.state_dict()[name].equal(student.model.state_dict()[name])


def test_all_blocks_kept_is_the_student_as_it_was():
    student, other = (build_student(SMALL, seed=0) for _ in range(2))
    keep_blocks(student, 3, seed=0)
    for name, value in student.model.state_dict().items():
        assert value.equal(other.model.state_dict()[name])
    with pytest.raises(UserError, match="keep_blocks 4: the student has 3 blocks"):
        keep_blocks(student, 4, seed=0)


@pytest.mark.parametrize("name", ["hiera_46", "swin_48"])
def test_blocks_of_stages_are_kept_with_what_leads_to_them(name):
    shape = {"name": name, "img_size": 64, "embed_dim": 12, "mlp_ratio": 1}
    student = build_student(StudentOptions(**shape), seed=0)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(0.5)
    before = {name: value.clone() for name, value in student.model.named_parameters()}
    keep_blocks(student, 3, seed=0)  # the fourth block begins no stage, in either
    for name, value in student.model.named_parameters():
        is_same = value.equal(before[name])
        assert is_same == (student.layer_id(name) <= 3), name
    with pytest.raises(UserError, match="the student has 12 blocks"):
        keep_blocks(student, 13, seed=0)


def test_a_tiny_vit_of_another_shape_has_whole_heads():
    name = "tiny_vit_5m:img_size=32:embed_dims=16-32-32-48:depths=1-1-1-1:head_dim=16:mlp_ratio=2"
    facts = build_student(StudentOptions(name=name), seed=0).facts
    assert facts.num_heads == (0, 2, 2, 3) and facts.block_dims == (16, 32, 32, 48)
    halved = build_student(StudentOptions(name="tiny_vit_5m:img_size=32:head_dim=16"), seed=0)
    assert halved.facts.num_heads[-1] == 20  # of 320 channels
    with pytest.raises(UserError, match="The width 64 of a stage does not divide by head_dim 48"):
        build_student(StudentOptions(name="tiny_vit_5m:img_size=32:head_dim=48"), seed=0)
