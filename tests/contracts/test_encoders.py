"""What every encoder promises, for a small representative of every family."""

from math import prod

import pytest
import torch

from limbeck.errors import UserError
from limbeck.models.timm_encoder import TOKEN_KINDS
from limbeck.models.vit import build_encoder
from limbeck.ops.masking import is_masked
from limbeck.records import HEAD_KINDS, LOGIT_KINDS, Tap
from tests.models.families import (
    CANT_DROP_PATCHES,
    FAMILIES,
    HIERARCHICAL,
    small_encoder,
    small_images,
)

# float32 sums in another order (kept patches, batched rotary tables).
CLOSE = dict(rtol=1e-4, atol=1e-5)

every_family = pytest.mark.parametrize("family", FAMILIES)
every_dropping_family = pytest.mark.parametrize(
    "family", [family for family in FAMILIES if family not in CANT_DROP_PATCHES]
)


def num_tokens_of(facts, stride):
    return facts.num_prefix_tokens + prod(side // stride for side in facts.img_size)


def expected_shape(tap, facts):
    if tap.kind in LOGIT_KINDS:
        return (2, facts.num_classes)
    if tap.kind not in HEAD_KINDS:
        return (2, num_tokens_of(facts, facts.tap_stride(tap)), facts.tap_dim(tap))
    heads = facts.num_heads[tap.block]
    # Queries may be pooled on the way.
    queries = num_tokens_of(facts, facts.block_strides[tap.block])
    keys = num_tokens_of(facts, facts.input_strides[tap.block])
    head_dim = facts.block_dims[tap.block] // heads
    if tap.kind == "scores":
        return (2, heads, queries, keys)
    return (2, heads, queries if tap.kind == "queries" else keys, head_dim)


def all_taps(encoder):
    facts = encoder.facts
    return tuple(
        Tap(kind, block) for kind in encoder.offered_taps() for block in blocks_of(kind, facts)
    )


def blocks_of(kind, facts):
    if kind in HEAD_KINDS:
        return facts.global_blocks
    if kind in ("block_input", "tokens"):
        return range(facts.depth)
    return attending(facts) if kind in TOKEN_KINDS else (-1,)


def attending(facts):
    return [block for block in range(facts.depth) if facts.num_heads[block]]


@every_family
def test_every_offered_tap_exists_and_fits_the_facts(family):
    encoder = small_encoder(family)
    facts = encoder.facts
    taps = all_taps(encoder)
    features = encoder(small_images(), taps=taps)
    assert set(features.taps) == set(taps)
    for tap, value in features.taps.items():
        assert tuple(value.shape) == expected_shape(tap, facts), tap
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
    own = encoder.model.forward_features(normalised)
    if own.ndim == 4 and own.shape[1] == encoder.facts.embed_dim:  # channels first
        own = own.permute(0, 2, 3, 1)
    if family in HIERARCHICAL:  # timm's are in its own order, or in rows and columns
        own, features = (each.flatten(1, -2).sort(1).values for each in (own, features.tokens))
        torch.testing.assert_close(features, own)
    else:
        torch.testing.assert_close(features.tokens, own)
    if encoder.facts.num_classes:
        logits = encoder(images, taps=(Tap("logits"),)).taps[Tap("logits")]
        torch.testing.assert_close(logits, encoder.model(normalised))


def places_kept(facts, ids_keep, stride):
    """Where the tokens of kept units lie in rows of the full grid, (B, tokens)."""
    rows, columns = (side // stride for side in facts.img_size)
    parts = facts.mask_unit // stride
    full = torch.arange(rows * columns).view(rows // parts, parts, columns // parts, parts)
    return full.transpose(1, 2).flatten(2).flatten(0, 1)[ids_keep].flatten(1)


@every_dropping_family
def test_keeping_all_patches_in_any_order_is_the_full_forward(family):
    encoder = small_encoder(family)
    facts, images = encoder.facts, small_images()
    prefix, num_units = facts.num_prefix_tokens, prod(facts.mask_grid)
    order = torch.stack([torch.arange(num_units), torch.randperm(num_units)])
    taps = tuple(tap for tap in all_taps(encoder) if tap.kind not in LOGIT_KINDS)
    full, kept = encoder(images, taps=taps).taps, encoder(images, order, taps).taps
    for tap in taps:
        has_heads = tap.kind in HEAD_KINDS
        is_before = tap.kind in ("keys", "values")
        strides = facts.input_strides if is_before else facts.block_strides
        stride = strides[tap.block] if has_heads else facts.tap_stride(tap)
        places = places_kept(facts, order, stride)
        columns = places_kept(facts, order, facts.input_strides[tap.block])
        for sample in range(2):
            expected = reordered(full[tap][sample], prefix, places[sample], -2)
            if tap.kind == "scores":
                expected = reordered(expected, prefix, columns[sample], -1)
            torch.testing.assert_close(kept[tap][sample], expected, **CLOSE)


def reordered(value, num_prefix_tokens, places, axis):
    prefix = torch.arange(num_prefix_tokens)
    return value.index_select(axis, torch.cat((prefix, num_prefix_tokens + places)))


@every_dropping_family
def test_dropped_patches_are_not_computed_and_have_no_influence(family):
    encoder = small_encoder(family)
    facts = encoder.facts
    images = small_images()
    last = prod(facts.mask_grid) - 1  # which neither sample keeps
    ids_keep = torch.tensor([[0, 5, 9], [3, 12, 2]]) if last > 9 else torch.tensor([[0], [2]])
    block = facts.global_blocks[0]
    features = encoder(images, ids_keep=ids_keep, taps=(Tap("output"), Tap("scores", block)))
    num_units = ids_keep.shape[1]
    num_tokens, *num_scored = (
        facts.num_prefix_tokens + num_units * (facts.mask_unit // stride) ** 2
        for stride in (facts.patch_size, facts.block_strides[block], facts.input_strides[block])
    )
    assert features.tokens.shape == (2, num_tokens, facts.output_dim)
    assert [*features.taps[Tap("scores", block)].shape[-2:]] == num_scored
    assert features.grid == facts.grid
    if family == "hybrid":
        return  # its convolutions see over the border of a patch
    changed = images.clone()
    changed[:, :, -facts.mask_unit :, -facts.mask_unit :] += 1.0
    torch.testing.assert_close(encoder(changed, ids_keep=ids_keep).tokens, features.tokens)


@pytest.mark.parametrize("family", sorted(CANT_DROP_PATCHES))
def test_what_hangs_on_the_full_grid_refuses_dropped_patches(family):
    encoder = small_encoder(family)
    assert not encoder.facts.can_drop
    with pytest.raises(UserError, match="can't be dropped"):
        encoder(small_images(), ids_keep=torch.zeros(2, 1, dtype=torch.long))


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
    owner = {id(p): k for k, block in enumerate(encoder.blocks) for p in block.parameters()}
    for name, parameter in encoder.named_parameters():
        layer = encoder.layer_id(name)
        assert layer == encoder.layer_id(name.removeprefix("model."))
        assert 0 <= layer <= depth + 1
        if id(parameter) in owner:
            assert layer == owner[id(parameter)] + 1


@every_family
def test_layers_rise_in_the_order_in_which_they_are_computed(family):
    """No layer's output needs a parameter of a later layer, and the last one is the head's."""
    encoder = small_encoder(family)
    for block in range(encoder.facts.depth):
        tokens = encoder(small_images(1), taps=(Tap("tokens", block),)).taps[Tap("tokens", block)]
        parameters = dict(encoder.named_parameters())
        gradients = torch.autograd.grad(
            tokens.square().sum(), [*parameters.values()], allow_unused=True
        )
        reached = [n for n, g in zip(parameters, gradients, strict=True) if g is not None]
        if family in ("distilled-last", "tinymim-star-rel-pos"):  # their token learns as heads do
            assert encoder.layer_id("dist_token") == encoder.facts.depth + 1
            reached.remove("model.dist_token")
        layers = {encoder.layer_id(name) for name in reached}
        assert layers == set(range(block + 2))
    names = [n for n in parameters if encoder.layer_id(n) == encoder.facts.depth + 1]
    assert all(name.startswith(("model.norm", "model.head", "model.fc_norm", "model.attn_pool",
                                "model.conv1x1", "model.dist_norm", "model.dist_token"))
               for name in names)  # fmt: skip


@every_family
def test_what_enters_a_block_is_what_left_the_one_before(family):
    encoder = small_encoder(family)
    facts = encoder.facts
    # The first that nothing is merged before.
    index = next(
        k for k in attending(facts)[1:] if facts.input_strides[k] == facts.block_strides[k - 1]
    )
    entering, read, left = (
        Tap("block_input", index), Tap("attention_input", index), Tap("tokens", index - 1)
    )  # fmt: skip
    taps = encoder(small_images(), taps=(entering, left)).taps
    torch.testing.assert_close(taps[entering], taps[left])
    # Alone, neither runs the block that it enters.
    alone = encoder(small_images(), taps=(entering,)).taps[entering]
    torch.testing.assert_close(alone, taps[entering])
    block = encoder.blocks[index]
    block.register_forward_hook(lambda *_: pytest.fail("the block was run"))
    encoder(small_images(), taps=(entering, read))
    assert facts.tap_dim(entering) == taps[entering].shape[-1]


@every_family
def test_inner_tensors_add_up_to_the_blocks_own_forward(family):
    """Run part by part, the network says the same as run block by block."""
    encoder = small_encoder(family)
    facts, whole = encoder.facts, encoder(small_images()).tokens
    taps = (*(Tap("mlp_output", block) for block in attending(facts)), Tap("output"))
    torch.testing.assert_close(encoder(small_images(), taps=taps).tokens, whole)


@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "hybrid"])
def test_a_mask_token_stands_for_what_is_not_kept(family):
    encoder = small_encoder(family)
    facts = encoder.facts
    kept = torch.tensor([[0, 2], [3, 1]])
    token = torch.full((1, 1, facts.input_dims[0]), 0.5, requires_grad=True)
    tokens = encoder(small_images(), ids_keep=kept, mask_token=token).tokens
    assert tokens.shape[1] == facts.num_prefix_tokens + facts.grid[0] * facts.grid[1]
    # Hidden pixels do not matter (but to a stem that looks beyond its patch); the token does.
    hidden = is_masked(kept, prod(facts.mask_grid)).view(2, 1, *facts.mask_grid)
    pixels = hidden.repeat_interleave(facts.mask_unit, 2).repeat_interleave(facts.mask_unit, 3)
    changed = torch.where(pixels, torch.rand(2, 3, *facts.img_size), small_images())
    again = encoder(changed, ids_keep=kept, mask_token=token).tokens
    torch.testing.assert_close(again, tokens)
    (gradient,) = torch.autograd.grad(tokens.square().sum(), token)
    assert gradient.abs().sum() > 0
