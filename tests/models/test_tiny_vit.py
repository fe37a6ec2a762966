"""TinyViT: published counts and geometry, timm's own output, its blocks, windows and biases."""

from copy import deepcopy

import pytest
import timm
import torch
from torch import nn

from limbeck.engine.optim import param_groups
from limbeck.engine.options import OptimOptions
from limbeck.errors import UserError
from limbeck.evaluation.cost import count_macs
from limbeck.methods.teacher import Teacher
from limbeck.models.build import (
    build_student,
    describe_positions,
    parts_of,
    remember,
    set_drop_path,
)
from limbeck.models.heads import with_classifier
from limbeck.models.options import StudentOptions
from limbeck.models.vit import build_encoder
from limbeck.records import Tap
from tests.models.families import architecture_of, small_encoder, small_images

# Name: parameters with 1,000 classes and without, MACs with the classifier (arXiv 2207.10666).
PUBLISHED = {
    "tiny_vit_5m": (5_392_764, 5_071_764, 1_255_174_720),
    "tiny_vit_11m": (10_996_972, 10_547_972, 2_016_046_144),
    "tiny_vit_21m": (21_198_568, 20_621_568, 4_250_329_536),
    "tiny_vit_21m_384": (21_230_488, 20_653_488, 13_697_865_216),
    "tiny_vit_21m_512": (21_268_120, 20_691_120, 26_883_623_424),
}
SMALL = {
    "embed_dims": [8, 16, 24, 32],
    "depths": [1, 1, 2, 1],
    "num_heads": [1, 2, 4, 4],
    "num_classes": 5,
}


