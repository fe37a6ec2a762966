"""Swin: published counts and geometry, timm's own stages, merging, windows and their bias."""

import pytest
import torch

from limbeck.errors import UserError
from limbeck.models.build import build_student, describe_positions
from limbeck.models.heads import with_classifier
from limbeck.models.options import StudentOptions
from limbeck.models.vit import build_encoder
from limbeck.records import Tap
from tests.models.families import architecture_of, small_encoder, small_images


@pytest.fixture(scope="module")
def student():
    with torch.device("meta"):
        return build_student(StudentOptions(name="swin_48"), seed=0)


def test_count_and_geometry_of_the_study(student):
    with torch.device("meta"):
        classifier = with_classifier(student, 1000, None, seed=0)
    assert sum(p.numel() for p in classifier.parameters()) == 7_299_634
    facts = student.facts
    assert facts.grid == (7, 7) and facts.mask_grid == (56, 56) and facts.mask_unit == 4
    assert facts.global_blocks == (10, 11)  # one window of 7 x 7, unshifted
    assert facts.num_heads == (3, 3, 6, 6, *[12] * 6, 24, 24)
    assert facts.has_position_bias and not facts.can_drop
    # The third stage begins with 14 x 14 merged tokens.
    assert facts.tap_dim(Tap("block_input", 4)) == 192
    assert facts.tap_stride(Tap("block_input", 4)) == 16
    taps = (Tap("scores"), Tap("block_input", 4), Tap("tokens", 3))
    with torch.device("meta"):
        found = student(torch.rand(2, 3, 224, 224), taps=taps).taps
    shapes = [tuple(found[tap].shape) for tap in taps]
    assert shapes == [(2, 24, 49, 49), (2, 196, 192), (2, 784, 96)]
    norms = [m for m in student.modules() if isinstance(m, torch.nn.LayerNorm)]
    assert {norm.eps for norm in norms} == {1e-5}
    assert describe_positions(student) == "other"


@pytest.mark.parametrize("family", ["swin", "swin-padded"])
def test_stages_are_timms_own(family):
    encoder = small_encoder(family)
    own = encoder.model.forward_intermediates(
        (small_images() - encoder.mean) / encoder.std, intermediates_only=True
    )
    taps = (Tap("tokens", 1), Tap("tokens", 3))
    for stage, tap in enumerate(taps):
        tokens = encoder(small_images(), taps=taps).taps[tap]
        torch.testing.assert_close(tokens, own[stage].flatten(2).mT)


def test_scores_are_those_before_the_models_own_softmax():
    encoder = small_encoder("swin")
    taps = [Tap(kind, 2) for kind in ("scores", "values", "attention_output")]
    scores, values, added = encoder(small_images(), taps=tuple(taps)).taps.values()
    mixed = (scores.softmax(-1) @ values).transpose(1, 2).flatten(2)
    torch.testing.assert_close(encoder.blocks[2].attn.proj(mixed), added)


def test_only_windows_that_cover_all_are_global():
    assert small_encoder("swin").facts.global_blocks == (2, 3)
    padded = small_encoder("swin-padded")
    assert padded.facts.global_blocks == ()
    with pytest.raises(UserError, match="choose a block with global attention: none"):
        padded(small_images(), taps=(Tap("scores"),))


def test_the_mask_token_comes_after_the_norm_of_the_patches():
    encoder = small_encoder("swin")
    token = torch.full((1, 1, 16), 0.25)
    entering = Tap("block_input", 0)
    kept = torch.tensor([[5], [0]])
    tokens = encoder(small_images(), kept, (entering,), token).taps[entering]
    full = encoder(small_images(), taps=(entering,)).taps[entering]
    for sample, place in enumerate((5, 0)):
        assert torch.equal(tokens[sample, place], full[sample, place])
        assert tokens[sample].ne(0.25).any(-1).sum() == 1


def test_merging_learns_as_the_block_before_it(student):
    """The released layers of 2-2-6-2 blocks: merging 2, 4 and 10, head and norm the 13th."""
    of_merging = {
        int(name.split(".")[2]): student.layer_id(name)
        for name, _ in student.named_parameters()
        if ".downsample." in name
    }
    assert of_merging == {1: 2, 2: 4, 3: 10}
    encoder = small_encoder("swin")
    assert encoder.layer_id("layers.1.downsample.reduction.weight") == 2
    assert encoder.layer_id("model.layers.1.blocks.0.norm1.weight") == 3
    assert encoder.layer_id("model.norm.weight") == encoder.layer_id("head.fc.weight") == 5
    with pytest.raises(ValueError, match="no parameter"):
        encoder.layer_id("blocks.0.norm1.weight")


def test_other_heads_and_odd_sizes_are_refused():
    with pytest.raises(UserError, match="relative position bias for each head"):
        small_encoder("swin").set_num_heads(-1, 2)
    architecture = architecture_of("swin")
    architecture["kwargs"] = architecture["kwargs"] | {"img_size": 36}
    with pytest.raises(UserError, match="36 x 36 pixels do not divide.* a multiple of 8"):
        build_encoder(architecture)


def test_a_fresh_student_drops_no_paths_and_starts_as_timms():
    options = StudentOptions(name="swin_48", img_size=64, embed_dim=12, mlp_ratio=1)
    student = build_student(options, seed=0)
    assert not any("DropPath" in type(module).__name__ for module in student.modules())
    assert 0.015 < student.model.layers[3].blocks[0].attn.qkv.weight.std() < 0.025
    twin = build_student(options, seed=0)
    assert all(map(torch.equal, student.state_dict().values(), twin.state_dict().values()))
