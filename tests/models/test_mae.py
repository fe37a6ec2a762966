"""The MAE decoder: MAE-Tiny's parameter counts, and the forward against a plain loop."""

import pytest
import torch

from limbeck.errors import UserError
from limbeck.models.build import build_student
from limbeck.models.mae import MaeDecoder, build_projection
from limbeck.models.options import StudentOptions
from limbeck.ops.pos_embed import sincos_2d


def small_decoder(has_cls_token=True):
    return MaeDecoder(
        embed_dim=12,
        grid=(2, 3),
        patch_size=4,
        decoder_embed_dim=8,
        decoder_depth=2,
        decoder_num_heads=2,
        has_cls_token=has_cls_token,
    )


def test_parameter_counts_for_vit_tiny():
    with torch.device("meta"):
        decoder = MaeDecoder(192, (14, 14), 16, 96, 1, 3, True)
    assert sum(p.numel() for p in decoder.parameters()) == 224_064
    assert sum(p.numel() for p in decoder.parameters() if not p.requires_grad) == 18_912


def test_vit_tiny_sees_fifty_tokens_and_draws_all_patches():
    with torch.device("meta"):
        encoder = build_student(StudentOptions(name="vit_tiny"), seed=0)
        decoder = MaeDecoder(192, (14, 14), 16, 96, 1, 3, encoder.facts.has_cls_token)
        ids_keep = torch.arange(49).expand(2, -1)
        tokens = encoder(torch.rand(2, 3, 224, 224), ids_keep=ids_keep).tokens
        assert tokens.shape == (2, 50, 192)
        assert decoder(tokens, ids_keep).shape == (2, 196, 768)
    total = sum(p.numel() for module in (encoder, decoder) for p in module.parameters())
    assert total == 5_748_480  # the whole MAE-Tiny


def test_names_and_start_values_are_maes():
    decoder = small_decoder()
    tops = {name.split(".")[0] for name in decoder.state_dict()}
    assert tops == {
        "decoder_embed", "mask_token", "decoder_pos_embed",
        "decoder_blocks", "decoder_norm", "decoder_pred",
    }  # fmt: skip
    assert torch.equal(decoder.decoder_pos_embed[0], sincos_2d(8, (2, 3), 1))
    assert not decoder.decoder_pos_embed.requires_grad
    qkv = decoder.decoder_blocks[0].attn.qkv
    assert 0.9 * (6 / 32) ** 0.5 < qkv.weight.abs().max() <= (6 / 32) ** 0.5  # as one matrix
    assert qkv.bias.eq(0).all()
    assert decoder.decoder_norm.eps == decoder.decoder_blocks[1].norm2.eps == 1e-6


def test_tokens_and_learned_positions_start_small():
    decoder = MaeDecoder(12, (16, 16), 4, 512, 1, 2, True, has_learned_positions=True)
    assert decoder.decoder_pos_embed.requires_grad
    for start in (decoder.mask_token, decoder.decoder_pos_embed):
        assert start.std().item() == pytest.approx(0.02, rel=0.15)  # of 512 values or more


# A CLS token, registers, both or neither.
@pytest.mark.parametrize(
    ("num_prefix_tokens", "has_cls_token"), [(0, False), (1, True), (5, True), (4, False)]
)
def test_forward_against_a_plain_loop(num_prefix_tokens, has_cls_token):
    decoder = small_decoder(has_cls_token).eval()
    tokens = torch.randn(2, num_prefix_tokens + 2, 12)
    ids_keep = torch.tensor([[4, 1], [0, 5]])
    embedded = decoder.decoder_embed(tokens)
    rows = []
    for sample in range(2):
        places = [decoder.mask_token[0, 0]] * 6
        for place, patch in enumerate(ids_keep[sample].tolist()):
            places[patch] = embedded[sample, num_prefix_tokens + place]
        cls = [embedded[sample, 0]] if has_cls_token else []
        rows.append(torch.stack(cls + places) + decoder.decoder_pos_embed[0])
    x = torch.stack(rows)
    for block in decoder.decoder_blocks:
        x = block(x)
    expected = decoder.decoder_pred(decoder.decoder_norm(x))[:, len(cls) :]
    pixels = decoder(tokens, ids_keep)
    assert pixels.shape == (2, 6, 48)
    torch.testing.assert_close(pixels, expected)


