"""MAE's decoder from every source, against a loop over images; and what does not fit."""

import pytest
import torch
from safetensors.torch import save_file

import limbeck
from limbeck.errors import UserError
from limbeck.models.finished import save_student
from limbeck.models.mae import MaeDecoder, build_projection
from limbeck.models.origins.decoder import load_decoder, load_keepsakes
from limbeck.models.origins.kept_decoder import (
    FEATURE_DECODER,
    fill_decoder,
    keep_decoder,
)
from limbeck.models.origins.load import load_encoder
from limbeck.ops.pos_embed import interpolate_pos_embed
from tests.models.origins import writers

CLOSE = {"atol": 2e-5, "rtol": 1e-4}
IDS_KEEP = torch.tensor([[4, 1, 15], [0, 5, 7]])
SMALL = {"embed_dim": 32, "depth": 2, "num_heads": 4, "img_size": 32, "patch_size": 8}


def save(tmp_path, weights, name="a.pth"):
    torch.save({"model": weights}, tmp_path / name)
    return tmp_path / name


def small_decoder(width=16, depth=1, heads=2, grid=(4, 4), patch_size=8):
    return MaeDecoder(32, grid, patch_size, width, depth, heads, True)


def test_it_is_public():
    assert limbeck.load_decoder is load_decoder


@pytest.mark.parametrize(("width", "depth", "heads"), [(512, 2, 16), (96, 1, 3), (192, 1, 6)])
def test_published_widths_tell_the_heads(tmp_path, width, depth, heads):
    weights = writers.mae_full(192, width, decoder_depth=depth)
    decoder = load_decoder(save(tmp_path, weights))
    assert decoder.decoder_blocks[0].attn.num_heads == heads
    assert len(decoder.decoder_blocks) == depth
    assert decoder.grid == (4, 4) and decoder.num_cls_tokens == 1 and not decoder.training
    own = decoder.state_dict()
    assert all(torch.equal(own[name], weights[name]) for name in own)
    assert own.keys() == {n for n in weights if n.startswith(("decoder_", "mask_token"))}
    tokens = torch.randn(2, 4, 192)
    expected = writers.run_decoder(weights, tokens, IDS_KEEP, heads)
    torch.testing.assert_close(decoder(tokens, IDS_KEEP), expected, **CLOSE)


def test_encoder_and_decoder_of_a_file_draw_pixels_together(tmp_path):
    weights = writers.mae_full(192, 96)
    file = save(tmp_path, writers.d_mae(weights, writers.mae_encoder(384))["model"], "d.pth")
    tokens = load_encoder(file)(torch.rand(2, 3, 32, 32), ids_keep=IDS_KEEP).tokens
    expected = writers.run_decoder(weights, tokens, IDS_KEEP, 3)
    torch.testing.assert_close(load_decoder(file)(tokens, IDS_KEEP), expected, **CLOSE)


def test_an_unusual_width_asks_for_the_heads(tmp_path):
    file = save(tmp_path, writers.mae_full())
    with pytest.raises(UserError, match="is 16 wide, which does not tell its head count"):
        load_decoder(file)
    assert load_decoder(file, num_heads=4).decoder_blocks[0].attn.num_heads == 4


def test_positions_are_interpolated_to_another_grid(tmp_path, caplog):
    weights = writers.mae_full(192, 96)
    with caplog.at_level("INFO", "limbeck"):
        decoder = load_decoder(save(tmp_path, weights), grid=(6, 5))
    table = interpolate_pos_embed(weights["decoder_pos_embed"], 1, (4, 4), (6, 5))
    torch.testing.assert_close(decoder.decoder_pos_embed, table)
    assert "Positions interpolated from 4 x 4 to 6 x 5 patches." in caplog.text


@pytest.mark.parametrize("name", ["decoder_norm.bias", "decoder_blocks.0.mlp.fc2.bias"])
def test_one_lost_tensor_is_an_error_that_names_it(tmp_path, name):
    weights = writers.mae_full(192, 96)
    del weights[name]
    with pytest.raises(UserError, match=f"1 missing .{name}"):
        load_decoder(save(tmp_path, weights))


@pytest.mark.parametrize("name", ["decoder_pos_embed", "decoder_pred.weight"])
def test_a_decoder_without_its_shape_is_no_decoder(tmp_path, name):
    weights = writers.mae_full(192, 96)
    del weights[name]
    with pytest.raises(UserError, match=f"no whole decoder: {name}"):
        load_decoder(save(tmp_path, weights))


def test_sizes_that_can_not_be_are_refused(tmp_path):
    weights = writers.mae_full(192, 96)
    odd = weights | {"decoder_pos_embed": torch.zeros(1, 19, 96)}
    del odd["pos_embed"]
    with pytest.raises(UserError, match="19 positions, which are no square grid"):
        load_decoder(save(tmp_path, odd))
    odd = weights | {"decoder_pred.weight": torch.zeros(100, 96)}
    with pytest.raises(UserError, match="100 values: no RGB patch"):
        load_decoder(save(tmp_path, odd))