def build(**changes):
    """One of four stages in evaluation mode, with every weight and statistic disturbed."""
    architecture = {
        "kind": "timm",
        "name": "tiny_vit_5m_224",
        "kwargs": SMALL | {"img_size": 64} | changes,
        "mean": [0.4, 0.5, 0.6],
        "std": [0.2, 0.25, 0.3],
    }
    encoder = build_encoder(architecture).eval()
    with torch.no_grad():
        for tensor in encoder.model.state_dict().values():
            if tensor.is_floating_point():
                tensor.add_(0.1 * torch.rand_like(tensor))
    return encoder


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_counts_and_arithmetic(name):
    num_all, num_bare, macs = PUBLISHED[name]
    with torch.device("meta"):
        encoder = build_student(StudentOptions(name=name), num_classes=1000, seed=0)
    parameters = list(encoder.parameters())
    assert sum(p.numel() for p in parameters) == num_all
    assert num_all - encoder.facts.embed_dim * 1000 - 1000 == num_bare
    assert len(encoder.state_dict()) == 296 and len(parameters) == 215
    assert count_macs(encoder) + encoder.facts.embed_dim * 1000 == macs
    facts = encoder.facts
    assert facts.global_blocks == (4, 5, 6, 7, 8, 9, 10, 11)  # the third and the fourth stage
    assert facts.grid == tuple(side // 32 for side in facts.img_size)


@pytest.mark.parametrize(
    ("name", "count"),
    [("tiny_vit_5m", 12_082_725), ("tiny_vit_11m", 20_354_581), ("tiny_vit_21m", 33_223_825)],
)
def test_counts_with_all_classes_of_imagenet_22k(name, count):
    with torch.device("meta"):
        encoder = build_student(StudentOptions(name=name), num_classes=21841, seed=0)
    assert sum(p.numel() for p in encoder.parameters()) == count


@pytest.mark.parametrize("img_size", [64, [64, 96]])
def test_outputs_are_timms(img_size):
    encoder = build(img_size=img_size)
    images = torch.rand(2, 3, *encoder.facts.img_size)
    own = encoder.model((images - encoder.mean) / encoder.std)
    # Through whole blocks, and through their parts.
    for others in ((), tuple(Tap("mlp_output", block) for block in (1, 2, 3, 4))):
        found = encoder(images, taps=(Tap("logits"), *others)).taps[Tap("logits")]
        torch.testing.assert_close(found, own, atol=1e-5, rtol=0)


def test_padded_windows_are_timms():
    """Windows that do not divide the map: padded tokens take part as keys."""
    encoder = build(window_sizes=[1, 3, 3, 2])
    assert encoder.facts.global_blocks == (4,)
    images = torch.rand(2, 3, 64, 64)
    own = encoder.model.forward_features((images - encoder.mean) / encoder.std)
    taps = (Tap("attention_output", 1), Tap("attention_output", 2), Tap("output"))
    tokens = encoder(images, taps=taps).tokens
    torch.testing.assert_close(tokens, own.flatten(2).mT, atol=1e-5, rtol=0)


def test_geometry():
    facts = build().facts
    assert facts.num_heads == (0, 2, 4, 4, 4)
    assert facts.block_dims == (8, 16, 24, 24, 32)
    assert facts.block_strides == facts.input_strides == (4, 8, 16, 16, 32)
    assert facts.mask_unit == 4 and not facts.can_drop and facts.has_position_bias
    assert facts.tap_dim(Tap("block_input", 1)) == 16  # merged already
    assert build(img_size=64).facts.architecture["kwargs"]["img_size"] == [64, 64]
    with pytest.raises(UserError, match="80 x 80 pixels do not divide.* a multiple of 32"):
        build(img_size=80)


def test_the_index_of_biases_counts_absolute_offsets():
    """Golden: a 3 x 3 window, row by row of the query."""
    attn = small_encoder("tiny-vit-padded").blocks[2].attn
    rows = ("012345678", "101434767", "210543876", "345012345", "434101434", "543210543",
            "678345012", "767434101", "876543210")  # fmt: skip
    assert attn.attention_bias_idxs.tolist() == [[int(digit) for digit in row] for row in rows]


def test_scores_are_those_before_the_models_own_softmax():
    encoder = build()
    kinds = ("scores", "values", "attention_output", "queries", "keys")
    taps = tuple(Tap(kind, 2) for kind in kinds)
    found = encoder(torch.rand(2, 3, 64, 64), taps=taps).taps
    scores, values, added, q, k = (found[tap] for tap in taps)
    mixed = (scores.softmax(-1) @ values).transpose(1, 2).flatten(2)
    attn = encoder.blocks[2].attn
    torch.testing.assert_close(attn.proj(mixed), added)
    bias = scores - q @ k.mT * q.shape[-1] ** -0.5
    torch.testing.assert_close(bias[0, 1, 0, 5], attn.attention_biases[1, 1 * 4 + 1])  # dy 1, dx 1


def test_what_a_block_is_made_of():
    """tokens = local_conv(attention_tokens) + mlp_output: the convolution is no branch."""
    encoder = build()
    kinds = ("block_input", "attention_output", "attention_tokens", "mlp_output", "tokens")
    taps = tuple(Tap(kind, 3) for kind in kinds)
    entering, added, middle, mlp, tokens = encoder(
        torch.rand(2, 3, 64, 64), taps=taps
    ).taps.values()
    torch.testing.assert_close(entering + added, middle)
    image = middle.mT.unflatten(2, (4, 4))
    through = encoder.blocks[3].local_conv(image).flatten(2).mT
    torch.testing.assert_close(through + mlp, tokens)
    torch.testing.assert_close(encoder.blocks[3].mlp(through), mlp)


@pytest.mark.parametrize("kind", ["queries", "scores", "attention_tokens", "mlp_output"])
def test_blocks_of_convolutions_have_no_attention(kind):
    encoder = build()
    said = f"Block 0 .* has no attention, so there is no '{kind}' .* blocks 1, 2, 3, 4"
    with pytest.raises(UserError, match=said):
        encoder(torch.rand(1, 3, 64, 64), taps=(Tap(kind, 0),))
    with pytest.raises(UserError, match="has no attention"):
        encoder.set_num_heads(0, 2)
    with pytest.raises(UserError, match="bias of relative positions for each head"):
        encoder.set_num_heads(2, 2)


def test_windows_that_do_not_cover_the_map_are_not_global():
    encoder = build(img_size=128)
    assert encoder.facts.global_blocks == (2, 3, 4)
    with pytest.raises(UserError, match="attends within windows"):
        encoder(torch.rand(1, 3, 128, 128), taps=(Tap("scores", 1),))


def test_biases_are_never_those_of_earlier_weights():
    encoder, other = build(), build()
    images = torch.rand(1, 3, 64, 64)
    encoder(images)  # in evaluation mode, where timm keeps the biases
    encoder.load_state_dict(other.state_dict())
    assert torch.equal(encoder(images).tokens, other(images).tokens)
    deepcopy(encoder)


def test_hidden_pixels_are_not_seen_and_the_mask_token_is():
    encoder = small_encoder("tiny-vit")
    token = torch.full((1, 1, 8), 0.25)
    kept, entering = torch.tensor([[5], [0]]), Tap("block_input", 0)
    found = encoder(small_images(), kept, (entering,), token).taps[entering]
    hidden = found.eq(0.25).all(-1)
    assert hidden.sum(-1).tolist() == [63, 63] and not hidden[0, 5] and not hidden[1, 0]


def test_the_merging_is_of_the_block_before_as_published():
    encoder = build()
    assert encoder.layer_id("stages.1.downsample.conv1.conv.weight") == 1
    assert encoder.layer_id("model.stages.3.downsample.conv3.bn.bias") == 4
    assert encoder.layer_id("stages.2.blocks.1.local_conv.bn.weight") == 4
    assert encoder.layer_id("patch_embed.conv2.conv.weight") == 0
    assert encoder.layer_id("head.norm.weight") == encoder.layer_id("model.head.fc.bias") == 6
    with pytest.raises(ValueError, match="no parameter"):
        encoder.layer_id("blocks.0.norm1.weight")


def groups_by_name(encoder, **values):
    options = OptimOptions(no_decay_names=("attention_biases",), **values)
    groups = param_groups(encoder, options, encoder.layer_id, encoder.facts.depth)
    names = {id(p): name.removeprefix("model.") for name, p in encoder.named_parameters()}
    return groups, {names[id(p)]: group for group in groups for p in group["params"]}


def test_layer_decay_and_weight_decay_as_published():
    """Golden: 12 scales, and 68 tensors decayed, 147 not (5,349,888 and 42,876 values)."""
    with torch.device("meta"):
        encoder = build_student(StudentOptions(name="tiny_vit_5m"), num_classes=1000, seed=0)
    groups, of = groups_by_name(encoder, layer_decay=0.8, layer_decay_count="blocks")
    assert len(groups) == 24
    scales = sorted({group["lr_scale"] for group in groups})
    assert scales == pytest.approx(
        [0.0858993459, 0.1073741824, 0.1342177280, 0.1677721600, 0.2097152, 0.262144, 0.32768,
         0.4096, 0.512, 0.64, 0.8, 1], rel=1e-9,
    )  # fmt: skip
    stages = (1, 2, 3)
    merging = [of[f"stages.{stage}.downsample.conv2.conv.weight"]["lr_scale"] for stage in stages]
    assert merging == pytest.approx([0.1073741824, 0.16777216, 0.64], rel=1e-9)
    assert of["patch_embed.conv1.conv.weight"]["lr_scale"] == scales[0]
    assert of["stages.0.blocks.0.conv1.conv.weight"]["lr_scale"] == scales[0]
    for name in ("head.fc.weight", "head.norm.weight", "stages.3.blocks.1.mlp.fc2.weight"):
        assert of[name]["lr_scale"] == 1
    decayed = [p for group in groups if group["weight_decay"] for p in group["params"]]
    others = [p for group in groups if not group["weight_decay"] for p in group["params"]]
    assert (len(decayed), sum(p.numel() for p in decayed)) == (68, 5_349_888)
    assert (len(others), sum(p.numel() for p in others)) == (147, 42_876)
    assert of["stages.1.blocks.0.local_conv.conv.weight"]["weight_decay"] > 0
    assert of["stages.1.blocks.0.attn.attention_biases"]["weight_decay"] == 0


def test_drop_path_reaches_every_branch():
    encoder = build()
    assert not any(type(module).__name__ == "DropPath" for module in encoder.modules())
    set_drop_path(encoder, [0.1 * block for block in range(5)])
    rates = [
        [m.drop_prob for n, m in block.named_modules() if n.startswith("drop_path") and
         not isinstance(m, nn.Identity)]
        for block in encoder.blocks
    ]  # fmt: skip
    assert rates == [[], [0.1] * 2, [0.2] * 2, pytest.approx([0.3] * 2), [0.4] * 2]
    set_drop_path(encoder, [0.5] * 5)
    assert encoder.blocks[0].drop_path.drop_prob == 0.5
    images = torch.rand(4, 3, 64, 64)
    encoder.blocks[0].train()
    first, second = (encoder(images, taps=(Tap("tokens", 0),)).taps.popitem()[1] for _ in range(2))
    assert not torch.equal(first, second)


def test_parts_of_a_projection_are_head_by_head():
    encoder = build()
    name = "student.model.stages.2.blocks.1.attn.qkv.weight"
    weight = encoder.blocks[3].attn.qkv.weight
    parts = parts_of(encoder)(name, weight)
    assert list(parts) == [f"{name}[{kind}]" for kind in ("queries", "keys", "values")]
    (grad,) = torch.autograd.grad(
        encoder(torch.rand(1, 3, 64, 64), taps=(Tap("values", 3),)).taps.popitem()[1].sum(), weight
    )
    touched = {part: bool(value.any()) for part, value in parts_of(encoder)(name, grad).items()}
    assert list(touched.values()) == [False, False, True]
    before = weight.detach().clone()
    restore = remember(encoder, [f"{name.removeprefix('student.')}[keys]"])
    with torch.no_grad():
        weight += 1
    restore()
    changed = (weight != before).all(1).view(4, 3, 6)
    assert changed[:, (0, 2)].all() and not changed[:, 1].any()


@pytest.mark.parametrize("has_head", [True, False])
def test_a_classifier_with_and_without_an_earlier_one(has_head):
    encoder = build(num_classes=5 if has_head else 0)
    model = with_classifier(encoder, 7, None, seed=0, head_init_std=0.02).eval()
    assert type(model.model.head).__name__ == "NormMlpClassifierHead"
    assert model.facts.num_classes == 7
    images = torch.rand(2, 3, 64, 64)
    assert model(images, taps=(Tap("logits"),)).taps[Tap("logits")].shape == (2, 7)
    own, old = model.model.state_dict(), encoder.model.state_dict()
    # The head's norm, too, as published: a start without its classifier may have trained it.
    kept = [name for name in own if not name.startswith("head.fc.")]
    assert all(torch.equal(own[name], old[name]) for name in kept) and len(kept) > 90
    zero = with_classifier(encoder, 7, None, seed=0, head_init_std=0.0)
    assert not zero.model.head.fc.weight.any() and not zero.model.head.fc.bias.any()


def test_a_classifier_for_larger_images_has_larger_tables():
    encoder = build()
    model = with_classifier(encoder, 5, None, seed=0, img_size=128)
    assert [block.window_size for block in model.blocks[1:]] == [8, 8, 8, 4]
    assert model.blocks[4].attn.attention_biases.shape == (4, 16)
    assert torch.equal(
        model.blocks[1].attn.attention_biases, encoder.blocks[1].attn.attention_biases
    )
    model(torch.rand(1, 3, 128, 128), taps=(Tap("logits"),))


def test_a_fresh_student_starts_as_published():
    options = StudentOptions(name="tiny_vit_5m", img_size=32)
    student, twin = build_student(options, seed=0), build_student(options, seed=0)
    assert all(map(torch.equal, student.state_dict().values(), twin.state_dict().values()))
    block = student.blocks[0]
    assert not block.conv3.bn.weight.any() and block.conv1.bn.weight.eq(1).all()
    attn = student.blocks[2].attn
    assert 0.018 < attn.qkv.weight.std() < 0.022 and not attn.attention_biases.any()
    assert describe_positions(student) == "other"
    for option in ("embed_dim", "depth", "patch_size"):
        with pytest.raises(UserError, match=f"built of stages, so {option} can't be set"):
            build_student(StudentOptions(name="tiny_vit_5m", **{option: 16}), seed=0)


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_as_a_teacher_in_lower_precision(precision):
    encoder, images = build(), torch.rand(2, 3, 64, 64)
    taps = (Tap("scores", 2), Tap("tokens", 0), Tap("logits"))
    expected = encoder(images, taps=taps).taps
    found = Teacher(deepcopy(encoder), torch.device("cpu"), precision)(images, None, taps).taps
    for tap in taps:
        torch.testing.assert_close(found[tap].float(), expected[tap], atol=0.05, rtol=0.05)


def test_timm_builds_the_same_shape():
    """Any shape that timm's class takes comes back from its record."""
    other = {"mlp_ratio": 2.0, "mbconv_expand_ratio": 3.0, "window_sizes": [1, 2, 4, 2]}
    encoder = build(**other)
    again = build_encoder(encoder.facts.architecture)
    assert again.facts == encoder.facts
    model = timm.create_model(
        "tiny_vit_5m_224",
        **SMALL,
        mlp_ratio=2.0,
        mbconv_expand_ratio=3.0,
        window_sizes=[1, 2, 4, 2],
    )
    model.load_state_dict(encoder.model.state_dict())


def test_stages_that_do_not_agree_are_refused():
    architecture = architecture_of("tiny-vit")
    architecture["kwargs"] = architecture["kwargs"] | {"num_heads": [1, 2]}
    with pytest.raises(UserError, match="give as many of all"):
        build_encoder(architecture)