def test_gradient_reaches_the_tokens_and_every_trained_parameter():
    decoder = small_decoder()
    tokens = torch.randn(2, 3, 12, requires_grad=True)
    decoder(tokens, torch.tensor([[4, 1], [0, 5]])).square().sum().backward()
    assert tokens.grad is not None and tokens.grad.ne(0).any(-1).all()
    assert all(p.grad is not None for p in decoder.parameters() if p.requires_grad)


def test_runs_under_autocast():
    decoder = small_decoder()
    with torch.autocast("cpu", torch.bfloat16):
        pixels = decoder(torch.randn(2, 3, 12), torch.tensor([[4, 1], [0, 5]]))
    assert pixels.isfinite().all()


def test_compiled_it_is_one_graph_with_the_same_result():
    decoder = small_decoder()
    tokens, ids_keep = torch.randn(2, 3, 12), torch.tensor([[4, 1], [0, 5]])
    compiled = torch.compile(decoder.decode, backend="eager", fullgraph=True)
    with torch.autocast("cpu", torch.bfloat16):
        found, expected = (each(tokens, ids_keep, 0) for each in (compiled, decoder.decode))
    assert torch.equal(found, expected)
    assert found.dtype == torch.float32  # the residual stream, as the positions are


def test_scores_beyond_half_precision_are_no_nan():
    """The released code clamps them; torch's fused kernel keeps them in float32."""
    decoder = small_decoder()
    attn = decoder.decoder_blocks[0].attn
    attn.qkv.weight.data *= 1000
    tokens, ids_keep = torch.randn(2, 3, 12), torch.tensor([[4, 1], [0, 5]])
    x = torch.randn(1, 5, 8)
    q, k, _ = attn.qkv(x).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
    assert (q @ k.transpose(-2, -1) / 2).abs().max() > torch.finfo(torch.float16).max
    with torch.autocast("cpu", torch.float16):
        assert attn(x).isfinite().all()
        assert decoder.decode(tokens, ids_keep).isfinite().all()


def test_heads_must_divide_the_width():
    with pytest.raises(UserError, match="8 wide, which does not divide into 3 heads"):
        MaeDecoder(12, (2, 3), 4, 8, 1, 3, True)


def test_without_pixels_there_is_neither_norm_nor_head():
    whole = small_decoder()
    bare = MaeDecoder(12, (2, 3), None, 8, 2, 2, True)
    pixels = {name for name in whole.state_dict() if name.startswith(("decoder_norm", "decoder_p"))}
    gone = whole.state_dict().keys() - bare.state_dict().keys()
    assert gone == pixels - {"decoder_pos_embed"} and len(gone) == 4
    bare.load_state_dict({n: v for n, v in whole.state_dict().items() if n not in gone})
    tokens, ids_keep = torch.randn(2, 3, 12), torch.tensor([[5, 0], [1, 2]])
    assert torch.equal(bare.decode(tokens, ids_keep), whole.decode(tokens, ids_keep))


def test_a_projection_has_two_layers_of_the_target_s_width():
    projection = build_projection(256, 512)
    shapes = {name: tuple(value.shape) for name, value in projection.state_dict().items()}
    assert shapes == {
        "fc1.weight": (512, 256), "fc1.bias": (512,),
        "fc2.weight": (512, 512), "fc2.bias": (512,),
    }  # fmt: skip
    for layer in (projection.fc1, projection.fc2):
        bound = (6 / sum(layer.weight.shape)) ** 0.5
        assert 0.99 * bound < layer.weight.abs().max() <= bound and not layer.bias.any()
    tokens = torch.randn(2, 5, 256)
    hidden = torch.nn.functional.gelu(projection.fc1(tokens))
    torch.testing.assert_close(projection(tokens), projection.fc2(hidden))