@pytest.mark.parametrize("source", ["encoder-only file", "timm:vit_tiny_patch16_224"])
def test_a_source_without_one_names_those_that_have(tmp_path, source):
    if source == "encoder-only file":
        source = save(tmp_path, writers.mae_encoder(192))
    with pytest.raises(UserError, match="has no decoder; .*--method masked-pixel"):
        load_decoder(source)
    assert load_keepsakes(str(source)) == {}


def test_a_finished_run_s_decoder(tmp_path):
    decoder = small_decoder(heads=4).eval()
    encoder = load_encoder("timm:vit_tiny", pretrained=False, num_classes=0, **SMALL)
    save_student(encoder, tmp_path, {}, kept={"decoder": keep_decoder(decoder)})
    tokens = torch.randn(2, 4, 32)
    for path in (tmp_path, tmp_path / "student.json", tmp_path / "decoder.safetensors"):
        read = load_decoder(path)
        assert torch.equal(read(tokens, IDS_KEEP), decoder(tokens, IDS_KEEP))


def test_half_precision_and_random_state(tmp_path):
    weights = {name: value.half() for name, value in writers.mae_full(192, 96).items()}
    file = save(tmp_path, weights)
    before = torch.get_rng_state()
    assert load_decoder(file).decoder_embed.weight.dtype == torch.float32
    assert torch.equal(before, torch.get_rng_state())


def test_a_decoupled_decoder_can_be_read_but_not_gone_on_with(tmp_path, caplog):
    weights = writers.with_spare_block(writers.mae_full(192, 96))
    save_file(weights, tmp_path / "d2.safetensors")
    source = str(tmp_path / "d2.safetensors")
    with caplog.at_level("INFO", "limbeck"):
        decoder = load_decoder(source)
    assert "reads what enters block 8" in caplog.text
    with pytest.raises(UserError, match="fitted to what enters block 8.*set fresh_decoder"):
        fill_decoder(decoder, load_keepsakes(source)["decoder"])


def vit_mae():
    """A small ViTMAEForPreTraining whose decoder has weights of a scale that matters."""
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTMAEConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=64,
        image_size=32, patch_size=8, decoder_hidden_size=16, decoder_num_hidden_layers=2,
        decoder_num_attention_heads=2, decoder_intermediate_size=64,
    )  # fmt: skip
    model = transformers.ViTMAEForPreTraining(config).eval()
    with torch.no_grad():
        for name, value in model.decoder.named_parameters():
            value.add_(0.1 * torch.randn(value.shape) * ("pos" not in name))
    return model


def test_transformers_masked_autoencoder(tmp_path):
    model = vit_mae()
    model.save_pretrained(tmp_path)
    ids = torch.cat(
        (IDS_KEEP, torch.tensor([sorted({*range(16)} - {*k}) for k in IDS_KEEP.tolist()])), 1
    )
    tokens = torch.randn(2, 4, 32)
    with torch.no_grad():
        expected = model.decoder(tokens, ids.argsort(1)).logits
        decoder = load_decoder(tmp_path)
        # Its norms have an epsilon of 1e-12, MAE's one of 1e-6.
        torch.testing.assert_close(decoder(tokens, IDS_KEEP), expected, atol=1e-4, rtol=1e-4)
    assert decoder.decoder_blocks[0].attn.num_heads == 2 and len(decoder.decoder_blocks) == 2
    (tmp_path / "config.json").write_text('{"model_type": "vit"}')
    assert load_keepsakes(str(tmp_path)) == {}


# --- Decoders that predict features --------------------------------------------------------------


def projections(width=16, teacher=40):
    return {"decoderfeature_pred": build_projection(width, teacher)}


def feature_decoder(**shape):
    decoder = small_decoder(patch_size=None, **shape)
    decoder.decoder_blocks[0].norm1.bias.data += 0.1  # as if trained
    return decoder


def test_a_published_student_s_decoder_is_no_pixel_decoder(tmp_path):
    weights = writers.g2sd(192, 128)
    torch.save(writers.in_g2sd(weights), tmp_path / "a.pth")
    source = str(tmp_path / "a.pth")
    kept = load_keepsakes(source)
    assert [*kept] == [FEATURE_DECODER]
    assert kept[FEATURE_DECODER].facts == {"num_heads": 4}
    beside = {n for n in weights if n.startswith(("decoder", "mask_token", "encoderfeature"))}
    assert kept[FEATURE_DECODER].weights.keys() == {
        name for name in beside if not name.startswith(("decoder_norm", "decoder_pred"))
    }
    with pytest.raises(UserError, match="predicts a teacher's features, no pixels"):
        load_decoder(source)


@pytest.mark.parametrize(("width", "heads"), [(64, 4), (128, 4), (192, 8), (256, 8), (512, 16)])
def test_the_released_students_heads_by_width(tmp_path, width, heads):
    weights = writers.g2sd(192, width, 1, depth=1)
    told = load_keepsakes(str(save(tmp_path, weights)))[FEATURE_DECODER].facts
    assert told == {"num_heads": heads}
