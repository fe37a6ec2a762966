"""Classifiers: what is carried over, what starts afresh, and what can't become one."""

import pytest
import torch

from limbeck.errors import UserError
from limbeck.models.build import build_student
from limbeck.models.heads import with_classifier
from limbeck.models.options import StudentOptions
from limbeck.models.vit import build_encoder
from limbeck.ops.pos_embed import interpolate_pos_embed
from limbeck.records import Tap
from tests.models.families import architecture_of, small_encoder

SMALL = StudentOptions(
    name="vit_tiny", img_size=32, patch_size=8, embed_dim=32, depth=3, num_heads=2
)
IMAGES = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("global_pool", ["avg", "token"])
def test_classifier_carries_the_encoder_over(global_pool):
    student = build_student(SMALL, seed=0)
    student.set_num_heads(-1, 4)
    model = with_classifier(student, 7, global_pool, seed=1)
    own, weights = model.state_dict(), student.state_dict()
    dropped = {"model.norm.weight", "model.norm.bias"} if global_pool == "avg" else set()
    assert weights.keys() - own.keys() == dropped
    assert all(torch.equal(own[name], weights[name]) for name in weights.keys() - dropped)
    assert model.facts.num_heads == (2, 2, 4)
    assert model.facts.num_classes == 7
    assert model.facts.origin == student.facts.origin
    assert model.model.head.bias.eq(0).all()
    assert 1e-5 < model.model.head.weight.std() < 3e-5
    logits = model(IMAGES, taps=(Tap("logits"),)).taps[Tap("logits")]
    stream = student(IMAGES, taps=(Tap("tokens"),)).taps[Tap("tokens")]
    if global_pool == "avg":
        pooled = torch.nn.functional.layer_norm(stream[:, 1:].mean(1), (32,), eps=1e-6)
    else:
        pooled = torch.nn.functional.layer_norm(stream, (32,), eps=1e-6)[:, 0]
    torch.testing.assert_close(logits, pooled @ model.model.head.weight.T)
    again = with_classifier(student, 7, global_pool, seed=1)
    assert torch.equal(again.model.head.weight, model.model.head.weight)


@pytest.mark.parametrize("head", ["distilled", "tinymim-star"])
def test_a_plain_student_gets_a_distillation_token_and_a_second_head(head):
    student = build_student(SMALL, seed=0)
    student.set_num_heads(-1, 4)
    with torch.no_grad():
        student.model.pos_embed += 0.5
    model = with_classifier(student, 7, None, seed=1, head=head)
    facts = model.facts
    assert (facts.num_prefix_tokens, facts.num_classes, facts.has_dist_head) == (2, 7, True)
    assert facts.num_heads == (2, 2, 4)
    assert facts.origin == student.facts.origin
    own, weights = model.model.state_dict(), student.model.state_dict()
    kept = weights.keys() & own.keys() - {"pos_embed"}
    dropped = {"norm.weight", "norm.bias"} if head == "tinymim-star" else set()
    assert weights.keys() - kept == {"pos_embed"} | dropped
    assert all(torch.equal(own[name], weights[name]) for name in kept)
    # The new row of positions is the class token's.
    assert torch.equal(own["pos_embed"][:, 1:], weights["pos_embed"])
    assert torch.equal(own["pos_embed"][:, 0], weights["pos_embed"][:, 0])
    assert 0.01 < own["dist_token"].std() < 0.03
    for name in ("head", "head_dist"):
        assert 1e-5 < own[f"{name}.weight"].std() < 3e-5
        assert own[f"{name}.bias"].eq(0).all()
    assert not torch.equal(own["head.weight"], own["head_dist.weight"])
    assert all(parameter.requires_grad for parameter in model.parameters())
    again = with_classifier(student, 7, None, seed=1, head=head).model.state_dict()
    assert all(torch.equal(own[name], again[name]) for name in own)


@pytest.mark.parametrize("head", ["distilled", "tinymim-star"])
def test_two_heads_are_fine_tuned_again_at_another_size_and_head_count(head):
    first = with_classifier(build_student(SMALL, seed=0), 3, None, seed=0, head=head)
    second = with_classifier(first, 9, None, seed=0, num_heads=4, img_size=48)
    assert second.facts.num_heads == (4, 4, 4)
    assert second.model.head_dist.weight.shape[0] == 9
    own, weights = second.model.state_dict(), first.model.state_dict()
    assert torch.equal(own["dist_token"], weights["dist_token"])
    expected = interpolate_pos_embed(weights["pos_embed"], 2, (4, 4), (6, 6))
    torch.testing.assert_close(own["pos_embed"], expected)


def test_a_finished_classifier_becomes_a_tinymim_star_with_a_fresh_norm():
    first = with_classifier(build_student(SMALL, seed=0), 3, "avg", seed=0)
    second = with_classifier(first, 3, None, seed=0, head="tinymim-star")
    assert second.model.fc_norm.weight.shape == (1280,)


