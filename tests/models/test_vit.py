"""The timm encoder: tokens after each block, early stop, heads, sizes, and what it refuses."""

import pytest
import timm
import torch

from limbeck.errors import UserError
from limbeck.models.vit import VitEncoder, build_encoder
from limbeck.records import Tap
from tests.models.families import PLAIN, architecture_of, small_encoder, small_images

every_family = pytest.mark.parametrize("family", PLAIN)


@every_family
def test_tokens_are_those_after_each_block(family):
    encoder = small_encoder(family)
    images = small_images()
    own = {}
    for index, block in enumerate(encoder.model.blocks):
        block.register_forward_hook(
            lambda module, inputs, output, index=index: own.setdefault(index, output)
        )
    encoder.model((images - encoder.mean) / encoder.std)
    taps = tuple(Tap("tokens", block) for block in range(encoder.facts.depth))
    for tap, tokens in encoder(images, taps=taps).taps.items():
        torch.testing.assert_close(tokens, own[tap.block])


@pytest.mark.parametrize(
    ("taps", "blocks_run"),
    [
        ((), [0, 1, 2]),
        ((Tap("output"),), [0, 1, 2]),
        ((Tap("logits"),), [0, 1, 2]),
        ((Tap("queries", 0),), []),
        ((Tap("queries", 1),), [0]),
        ((Tap("values", -1), Tap("scores", 0)), [0, 1]),
        ((Tap("tokens", 1),), [0, 1]),
        ((Tap("tokens", 0), Tap("keys", 0)), [0]),
        ((Tap("keys", 1), Tap("tokens", 0)), [0]),
        ((Tap("keys", 1), Tap("output")), [0, 1, 2]),
    ],
)
def test_only_the_blocks_needed_are_run(taps, blocks_run):
    encoder = small_encoder("augreg")
    run = []
    for index, block in enumerate(encoder.model.blocks):
        block.register_forward_pre_hook(lambda *_, index=index: run.append(index))
    features = encoder(small_images(), taps=taps)
    assert run == blocks_run
    assert set(features.taps) == set(taps)
    has_tokens = not taps or Tap("output") in taps
    assert (features.tokens is not None) == has_tokens


def test_the_deepest_block_runs_no_more_than_norm_and_qkv():
    encoder = small_encoder("augreg")
    features = encoder(small_images(), taps=(Tap("queries"), Tap("values")))
    sum(value.sum() for value in features.taps.values()).backward()
    untrained = [n for n, p in encoder.model.named_parameters() if p.grad is None]
    assert untrained == [
        *(f"blocks.2.{part}" for part in ("attn.proj.weight", "attn.proj.bias")),
        *(f"blocks.2.norm2.{part}" for part in ("weight", "bias")),
        *(f"blocks.2.mlp.{fc}.{part}" for fc in ("fc1", "fc2") for part in ("weight", "bias")),
        *(f"{part}.{kind}" for part in ("norm", "head") for kind in ("weight", "bias")),
    ]


def test_unsupported_taps_blocks_and_sizes_are_refused():
    encoder = small_encoder("mae")
    images = small_images()
    with pytest.raises(UserError, match="offers only queries, keys"):
        encoder(images, taps=(Tap("logits"),))
    with pytest.raises(UserError, match="there is no block 3"):
        encoder(images, taps=(Tap("queries", 3),))
    with pytest.raises(UserError, match="built for images of 3 x 32 x 32, not 3 x 40 x 32; resize"):
        encoder(torch.rand(1, 3, 40, 32))


@pytest.mark.parametrize("family", ["augreg", "mean-pooled", "post-norm", "siglip", "dinov2"])
def test_small_images_get_interpolated_positions(family):
    encoder = small_encoder(family)
    small = torch.rand(2, 3, 16, 24)
    said = encoder.forward_small(small)
    facts = encoder.facts
    name, kwargs = facts.architecture["name"], dict(facts.architecture["kwargs"])
    dynamic = timm.create_model(name, **kwargs | {"dynamic_img_size": True}).eval()
    dynamic.load_state_dict(encoder.model.state_dict())
    torch.testing.assert_close(
        said.tokens, dynamic.forward_features((small - encoder.mean) / encoder.std)
    )
    assert said.grid == (2, 3)
    images = small_images()
    of_own_size = encoder.forward_small(images, (Tap("tokens", 0),))
    assert of_own_size.tokens is None
    torch.testing.assert_close(of_own_size.taps, encoder(images, taps=(Tap("tokens", 0),)).taps)


@pytest.mark.parametrize(
    ("family", "side", "message"),
    [("augreg", 20, "do not divide into patches of 8"), ("beit", 16, "images of one size only")],
)
def test_small_images_that_can_not_be_taken_are_refused(family, side, message):
    with pytest.raises(UserError, match=message):
        small_encoder(family).forward_small(torch.rand(1, 3, side, side))


def test_dynamic_models_still_take_one_size_only():
    with pytest.raises(UserError, match="another img_size"):
        small_encoder("dinov3")(torch.rand(1, 3, 48, 48))


