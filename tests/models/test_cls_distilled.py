"""The class token as a distillation token: its end written out, and its way from a plain ViT."""

import pytest
import torch
from torch.nn import functional as F

from limbeck.errors import UserError
from limbeck.models.build import build_student
from limbeck.models.cls_distilled import ClsDistilledVit
from limbeck.models.heads import with_classifier
from limbeck.models.options import StudentOptions
from limbeck.records import Tap
from tests.models.families import small_encoder, small_images

SMALL = StudentOptions(
    name="vit_tiny", img_size=32, patch_size=8, embed_dim=32, depth=3, num_heads=2
)
LOGITS = tuple(Tap(kind) for kind in ("class_logits", "dist_logits", "logits"))


def test_the_patches_and_the_class_token_have_a_norm_and_a_head_each():
    encoder = small_encoder("cls-distilled")
    taps = encoder(small_images(), taps=(Tap("tokens"), *LOGITS)).taps
    w, x = encoder.model.state_dict(), taps[Tap("tokens")]

    def classify(x, norm, head):
        x = F.layer_norm(x, (32,), w[f"{norm}.weight"], w[f"{norm}.bias"], 1e-6)
        return x @ w[f"{head}.weight"].T + w[f"{head}.bias"]

    of_class = classify(x[:, 1:].mean(1), "fc_norm", "head")
    of_dist = classify(x[:, 0], "dist_norm", "head_dist")
    expected = (of_class, of_dist, (of_class + of_dist) / 2)
    for tap, value in zip(LOGITS, expected, strict=True):
        torch.testing.assert_close(taps[tap], value)
    normed = (small_images() - encoder.mean) / encoder.std
    torch.testing.assert_close(encoder.model(normed), expected[2])


def test_a_plain_student_gets_the_second_head_and_both_norms_afresh():
    student = build_student(SMALL, seed=0)
    student.set_num_heads(-1, 4)
    model = with_classifier(student, 7, None, seed=1, head="cls-distilled", head_init_std=0.02)
    facts = model.facts
    assert (facts.num_prefix_tokens, facts.num_classes, facts.has_dist_head) == (1, 7, True)
    assert facts.num_heads == (2, 2, 4)
    own, weights = model.model.state_dict(), student.model.state_dict()
    assert weights.keys() - own.keys() == {"norm.weight", "norm.bias"}
    assert all(torch.equal(own[name], weights[name]) for name in weights.keys() & own.keys())
    added = {f"{part}.{kind}" for part in ("fc_norm", "dist_norm", "head", "head_dist")
             for kind in ("weight", "bias")}  # fmt: skip
    assert own.keys() - weights.keys() == added
    for name in ("head", "head_dist"):
        assert 0.015 < own[f"{name}.weight"].std() < 0.025 and own[f"{name}.bias"].eq(0).all()
    assert not torch.equal(own["head.weight"], own["head_dist.weight"])
    assert model.layer_id("model.dist_norm.weight") == model.layer_id("head_dist.bias") == 4


def test_of_a_mean_pooled_classifier_the_norm_of_the_mean_is_kept():
    first = with_classifier(build_student(SMALL, seed=0), 3, "avg", seed=0)
    with torch.no_grad():
        first.model.fc_norm.weight.fill_(2.0)
    second = with_classifier(first, 3, None, seed=0, head="cls-distilled")
    assert second.model.fc_norm.weight.eq(2).all()
    assert second.model.dist_norm.weight.eq(1).all()


def test_it_is_fine_tuned_again_at_another_size():
    first = with_classifier(build_student(SMALL, seed=0), 3, None, seed=0, head="cls-distilled")
    with torch.no_grad():
        first.model.dist_norm.weight.fill_(2.0)
    second = with_classifier(first, 9, None, seed=0, img_size=48)
    assert isinstance(second.model, ClsDistilledVit)
    assert second.model.head_dist.weight.shape == (9, 32) and second.facts.grid == (6, 6)
    assert second.model.dist_norm.weight.eq(2).all()
    with pytest.raises(UserError, match="heads of kind cls-distilled, which can't become distill"):
        with_classifier(first, 3, None, seed=0, head="distilled")


def test_it_pools_by_the_mean_alone_and_can_be_without_heads():
    with pytest.raises(UserError, match="has only avg pooling, not token"):
        with_classifier(build_student(SMALL, seed=0), 3, "token", seed=0, head="cls-distilled")
    with pytest.raises(ValueError, match="the class head reads the mean"):
        ClsDistilledVit(global_pool="token")
    model = ClsDistilledVit(img_size=32, patch_size=8, embed_dim=32, depth=1, num_heads=2)
    assert all(head.weight.shape == (1000, 32) for head in model.get_classifier())
    model.reset_classifier(0)
    assert all(isinstance(head, torch.nn.Identity) for head in model.get_classifier())
    assert model.forward_head(torch.rand(2, 17, 32), pre_logits=True).shape == (2, 32)