@pytest.mark.parametrize("head", ["single", "distilled"])
def test_a_finished_classifier_that_pools_tokens_gets_its_final_norm_afresh(head):
    first = with_classifier(build_student(SMALL, seed=0), 3, "avg", seed=0)
    with torch.no_grad():
        first.model.fc_norm.weight.fill_(2.0)
    second = with_classifier(first, 3, "token", seed=0, head=head)
    own, weights = second.model.state_dict(), first.model.state_dict()
    assert own["norm.weight"].eq(1).all() and own["norm.bias"].eq(0).all()
    assert not any(name.startswith("fc_norm") for name in own)
    for name in weights.keys() & own.keys() - {"pos_embed", "head.weight"}:
        assert torch.equal(own[name], weights[name]), name
    assert second(IMAGES, taps=(Tap("logits"),)).taps[Tap("logits")].isfinite().all()


@pytest.mark.parametrize(
    ("family", "head", "pool", "message"),
    [
        ("mae", "tinymim-star", "token", "A tinymim-star head has only avg pooling, not token"),
        ("mae", "distilled", "avg", "A distilled head has only token pooling, not avg"),
        ("deit-distilled", "single", None, "heads of kind distilled, which can't become single"),
        ("tinymim-star", "distilled", None, "which can't become distilled; leave --head out"),
        ("deit-distilled", None, "avg", "has only token pooling, not avg; leave --global-pool out"),
        ("siglip", "distilled", None, "Only a plain ViT with a class token"),
        ("dinov2-registers-swiglu", "tinymim-star", None, "Only a plain ViT with a class token"),
        ("post-norm", "distilled", None, "Only a plain ViT with a class token"),
        ("clip", "distilled", None, "Only a plain ViT with a class token"),
        ("beit", "tinymim-star", None, "Only a plain ViT with a class token"),
        ("qk-norm", "tinymim-star", None, "blocks.0.attn.k_norm.bias"),
    ],
)
def test_heads_that_an_encoder_can_not_have_are_refused(family, head, pool, message):
    with pytest.raises(UserError) as caught:
        with_classifier(small_encoder(family), 3, pool, seed=0, head=head)
    assert message in str(caught.value)


def test_classifier_with_other_heads_and_image_size(caplog):
    student = build_student(SMALL, seed=0)
    student.set_num_heads(-1, 4)
    with caplog.at_level("INFO", "limbeck"):
        with_classifier(student, 3, "avg", seed=0, img_size=32)
        assert not caplog.messages
        model = with_classifier(student, 3, "avg", seed=0, num_heads=8, img_size=48)
    assert caplog.messages == ["Positions interpolated from 4 x 4 to 6 x 6 patches."]
    assert model.facts.num_heads == (8, 8, 8)
    assert model.facts.grid == (6, 6)
    expected = interpolate_pos_embed(student.model.pos_embed, 1, (4, 4), (6, 6))
    torch.testing.assert_close(model.model.pos_embed, expected)
    assert model.model.pos_embed.requires_grad
    assert model(torch.rand(1, 3, 48, 48)).tokens.shape == (1, 37, 32)


def test_classifier_replaces_an_old_head_and_keeps_its_norm():
    first = with_classifier(build_student(SMALL, seed=0), 3, "avg", seed=0)
    with torch.no_grad():
        first.model.fc_norm.weight.fill_(2.0)
    second = with_classifier(first, 9, "avg", seed=0)
    assert second.model.fc_norm.weight.eq(2).all()
    assert second.model.head.weight.shape == (9, 32)


@pytest.mark.parametrize("family", ["deit3", "dinov3", "rope-mixed", "siglip", "eva02-split-qkv"])
def test_classifiers_of_other_families_take_another_image_size(family):
    encoder = small_encoder(family)
    model = with_classifier(encoder, 3, "avg", seed=0, img_size=48)
    images = torch.rand(2, 3, 48, 48)
    assert model(images, taps=(Tap("logits"),)).taps[Tap("logits")].shape == (2, 3)
    for name in ("patch_embed.proj.weight", "blocks.1.mlp.fc2.bias"):
        assert torch.equal(model.model.state_dict()[name], encoder.model.state_dict()[name])


def test_classifier_of_position_tables_that_can_not_be_resized_is_refused():
    architecture = architecture_of("beit")
    architecture["kwargs"] |= {"img_size": [32, 48]}
    with pytest.raises(UserError, match=r"relative_position_bias_table.*keep the image size"):
        with_classifier(build_encoder(architecture), 3, "token", seed=0, img_size=48)


@pytest.mark.parametrize("family", ["beit", "beit2-shared-bias", "beit-qkv-bias"])
def test_tables_of_relative_positions_take_another_image_size(family):
    encoder = small_encoder(family)
    model = with_classifier(encoder, 3, "avg", seed=0, img_size=48)
    assert model(torch.rand(2, 3, 48, 48)).tokens.shape == (2, 37, 32)
    own, weights = model.model.state_dict(), encoder.model.state_dict()
    tables = [name for name in own if name.endswith("relative_position_bias_table")]
    assert tables
    for name in tables:
        # The three of the class token stay, and so does the middle: the distance of nothing.
        assert torch.equal(own[name][-3:], weights[name][-3:])
        torch.testing.assert_close(own[name][121 // 2], weights[name][49 // 2])
