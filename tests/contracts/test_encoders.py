"""What every encoder promises, for a small representative of every family."""

import pytest
import torch

from limbeck.errors import UserError
from limbeck.models.vit import TOKEN_KINDS, build_encoder
from limbeck.ops.masking import is_masked
from limbeck.records import HEAD_KINDS, LOGIT_KINDS, Tap
from tests.models.families import CANT_DROP_PATCHES, FAMILIES, small_encoder, small_images

BLOCK_KINDS = (*HEAD_KINDS, *TOKEN_KINDS)
# float32 sums in another order (kept patches, batched rotary tables).
CLOSE = dict(rtol=1e-4, atol=1e-5)

every_family = pytest.mark.parametrize("family", FAMILIES)
every_dropping_family = pytest.mark.parametrize(
    "family", [family for family in FAMILIES if family not in CANT_DROP_PATCHES]
)


def expected_shape(kind, facts, num_tokens):
    heads, dim = facts.num_heads[-1], facts.embed_dim
    return {
        "queries": (2, heads, num_tokens, dim // heads),
        "keys": (2, heads, num_tokens, dim // heads),
        "values": (2, heads, num_tokens, dim // heads),
        "scores": (2, heads, num_tokens, num_tokens),
        **dict.fromkeys(TOKEN_KINDS, (2, num_tokens, dim)),
        "output": (2, num_tokens, facts.output_dim),
        **dict.fromkeys(LOGIT_KINDS, (2, facts.num_classes)),
    }[kind]


@every_family
def test_every_offered_tap_exists_and_fits_the_facts(family):
    encoder = small_encoder(family)
    facts = encoder.facts
    num_tokens = facts.num_prefix_tokens + facts.grid[0] * facts.grid[1]
    taps = tuple(
        Tap(kind, block)
        for kind in encoder.offered_taps()
        for block in (range(facts.depth) if kind in BLOCK_KINDS else (-1,))
    )
    features = encoder(small_images(), taps=taps)
    assert set(features.taps) == set(taps)
    for tap, value in features.taps.items():
        assert tuple(value.shape) == expected_shape(tap.kind, facts, num_tokens), tap
    assert features.grid == facts.grid
    assert features.num_prefix_tokens == facts.num_prefix_tokens
    offered = encoder.offered_taps()
    assert ("logits" in offered) == (facts.num_classes > 0)
    assert facts.has_dist_head == ("class_logits" in offered) == ("dist_logits" in offered)
    if facts.has_dist_head:
        both, of_class, of_dist = (features.taps[Tap(kind)] for kind in LOGIT_KINDS)
        torch.testing.assert_close(both, (of_class + of_dist) / 2)
        assert not torch.equal(of_class, of_dist)


@every_family
def test_plain_forward_is_the_models_own(family):
    encoder = small_encoder(family)
    images = small_images()
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (encoder.facts.mean, encoder.facts.std))
    normalised = (images - mean) / std
    features = encoder(images)
    assert features.taps == {}
    torch.testing.assert_close(features.tokens, encoder.model.forward_features(normalised))
    if encoder.facts.num_classes:
        logits = encoder(images, taps=(Tap("logits"),)).taps[Tap("logits")]
        torch.testing.assert_close(logits, encoder.model(normalised))


@every_dropping_family
def test_keeping_all_patches_in_any_order_is_the_full_forward(family):
    encoder = small_encoder(family)
    images = small_images()
    prefix, grid = encoder.facts.num_prefix_tokens, encoder.facts.grid
    num_patches = grid[0] * grid[1]
    full = encoder(images).tokens
    order = torch.stack([torch.arange(num_patches), torch.randperm(num_patches)])
    kept = encoder(images, ids_keep=order).tokens
    torch.testing.assert_close(kept[:, :prefix], full[:, :prefix], **CLOSE)
    for sample in range(2):
        expected = full[sample, prefix:][order[sample]]
        torch.testing.assert_close(kept[sample, prefix:], expected, **CLOSE)


@every_dropping_family
def test_dropped_patches_are_not_computed_and_have_no_influence(family):
    encoder = small_encoder(family)
    facts = encoder.facts
    images = small_images()
    ids_keep = torch.tensor([[0, 5, 9], [3, 12, 2]])
    features = encoder(images, ids_keep=ids_keep, taps=(Tap("output"), Tap("scores", 0)))
    num_tokens = facts.num_prefix_tokens + 3
    assert features.tokens.shape == (2, num_tokens, facts.output_dim)
    assert features.taps[Tap("scores", 0)].shape[-2:] == (num_tokens, num_tokens)
    assert features.grid == facts.grid
    if family == "hybrid":
        return  # its convolutions see over the border of a patch
    changed = images.clone()
    changed[:, :, 24:, 24:] += 1.0  # patch 15, which neither sample keeps
    torch.testing.assert_close(encoder(changed, ids_keep=ids_keep).tokens, features.tokens)


@pytest.mark.parametrize("family", sorted(CANT_DROP_PATCHES))
def test_relative_position_tables_refuse_dropped_patches(family):
    with pytest.raises(UserError, match="can't be dropped"):
        small_encoder(family)(small_images(), ids_keep=torch.zeros(2, 1, dtype=torch.long))


@every_family
def test_gradient_reaches_every_parameter(family):
    encoder = small_encoder(family).train()
    ends = tuple(Tap(kind) for kind in ("output", "logits") if kind in encoder.offered_taps())
    features = encoder(small_images(), taps=ends)
    sum((value * torch.randn_like(value)).sum() for value in features.taps.values()).backward()
    without = [
        name
        for name, parameter in encoder.named_parameters()
        if parameter.grad is None or not parameter.grad.isfinite().all()
    ]
    assert without == []


@every_family
def test_architecture_rebuilds_the_encoder(family):
    encoder = small_encoder(family)
    twin = build_encoder(encoder.facts.architecture, encoder.facts.origin).eval()
    assert twin.facts == encoder.facts
    twin.load_state_dict(encoder.state_dict())
    images = small_images(1)
    torch.testing.assert_close(twin(images).tokens, encoder(images).tokens, rtol=0, atol=0)


@every_family
def test_every_parameter_has_a_layer(family):
    encoder = small_encoder(family)
    depth = encoder.facts.depth
    for name, _ in encoder.named_parameters():
        layer = encoder.layer_id(name)
        assert layer == encoder.layer_id(name.removeprefix("model."))
        assert 0 <= layer <= depth + 1
        if ".blocks." in name:
            assert layer == int(name.split(".")[2]) + 1


@every_family
def test_what_enters_a_block_is_what_left_the_one_before(family):
    encoder = small_encoder(family)
    entering, read, left = Tap("block_input", 1), Tap("attention_input", 1), Tap("tokens", 0)
    taps = encoder(small_images(), taps=(entering, left)).taps
    torch.testing.assert_close(taps[entering], taps[left])
    # Alone, neither runs the block that it enters.
    alone = encoder(small_images(), taps=(entering,)).taps[entering]
    torch.testing.assert_close(alone, taps[entering])
    block = encoder.model.blocks[1]
    block.register_forward_hook(lambda *_: pytest.fail("the block was run"))
    encoder(small_images(), taps=(entering, read))


@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "hybrid"])
def test_a_mask_token_stands_for_what_is_not_kept(family):
    encoder = small_encoder(family)
    facts = encoder.facts
    kept = torch.tensor([[0, 2], [3, 1]])
    token = torch.full((1, 1, facts.input_dims[0]), 0.5, requires_grad=True)
    tokens = encoder(small_images(), ids_keep=kept, mask_token=token).tokens
    assert tokens.shape[1] == facts.num_prefix_tokens + facts.grid[0] * facts.grid[1]
    # Hidden pixels do not matter (but to a stem that looks beyond its patch); the token does.
    sides = facts.img_size[0] // facts.grid[0]
    hidden = is_masked(kept, facts.grid[0] * facts.grid[1]).view(2, 1, *facts.grid)
    pixels = hidden.repeat_interleave(sides, 2).repeat_interleave(sides, 3)
    changed = torch.where(pixels, torch.rand(2, 3, *facts.img_size), small_images())
    again = encoder(changed, ids_keep=kept, mask_token=token).tokens
    torch.testing.assert_close(again, tokens)
    (gradient,) = torch.autograd.grad(tokens.square().sum(), token)
    assert gradient.abs().sum() > 0