def test_unknown_classes_are_named_with_the_supported_ones():
    with pytest.raises(UserError, match=r"attention of class .*DiffAttention.*EvaAttention"):
        build_encoder(architecture_of("augreg") | {"name": "vit_dwee_patch16_reg1_gap_256"})
    resnet = timm.create_model("resnet10t", num_classes=0)
    with pytest.raises(UserError, match=r"ResNet, which is not supported.*VisionTransformer"):
        VitEncoder(resnet, architecture={"name": "resnet10t", "kwargs": {}}, origin={})


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"embed_dim": 30, "num_heads": 4}, "can't build .*divisible"),
        ({"img_size": 30}, "30 x 30 pixels do not divide into patches of 8"),
        ({"nonsense": 1}, "can't build .*nonsense"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(kwargs, message):
    architecture = architecture_of("augreg")
    architecture["kwargs"] = architecture["kwargs"] | kwargs
    with pytest.raises(UserError, match=message):
        build_encoder(architecture)


def test_a_beit_that_can_not_drop_patches_says_what_to_do():
    with pytest.raises(UserError, match="of a teacher set teacher_sees all, .* or use mask_ratio"):
        small_encoder("beit")(small_images(), torch.tensor([[0, 1], [2, 3]]))


def test_set_num_heads_splits_one_block_and_the_facts_follow():
    encoder = small_encoder("mae")
    weights = {k: v.clone() for k, v in encoder.state_dict().items()}
    encoder.set_num_heads(-1, 8)
    assert encoder.facts.num_heads == (2, 2, 8)
    assert encoder.facts.architecture["num_heads"] == [2, 2, 8]
    found = encoder(small_images(), taps=(Tap("queries", -1, 8), Tap("scores", -1))).taps
    q = found[Tap("queries", -1, 8)]
    assert q.shape == (2, 8, 17, 4)
    k = encoder(small_images(), taps=(Tap("keys"),)).taps[Tap("keys")]
    torch.testing.assert_close(found[Tap("scores", -1)], q @ k.transpose(-2, -1) / 4**0.5)
    for name, value in encoder.state_dict().items():
        assert torch.equal(value, weights[name])
    twin = build_encoder(encoder.facts.architecture).eval()
    twin.load_state_dict(encoder.state_dict())
    assert torch.equal(twin(small_images()).tokens, encoder(small_images()).tokens)


@pytest.mark.parametrize("family", ["eva", "augreg", "clip", "siglip"])
def test_adapted_heads_are_computed_as_by_a_model_built_with_them(family):
    encoder = small_encoder(family)
    architecture = architecture_of(family)
    architecture["kwargs"] = architecture["kwargs"] | {"num_heads": 4}
    if family == "siglip":  # its pooling takes the head count too
        architecture["kwargs"] |= {"num_classes": 0, "global_pool": "avg", "fc_norm": False}
    built = build_encoder(architecture).eval()
    weights = {k: v for k, v in encoder.state_dict().items() if k in built.state_dict()}
    built.load_state_dict(weights)
    for block in range(encoder.facts.depth):
        encoder.set_num_heads(block, 4)
    torch.testing.assert_close(encoder(small_images()).tokens, built(small_images()).tokens)


@pytest.mark.parametrize(
    ("family", "num_heads", "message"),
    [
        ("augreg", 5, "32 wide, which does not divide into 5 heads.* 1, 2, 4 heads"),
        ("qk-norm", 4, "query and key norm for each head"),
        ("dinov3", 4, "rotary position table"),
        ("beit", 4, "relative position bias"),
        ("beit2-shared-bias", 4, "relative position bias"),
    ],
)
def test_heads_that_can_not_be_set_are_refused(family, num_heads, message):
    with pytest.raises(UserError, match=message):
        small_encoder(family).set_num_heads(-1, num_heads)
    with pytest.raises(UserError, match="does not exist"):
        small_encoder(family).set_num_heads(3, 2)


def test_an_encoder_cast_to_bf16_takes_float_images():
    encoder = small_encoder("dinov3").to(torch.bfloat16)
    features = encoder(small_images(), taps=(Tap("queries"), Tap("output")))
    assert features.tokens.dtype == torch.bfloat16
    assert features.taps[Tap("queries")].dtype == torch.bfloat16
    reference = small_encoder("dinov3")(small_images()).tokens
    # bf16 keeps 8 bits; the error of a three-block model stays within some of its steps.
    assert (features.tokens.float() - reference).abs().max() < 0.1 * reference.abs().max()


def test_state_dict_holds_timms_names_only():
    encoder = small_encoder("mae")
    assert [*encoder.state_dict()] == [f"model.{name}" for name in encoder.model.state_dict()]
    with pytest.raises(ValueError, match="no parameter"):
        encoder.layer_id("decoder.weight")


def test_the_forward_compiles_to_one_graph():
    encoder = small_encoder("augreg")
    ids_keep = torch.tensor([[0, 5, 9], [3, 12, 2]])
    taps = (Tap("queries", 1), Tap("scores"), Tap("output"))
    compiled = torch.compile(encoder, backend="eager", fullgraph=True)
    found = compiled(small_images(), ids_keep, taps).taps
    for tap, value in encoder(small_images(), ids_keep, taps).taps.items():
        torch.testing.assert_close(found[tap], value)
