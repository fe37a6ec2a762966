"""Queries, keys, values and scores against what each model computes itself."""

import pytest
import torch
import torch.nn.functional as F

from limbeck.models.attention import choose_attention, choose_attention_of
from limbeck.models.build import build_student, set_drop_path
from limbeck.models.mae import MaeDecoder
from limbeck.models.options import StudentOptions
from limbeck.records import Tap
from tests.models.families import PLAIN, small_encoder, small_images

every_family = pytest.mark.parametrize("family", PLAIN)


@pytest.fixture
def attention_calls(monkeypatch):
    """Queries, keys, values of every fused attention that the models themselves compute."""
    calls = []
    original = F.scaled_dot_product_attention

    def recording(q, k, v, **kwargs):
        calls.append((q, k, v))
        return original(q, k, v, **kwargs)

    monkeypatch.setattr(F, "scaled_dot_product_attention", recording)
    return calls


@every_family
def test_queries_keys_values_are_those_of_the_models_own_attention(family, attention_calls):
    encoder = small_encoder(family)
    images = small_images()
    encoder.model((images - encoder.mean) / encoder.std)
    own = attention_calls[: encoder.facts.depth]
    taps = tuple(
        Tap(kind, block) for block in range(len(own)) for kind in ("queries", "keys", "values")
    )
    found = encoder(images, taps=taps).taps
    for block, (q, k, v) in enumerate(own):
        torch.testing.assert_close(found[Tap("queries", block)], q)
        torch.testing.assert_close(found[Tap("keys", block)], k)
        torch.testing.assert_close(found[Tap("values", block)], v)


@every_family
def test_scores_are_those_before_the_models_own_softmax(family):
    encoder = small_encoder(family)
    images = small_images()
    probabilities = {}
    for index, block in enumerate(encoder.model.blocks):
        block.attn.fused_attn = False
        block.attn.attn_drop.register_forward_pre_hook(
            lambda module, inputs, index=index: probabilities.setdefault(index, inputs[0])
        )
    encoder.model((images - encoder.mean) / encoder.std)
    taps = tuple(Tap("scores", block) for block in range(encoder.facts.depth))
    for tap, scores in encoder(images, taps=taps).taps.items():
        torch.testing.assert_close(scores.softmax(-1), probabilities[tap.block])


@every_family
def test_a_tapped_block_drops_the_paths_that_it_would_have_dropped(family):
    encoder = small_encoder(family).train()
    set_drop_path(encoder, [0.5] * encoder.facts.depth)
    images = small_images(4)
    inside = tuple(
        Tap(kind, block)
        for block in range(encoder.facts.depth)
        for kind in ("attention_tokens", "tokens")
    )
    torch.manual_seed(3)
    with torch.no_grad():
        plain = encoder(images).tokens
    torch.manual_seed(3)
    with torch.no_grad():
        tapped = encoder(images, taps=(*inside, Tap("output"))).tokens
        other = encoder(images).tokens
    torch.testing.assert_close(tapped, plain)
    assert not torch.allclose(other, plain)


@every_family
def test_tokens_inside_a_block_are_those_of_its_own_forward(family):
    encoder = small_encoder(family)
    images = small_images()
    seen = {}

    def record(kind, index):
        return lambda module, inputs: seen.setdefault((kind, index), inputs[0])

    for index, block in enumerate(encoder.model.blocks):
        block.drop_path1.register_forward_pre_hook(record("attention_output", index))
        block.drop_path2.register_forward_pre_hook(record("mlp_output", index))
        block.register_forward_pre_hook(record("input", index))
        block.register_forward_hook(
            lambda module, inputs, out, index=index: seen.setdefault(("tokens", index), out)
        )
    encoder.model((images - encoder.mean) / encoder.std)
    taps = tuple(
        Tap(kind, block)
        for block in range(encoder.facts.depth)
        for kind in ("attention_output", "attention_tokens", "mlp_output", "tokens")
    )
    own = dict(seen)
    for tap, value in encoder(images, taps=taps).taps.items():
        if tap.kind == "attention_tokens":
            expected = own["input", tap.block] + own["attention_output", tap.block]
        else:
            expected = own[tap.kind, tap.block]
        torch.testing.assert_close(value, expected)


