"""TinyMIM*: published sizes and names, the order of its end, and its place in the contract."""

import pytest
import torch
from torch.nn import functional as F

from limbeck.errors import UserError
from limbeck.models.build import build_student
from limbeck.models.heads import with_classifier
from limbeck.models.options import StudentOptions
from limbeck.models.tinymim_star import TinyMimStar
from limbeck.models.vit import build_encoder
from limbeck.records import Tap
from tests.models.families import architecture_of, small_encoder, small_images

SHAPE = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 4}
LOGITS = tuple(Tap(kind) for kind in ("class_logits", "dist_logits", "logits"))


def published():
    with torch.device("meta"):
        return TinyMimStar(img_size=224, patch_size=16, embed_dim=192, depth=12, num_heads=12)


def test_the_tiny_one_has_the_published_size():
    sizes = {name: value.numel() for name, value in published().named_parameters()}
    ends = ("fc_norm.", "head.", "head_dist.")
    assert sum(n for name, n in sizes.items() if not name.startswith(ends)) == 5_771_840


def test_the_tiny_one_has_the_published_names_and_shapes():
    shapes = {name: tuple(value.shape) for name, value in published().state_dict().items()}
    own = {name: shape for name, shape in shapes.items() if not name.startswith("blocks.")}
    assert len(shapes) - len(own) == 12 * 12
    assert own == {
        "cls_token": (1, 1, 192),
        "dist_token": (1, 1, 192),
        "pos_embed": (1, 198, 192),
        "patch_embed.proj.weight": (192, 3, 16, 16),
        "patch_embed.proj.bias": (192,),
        "conv1x1.0.weight": (192,),
        "conv1x1.0.bias": (192,),
        "conv1x1.1.weight": (1280, 192),
        "conv1x1.1.bias": (1280,),
        "fc_norm.weight": (1280,),
        "fc_norm.bias": (1280,),
        "head.weight": (1000, 1280),
        "head.bias": (1000,),
        "head_dist.weight": (1000, 1280),
        "head_dist.bias": (1000,),
    }


@pytest.mark.parametrize("family", ["tinymim-star", "tinymim-star-narrow-norm"])
def test_the_end_is_wide_layer_pooling_norm_and_two_heads(family):
    """Written out; a norm as narrow as the blocks comes before the wide layer instead."""
    encoder = small_encoder(family)
    taps = encoder(small_images(), taps=(Tap("tokens"), Tap("output"), *LOGITS)).taps
    w = encoder.model.state_dict()

    def norm(name, x, eps):
        return F.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"], eps)

    def linear(name, x):
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    x, is_narrow = taps[Tap("tokens")], family.endswith("narrow-norm")
    if is_narrow:
        x = norm("fc_norm", x, 1e-6)
    x = linear("conv1x1.1", norm("conv1x1.0", x, 1e-5))
    x = x * 0.5 * (1 + torch.erf(x / 2**0.5))
    torch.testing.assert_close(taps[Tap("output")], x)
    assert x.shape == (2, 18, 40)
    of_class, of_dist = x[:, 2:].mean(1), x[:, 1]
    if not is_narrow:
        of_class, of_dist = (norm("fc_norm", y, 1e-6) for y in (of_class, of_dist))
    expected = linear("head", of_class), linear("head_dist", of_dist)
    for tap, value in zip(LOGITS, (*expected, sum(expected) / 2), strict=True):
        torch.testing.assert_close(taps[tap], value)


def test_facts_say_both_widths():
    facts = small_encoder("tinymim-star").facts
    assert (facts.embed_dim, facts.output_dim) == (32, 40)
    assert (facts.num_prefix_tokens, facts.has_cls_token, facts.has_dist_head) == (2, True, True)
    assert small_encoder("augreg").facts.output_dim == 32


def test_without_classes_it_offers_no_logits():
    architecture = architecture_of("tinymim-star")
    architecture["kwargs"]["num_classes"] = 0
    encoder = build_encoder(architecture)
    assert "logits" not in encoder.offered_taps()
    assert not encoder.facts.has_dist_head
    assert encoder(small_images()).tokens.shape == (2, 18, 40)


def test_timms_ways_to_use_it_work():
    model = TinyMimStar(**SHAPE, num_classes=5, out_dim=40)
    assert model.forward_head(torch.rand(2, 18, 40), pre_logits=True).shape == (2, 40)
    model.reset_classifier(7)
    assert model(small_images()).shape == (2, 7)
    assert model.get_classifier() == (model.head, model.head_dist)
    model.reset_classifier(0)
    assert model.num_classes == 0 and len(list(model.head.parameters())) == 0


def test_a_norm_that_fits_nowhere_is_refused():
    architecture = architecture_of("tinymim-star")
    architecture["kwargs"]["fc_norm_dim"] = 36
    with pytest.raises(UserError, match="fc_norm is 36 wide, neither 40 as the classifiers nor 32"):
        build_encoder(architecture)


def test_parts_after_the_blocks_learn_at_the_last_layers_rate():
    encoder = small_encoder("tinymim-star")
    assert encoder.layer_id("dist_token") == encoder.layer_id("pos_embed") == 0
    for name in ("conv1x1.1.weight", "fc_norm.bias", "head.weight", "head_dist.weight"):
        assert encoder.layer_id(name) == encoder.facts.depth + 1


def test_other_widths_depths_and_head_counts_become_one_too():
    options = StudentOptions(
        name="vit_small", img_size=48, patch_size=16, embed_dim=64, depth=3, num_heads=2
    )
    model = with_classifier(build_student(options, seed=0), 4, None, seed=0, head="tinymim-star")
    assert model.facts.grid == (3, 3) and model.facts.depth == 3
    assert model.model.conv1x1[1].weight.shape == (1280, 64)
    assert model(torch.rand(1, 3, 48, 48), taps=LOGITS).taps[LOGITS[2]].shape == (1, 4)


def test_another_pooling_is_refused():
    with pytest.raises(ValueError, match="reads the mean"):
        TinyMimStar(global_pool="token", img_size=32, embed_dim=16, depth=1, num_heads=2)
