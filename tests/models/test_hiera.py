"""Hiera: published counts and geometry, timm's own intermediates, units dropped in any order."""

import pytest
import torch

from limbeck.errors import UserError
from limbeck.models.build import build_student, describe_positions, init_student
from limbeck.models.heads import with_classifier
from limbeck.models.options import StudentOptions
from limbeck.models.vit import build_encoder
from limbeck.records import Tap
from tests.models.families import architecture_of, small_encoder, small_images


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.fixture(scope="module")
def student():
    with torch.device("meta"):
        return build_student(StudentOptions(name="hiera_46"), seed=0)


def test_counts_of_the_study(student):
    with torch.device("meta"):
        classifier = with_classifier(student, 1000, None, seed=0)
        assert count(classifier) == 6_694_966
        official = {"kind": "timm", "name": "hiera_tiny_224", "kwargs": {"num_classes": 1000}}
        assert (
            count(build_encoder(official | {"mean": (0.5,) * 3, "std": (0.5,) * 3})) == 27_910_216
        )
    assert count(classifier) - classifier.model.pos_embed.numel() == 6_550_710
    assert count(student) == 6_325_966  # the norm of the head stays


def test_geometry_of_the_study(student):
    facts = student.facts
    assert facts.grid == (14, 14) and facts.mask_grid == (7, 7) and facts.mask_unit == 32
    assert facts.input_grid == (56, 56)
    assert facts.global_blocks == (4, 5, 6, 7, 8, 9, 10, 11)  # one block after the stage begins
    assert facts.block_dims == (46, 92, 92, *[184] * 7, 368, 368)
    assert facts.input_dims == (46, 46, 92, 92, *[184] * 7, 368)
    assert facts.block_strides == (4, 8, 8, *[16] * 9)
    assert facts.num_heads == (1, 2, 2, *[4] * 7, 8, 8)
    with torch.device("meta"):
        assert with_classifier(student, 10, None, seed=0).facts.grid == (7, 7)
        kept = torch.zeros(2, 29, dtype=torch.long)
        features = student(torch.rand(2, 3, 224, 224), kept, (Tap("scores"), Tap("output")))
    assert features.tokens.shape == (2, 116, 368)
    assert features.taps[Tap("scores")].shape == (2, 8, 116, 116)


@pytest.mark.parametrize("family", ["hiera", "hiera-pooled", "hiera-windowed-positions"])
def test_tokens_are_timms_intermediates_in_rows(family):
    encoder = small_encoder(family)
    images = small_images()
    normalised = (images - encoder.mean) / encoder.std
    own = encoder.model.forward_intermediates(normalised, coarse=False, intermediates_only=True)
    taps = tuple(Tap("tokens", block) for block in range(encoder.facts.depth))
    for tap, tokens in encoder(images, taps=taps).taps.items():
        torch.testing.assert_close(tokens, own[tap.block].flatten(2).mT)


def test_units_dropped_in_timms_order_are_timms_own():
    encoder = small_encoder("hiera")
    images, kept = small_images(), torch.tensor([[0, 2], [1, 3]])
    is_kept = torch.zeros(2, 4, dtype=torch.bool).scatter(1, kept, True)
    normalised = (images - encoder.mean) / encoder.std
    own = encoder.model.forward_intermediates(
        normalised, mask=is_kept, coarse=False, intermediates_only=True, output_fmt="NHWC"
    )
    taps = tuple(Tap("tokens", block) for block in range(encoder.facts.depth))
    for tap, tokens in encoder(images, kept, taps).taps.items():
        torch.testing.assert_close(tokens, own[tap.block].flatten(1, -2))


