"""Relative positions at fine-tuning: the published sizes and index, and what the weights become."""

import pytest
import torch

from limbeck.engine.optim import param_groups
from limbeck.errors import UserError
from limbeck.models.build import build_student
from limbeck.models.heads import with_classifier
from limbeck.models.options import StudentOptions
from limbeck.models.rel_pos import can_have_rel_pos, with_rel_pos
from limbeck.models.vit import VitEncoder
from limbeck.recipes.run.options import FinetuneConfig
from limbeck.recipes.train.tuning import build_classifier
from limbeck.records import Tap
from tests.models.families import FAMILIES, small_encoder

SMALL = StudentOptions(
    name="vit_tiny", img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=2
)
LOGITS = Tap("logits")


def small_classifier(global_pool="avg", **shape):
    """Every weight disturbed: fresh ones are often 0 or 1."""
    student = build_student(StudentOptions(**vars(SMALL) | shape), seed=0)
    model = with_classifier(student, 3, global_pool, seed=0).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return model


@pytest.mark.parametrize(
    ("rel_pos", "layer_scale", "count"),
    [
        ("qkv-bias", 0.0, 5_822_824),  # 2025: 79.4 %
        ("qkv-bias", 0.1, 5_827_432),
        ("qv-bias", 0.1, 5_825_128),  # 2023: 79.0 %
        ("qv-bias", 0.0, 5_820_520),
    ],
)
def test_vit_tiny_has_the_published_size_tables_and_index(rel_pos, layer_scale, count):
    config = FinetuneConfig(
        student="vit_tiny", num_heads=12, rel_pos=rel_pos, layer_scale=layer_scale
    )
    model = build_classifier(config, 1000)
    assert sum(parameter.numel() for parameter in model.parameters()) == count
    for block in model.model.blocks:
        assert block.attn.relative_position_bias_table.shape == (732, 12)
        assert block.attn.relative_position_bias_table.eq(0).all()
        if layer_scale:
            assert block.gamma_1.eq(0.1).all() and block.gamma_2.eq(0.1).all()
        else:
            assert block.gamma_1 is None and block.gamma_2 is None
    index = model.model.blocks[0].attn.relative_position_index - 0  # the class token comes first
    assert (index[1, 1], index[1, 196], index[196, 1]) == (364, 0, 728)
    assert (index[0, 1:] == 729).all() and (index[1:, 0] == 730).all() and index[0, 0] == 731


@pytest.mark.parametrize("global_pool", ["avg", "token"])
def test_without_its_scales_it_says_what_the_plain_one_says(global_pool):
    plain = small_classifier(global_pool)
    made = with_rel_pos(plain, "qkv-bias", 0.1)
    images = torch.rand(2, 3, 32, 32)

    def say(model):
        return model(images, taps=(LOGITS,)).taps[LOGITS]

    bare = with_rel_pos(plain, "qkv-bias")
    torch.testing.assert_close(say(bare), say(plain), atol=1e-5, rtol=1e-5)
    assert not torch.allclose(say(made), say(plain), atol=1e-3)
    with torch.no_grad():
        for block in made.model.blocks:
            block.gamma_1.fill_(1), block.gamma_2.fill_(1)
    torch.testing.assert_close(say(made), say(plain), atol=1e-5, rtol=1e-5)
    with torch.no_grad():
        made.model.blocks[0].attn.relative_position_bias_table[-1] = 3.0
    assert not torch.allclose(say(made), say(plain), atol=1e-4)


def test_which_biases_load():
    plain = small_classifier()
    weights = plain.model.state_dict()
    own = with_rel_pos(plain, "qkv-bias").model.state_dict()
    assert all(torch.equal(own[name], value) for name, value in weights.items())
    made = with_rel_pos(plain, "qv-bias")
    own = made.model.state_dict()
    assert {name for name in weights if name not in own} == {
        "blocks.0.attn.qkv.bias",
        "blocks.1.attn.qkv.bias",
    }
    assert own["blocks.0.attn.q_bias"].eq(0).all() and own["blocks.1.attn.v_bias"].eq(0).all()
    assert made.facts.architecture["kind"] == "timm"


def test_the_table_is_decayed_and_belongs_to_its_block():
    model = with_rel_pos(small_classifier(), "qkv-bias", 0.1)
    options = FinetuneConfig().optim
    groups = {
        id(parameter): group
        for group in param_groups(model, options, model.layer_id, 2)
        for parameter in group["params"]
    }
    for name, layer, is_decayed in (
        ("pos_embed", 0, False),
        ("cls_token", 0, False),
        ("blocks.1.attn.relative_position_bias_table", 2, True),
        ("blocks.1.gamma_1", 2, False),
        ("blocks.1.attn.qkv.bias", 2, False),
        ("fc_norm.weight", 3, False),
    ):
        group = groups[id(model.model.get_parameter(name))]
        assert group["lr_scale"] == options.layer_decay ** (3 - layer), name
        assert (group["weight_decay"] > 0) == is_decayed, name
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_the_caller_s_random_state_stays():
    plain = small_classifier()
    before = torch.get_rng_state()
    with_rel_pos(plain, "qkv-bias")
    assert torch.equal(before, torch.get_rng_state())


def test_what_is_no_plain_vit_is_refused():
    plain = small_classifier()
    with pytest.raises(UserError, match="rel_pos needs a plain ViT.*beit_qkv_bias is none"):
        with_rel_pos(with_rel_pos(plain, "qkv-bias"), "qkv-bias")
    two = with_classifier(build_student(SMALL, seed=0), 3, None, seed=0, head="cls-distilled")
    with pytest.raises(UserError, match="one classifier, and vit_cls_distilled is none"):
        with_rel_pos(two, "qv-bias")
    plain.set_num_heads(-1, 4)
    with pytest.raises(
        UserError, match=r"same head count in all blocks, which have 2, 4; set --nu"
    ):
        with_rel_pos(plain, "qkv-bias")
    scaled = StudentOptions(**vars(SMALL) | {"name": "deit3_small_patch16_224", "num_heads": 2})
    other = with_classifier(build_student(scaled, seed=0), 3, "avg", seed=0)
    with pytest.raises(UserError, match="rel_pos"):
        with_rel_pos(other, "qkv-bias")


def test_it_is_in_training_or_evaluation_as_the_classifier_was():
    classifier = small_classifier()
    assert not with_rel_pos(classifier, "qkv-bias").model.training
    assert with_rel_pos(classifier.train(), "qkv-bias").model.training


@pytest.mark.parametrize("family", FAMILIES)
def test_who_can_have_them_is_known_before(family):
    encoder = small_encoder(family)
    if can_have_rel_pos(encoder):
        assert with_rel_pos(encoder, "qkv-bias", 1.0).facts.has_position_bias
    elif isinstance(encoder, VitEncoder):
        with pytest.raises(UserError):
            with_rel_pos(encoder, "qkv-bias", 1.0)


def test_plain_ones_can():
    can = {family for family in FAMILIES if can_have_rel_pos(small_encoder(family))}
    assert {"augreg", "mae", "mean-pooled"} <= can
    assert not {"beit", "dinov2", "eva", "swin", "hiera", "qk-norm", "hybrid"} & can