@pytest.mark.parametrize("kind", ["attention_output", "attention_tokens"])
def test_an_attention_tap_on_the_last_block_does_not_run_its_mlp(kind):
    encoder = small_encoder("mae")
    calls = []
    encoder.model.blocks[-1].mlp.register_forward_hook(lambda *_: calls.append(1))
    encoder(small_images(), taps=(Tap(kind, -1),))
    assert not calls
    encoder(small_images(), taps=(Tap(kind, -1), Tap("output")))
    assert calls


@pytest.mark.parametrize("family", ["qk-norm", "dinov3", "eva02-split-qkv"])
def test_types_under_autocast_are_those_of_the_models_own_attention(family, attention_calls):
    encoder = small_encoder(family)
    images = small_images()
    with torch.autocast("cpu", torch.bfloat16):
        encoder.model((images - encoder.mean) / encoder.std)
        own = attention_calls[0]
        taps = tuple(Tap(kind, 0) for kind in ("queries", "keys", "values"))
        found = encoder(images, taps=taps).taps
    for value, tap in zip(own, taps, strict=True):
        assert found[tap].dtype == value.dtype
        torch.testing.assert_close(found[tap], value)


def test_head_split_is_contiguous_slices_of_each_third():
    encoder = small_encoder("mae")
    encoder.set_num_heads(0, 4)
    images = small_images()
    found = encoder(images, taps=(Tap("queries", 0), Tap("keys", 0), Tap("values", 0))).taps
    model = encoder.model
    x = model._pos_embed(model.patch_embed((images - encoder.mean) / encoder.std))
    packed = model.blocks[0].attn.qkv(model.blocks[0].norm1(x))
    for third, kind in enumerate(("queries", "keys", "values")):
        for head in range(4):
            start = third * 32 + head * 8
            expected = packed[..., start : start + 8]
            torch.testing.assert_close(found[Tap(kind, 0)][:, head], expected)


@pytest.mark.parametrize(
    ("device", "dtype", "img_size", "is_fused"),
    [
        ("cpu", torch.bfloat16, 256, False),
        ("cpu", torch.bfloat16, 272, True),  # its maps would take more memory than time is won
        ("cpu", torch.float32, 256, True),
        ("cuda", torch.bfloat16, 256, True),
    ],
)
def test_explicit_attention_only_where_it_is_faster(device, dtype, img_size, is_fused):
    shape = StudentOptions(name="vit_tiny", embed_dim=16, depth=1, num_heads=2, img_size=img_size)
    encoder = build_student(shape, seed=0).eval()
    images = torch.rand(1, 3, img_size, img_size)
    before = encoder(images).tokens
    choose_attention(encoder, torch.device(device), dtype)
    assert encoder.model.blocks[0].attn.fused_attn == is_fused
    torch.testing.assert_close(encoder(images).tokens, before)


def test_a_decoder_is_told_likewise():
    decoder = MaeDecoder(24, (2, 2), 4, 8, 1, 2, True)
    (block,) = decoder.decoder_blocks
    fused = block.attn.fused_attn
    choose_attention_of(decoder, 4, torch.device("cpu"), torch.float32)
    choose_attention_of(decoder, 257, torch.device("cpu"), torch.bfloat16)
    assert block.attn.fused_attn is fused
    choose_attention_of(decoder, 4, torch.device("cpu"), torch.bfloat16)
    assert block.attn.fused_attn is False


@pytest.mark.parametrize("family", ["hiera", "swin"])
def test_attention_in_windows_is_told_likewise(family):
    encoder = small_encoder(family)
    before = encoder(small_images()).tokens
    choose_attention(encoder, torch.device("cpu"), torch.bfloat16)
    assert not any(block.attn.fused_attn for block in encoder.blocks)
    torch.testing.assert_close(encoder(small_images()).tokens, before)