@pytest.mark.parametrize("family", ["hiera", "hiera-pooled"])
def test_scores_are_those_before_the_models_own_softmax(family):
    encoder = small_encoder(family)
    for module in encoder.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = False
    block = encoder.facts.global_blocks[-1]
    attn = encoder.blocks[block].attn
    read, values, tokens = (Tap(kind, block) for kind in ("scores", "values", "attention_output"))
    found = encoder(small_images(), taps=(read, values, tokens)).taps
    mixed = found[read].softmax(-1) @ found[values]
    torch.testing.assert_close(attn.proj(mixed.transpose(1, 2).flatten(2)), found[tokens])


def test_the_classifier_gives_logits_in_evaluation_mode():
    logits = small_encoder("hiera")(small_images(), taps=(Tap("logits"),)).taps[Tap("logits")]
    assert (logits < 0).any() or (logits.sum(-1) - 1).abs().max() > 1e-3


def test_heads_are_set_and_kept_through_a_record():
    encoder = small_encoder("hiera")
    encoder.set_num_heads(-1, 4)
    assert encoder.facts.num_heads == (2, 4, 8, 4)
    attn = encoder.blocks[-1].attn
    assert (attn.head_dim, attn.scale) == (16, 0.25)
    assert (
        encoder(small_images(), taps=(Tap("queries", -1, 4),)).taps[Tap("queries", -1, 4)].shape[1]
        == 4
    )
    twin = build_encoder(encoder.facts.architecture).eval()
    twin.load_state_dict(encoder.state_dict())
    assert torch.equal(twin(small_images()).tokens, encoder(small_images()).tokens)


def test_the_start_is_maes_but_for_learned_positions():
    encoder = build_student(
        StudentOptions(name="hiera_46", img_size=64, embed_dim=8, mlp_ratio=1), seed=0
    )
    bound = (6 / (8 + 24)) ** 0.5
    assert 0.9 * bound < encoder.model.blocks[0].attn.qkv.weight.abs().max() <= bound
    assert encoder.model.blocks[0].attn.qkv.bias.eq(0).all()
    assert describe_positions(encoder) == "learned"
    positions = encoder.model.pos_embed
    assert positions.requires_grad and 0.015 < positions.std() < 0.025
    before = positions.clone()
    init_student(encoder.model)
    assert torch.equal(encoder.model.pos_embed, before)


def test_blocks_without_global_attention_and_odd_sizes_are_refused():
    encoder = small_encoder("hiera")
    with pytest.raises(UserError, match="Block 0 of the encoder attends within windows.*: 3"):
        encoder(small_images(), taps=(Tap("scores", 0),))
    architecture = architecture_of("hiera")
    architecture["kwargs"] = architecture["kwargs"] | {"img_size": 40}
    with pytest.raises(UserError, match="40 x 40 pixels do not divide into the mask units"):
        build_encoder(architecture)


def test_a_classifier_is_of_the_weights_at_another_size_and_pooling():
    encoder = build_student(
        StudentOptions(name="hiera_46", img_size=64, embed_dim=8, mlp_ratio=1), seed=0
    )
    classifier = with_classifier(encoder, 3, None, seed=0, img_size=96)
    assert classifier.facts.grid == (3, 3) and classifier.facts.input_grid == (24, 24)
    assert with_classifier(encoder, 3, None, seed=0, q_pool=2).facts.grid == (4, 4)
    for name, value in encoder.model.blocks.state_dict().items():
        assert torch.equal(classifier.model.blocks.state_dict()[name], value)
    with torch.no_grad():
        classifier.model.head.norm.weight.fill_(2.0)
    again = with_classifier(classifier, 5, None, seed=0)
    assert again.model.head.norm.weight.eq(2).all()  # trained, so kept
    with torch.no_grad():
        encoder.model.head.norm.weight.fill_(2.0)
    fresh = with_classifier(encoder, 5, None, seed=0)
    assert fresh.model.head.norm.weight.eq(1).all()  # of a decoder, so not
    with pytest.raises(UserError, match="has no class token"):
        with_classifier(encoder, 5, "token", seed=0)
    with pytest.raises(UserError, match="can get a distilled head"):
        with_classifier(encoder, 5, None, seed=0, head="distilled")
