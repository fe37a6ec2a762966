"""Encoder and decoder of one source, as a teacher of the decoder's tokens; and what is none."""

import json
import re

import pytest
import torch
from safetensors.torch import save_file

from limbeck.errors import UserError
from limbeck.models.finished import Keepsake, save_student
from limbeck.models.masked_autoencoder import MaskedAutoencoder
from limbeck.models.origins.decoder import (
    describe_decoder,
    join_decoder,
    load_autoencoder,
    load_decoder,
    load_keepsakes,
)
from limbeck.models.origins.kept_decoder import (
    DECODER,
    FEATURE_DECODER,
    keep_decoder,
    keep_feature_decoder,
)
from limbeck.models.origins.load import load_encoder
from limbeck.records import Tap
from tests.models.origins import writers
from tests.models.origins.test_decoder import (
    CLOSE,
    IDS_KEEP,
    SMALL,
    feature_decoder,
    projections,
    save,
    small_decoder,
    vit_mae,
)

IMAGES = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
TAP = Tap("decoder_tokens", 1)


def tokens_of(encoder, tap=TAP):
    with torch.no_grad():
        return encoder(IMAGES, IDS_KEEP, (tap,)).taps[tap]


@pytest.mark.parametrize("layout", ["mae", "mae-lite", "d-mae", "g2sd"])
def test_published_files_give_their_decoder_s_tokens(tmp_path, layout):
    heads, decoder_heads = (12, 6) if "mae-lite" in layout or layout == "d-mae" else (3, 16)
    if layout == "g2sd":
        decoder_heads, weights = 4, writers.g2sd(192, 128)
        content = writers.in_g2sd(weights)
    else:
        weights = writers.mae_full(192, 512 if layout == "mae" else 192, decoder_depth=2)
        content = {
            "mae": {"model": weights},
            "mae-lite": writers.in_mae_lite(weights),
            "d-mae": writers.d_mae(weights, writers.mae_encoder(384)),
        }[layout]
    torch.save(content, tmp_path / "a.pth")
    encoder = load_autoencoder(tmp_path / "a.pth")
    tokens = load_encoder(tmp_path / "a.pth")(IMAGES, ids_keep=IDS_KEEP).tokens
    expected = writers.run_decoder(weights, tokens, IDS_KEEP, decoder_heads, last_block=1)
    torch.testing.assert_close(tokens_of(encoder), expected, **CLOSE)
    assert encoder.facts.num_heads == (heads, heads) and not encoder.training
    has_pixels = any(name.startswith("decoder.decoder_pred") for name, _ in encoder.named_modules())
    assert has_pixels == (layout != "g2sd")


@pytest.mark.parametrize("predicts", ["pixels", "features"])
def test_a_run_that_kept_its_decoder(tmp_path, predicts, caplog):
    caplog.set_level("INFO", "limbeck")
    encoder = load_encoder("timm:vit_tiny", pretrained=False, num_classes=0, **SMALL)
    decoder = feature_decoder() if predicts == "features" else trained(small_decoder())
    kept = {"decoder": keep_decoder(decoder)}
    if predicts == "features":
        kept = {FEATURE_DECODER: keep_feature_decoder(decoder, projections())}
    save_student(encoder, tmp_path, {}, kept=kept)
    expected = decoder.decode(encoder(IMAGES, ids_keep=IDS_KEEP).tokens, IDS_KEEP)
    for path in (tmp_path, tmp_path / "student.json", tmp_path / "student.safetensors"):
        again = load_autoencoder(path)
        assert torch.equal(tokens_of(again, Tap("decoder_tokens")), expected)
        note = "The decoder is read, too: 1 blocks, width 16, 2 heads."
        assert again.facts.origin["notes"][-1] == note and note in caplog.text


def trained(decoder):
    decoder.decoder_blocks[0].norm1.bias.data += 0.1
    return decoder


def test_of_transformers(tmp_path):
    vit_mae().save_pretrained(tmp_path)
    encoder = load_autoencoder(tmp_path)
    decoder = load_decoder(tmp_path)
    expected = decoder.decode(load_encoder(tmp_path)(IMAGES, IDS_KEEP).tokens, IDS_KEEP, 0)
    tap = Tap("decoder_tokens", 0)
    assert torch.equal(tokens_of(encoder, tap), expected)
    assert (encoder.facts.decoder_depth, encoder.facts.decoder_dim) == (2, 16)


def test_one_of_transformers_that_computes_otherwise_is_refused(tmp_path):
    vit_mae().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"hidden_act": "quick_gelu"}))
    words = "has the activation 'quick_gelu', which MAE's has not; take another source"
    for load in (load_autoencoder, load_decoder):
        with pytest.raises(UserError, match=words):
            load(tmp_path)
    assert words in describe_decoder(load_keepsakes(str(tmp_path)), str(tmp_path))
    assert load_encoder(tmp_path).facts.depth == 1  # which is computed as it should be


@pytest.fixture
def full_file(tmp_path):
    return save(tmp_path, writers.mae_full(192, 96, depth=1))


def test_a_change_that_works_reaches_both_and_leaves_the_identity(full_file):
    first = load_autoencoder(full_file)
    for img_size, grid in ((64, (8, 8)), ((32, 48), (4, 6))):
        again = load_autoencoder(full_file, img_size=img_size)
        assert again.facts.grid == again.decoder.grid == grid
        assert again.facts.identity == first.facts.identity
    assert load_autoencoder(full_file, num_heads=6).facts.num_heads == (6,)
    assert load_autoencoder(full_file, patch_size=8, num_classes=0).facts == first.facts
    assert load_encoder(full_file).facts.identity != first.facts.identity


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"patch_size": 16}, "has patches of 8 pixels, not 16"),
        ({"num_classes": 3}, "The weights have 0 classes, not 3"),
        ({"model_name": "vit_tiny_patch16_224"}, "tensors tell its architecture; leave model_name"),
    ],
)
def test_a_change_that_does_not_is_refused(full_file, changes, words):
    with pytest.raises(UserError, match=words):
        load_autoencoder(full_file, **changes)


def test_another_decoder_is_another_teacher(tmp_path):
    weights = writers.mae_full(192, 96, depth=1)
    first = load_autoencoder(save(tmp_path, weights)).facts.identity
    weights["decoder_blocks.0.mlp.fc2.bias"] += 1
    second = load_autoencoder(save(tmp_path, weights)).facts.identity
    assert first["weights"] != second["weights"]
    assert first | {"weights": ""} == second | {"weights": ""}


def test_each_lost_tensor_of_the_decoder_is_an_error_that_names_the_right_file(tmp_path):
    weights = writers.mae_full(192, 16, decoder_depth=8, depth=1)
    kept = load_keepsakes(str(save(tmp_path, weights)))[DECODER]
    assert len(kept.weights) == 104
    encoder = load_encoder(tmp_path / "a.pth")
    for name in kept.weights:
        lacking = Keepsake(without(kept.weights, name), {"num_heads": 2})
        with pytest.raises(UserError, match=f"{name}.*mae_pretrain_vit_base_full.pth"):
            join_decoder(encoder, {DECODER: lacking}, "a.pth")
    save(tmp_path, without(weights, "decoder_embed.weight"))
    with pytest.raises(UserError, match="decoder_embed.weight.*mae_pretrain_vit_base_full.pth"):
        load_autoencoder(tmp_path / "a.pth")


@pytest.mark.parametrize(
    "source",
    ["encoder", "fine-tuned", "timm:vit_base_patch16_224.mae", "timm:resnet18", "timm:vit_tiny"],
)
def test_a_teacher_without_one_names_the_file_that_has_it(tmp_path, source):
    if not source.startswith("timm:"):
        write = {"encoder": writers.mae_encoder, "fine-tuned": writers.fine_tuned}[source]
        source = save(tmp_path, write(192))
    message = "has no decoder, .* mae_pretrain_vit_base_full.pth .mae_pretrain_vit_base.pth, .*"
    with pytest.raises(UserError, match=message + "masked-pixel"):
        load_autoencoder(source)


def test_what_is_no_source_says_so_itself(tmp_path):
    (tmp_path / "checkpoint.pt").write_bytes(b"")
    with pytest.raises(UserError, match="The run in .* has not finished"):
        load_autoencoder(tmp_path)
    with pytest.raises(UserError, match="There is no file or folder"):
        load_autoencoder(tmp_path / "nothing.pth")


def test_a_decoder_that_was_never_trained_is_refused(tmp_path):
    encoder = load_encoder("timm:vit_tiny", pretrained=False, num_classes=0, **SMALL)
    save_student(encoder, tmp_path, {}, kept={"decoder": keep_decoder(small_decoder())})
    with pytest.raises(UserError, match="was never trained .*take one that was"):
        load_autoencoder(tmp_path)


def test_a_decoder_of_an_inner_block_is_refused(tmp_path):
    file = save(tmp_path, writers.with_spare_block(writers.mae_full(192, 96)))
    with pytest.raises(UserError, match="what enters block 8 .D2-MAE.*choose another teacher"):
        load_autoencoder(file)


def test_a_decoder_of_another_encoder_is_refused(tmp_path):
    """Interpolated from its 5 x 5 patches it would fit, and teach nonsense."""
    weights = writers.mae_full(192, 96)
    file = save(tmp_path, weights | {"decoder_pos_embed": torch.randn(1, 26, 96)})
    for img_size in (None, 40):
        with pytest.raises(UserError, match="has 26 positions and its encoder 17, which MAE's"):
            load_autoencoder(file, **({"img_size": img_size} if img_size else {}))
    save(tmp_path, weights | {"decoder_pos_embed": torch.randn(1, 16, 96)})
    with pytest.raises(UserError, match="has a CLS token and the decoder has none; take both from"):
        load_autoencoder(file)
    save(tmp_path, weights | {"decoder_embed.weight": torch.randn(96, 100)})
    with pytest.raises(UserError, match="reads tokens of width 100 .* take both from one source"):
        load_autoencoder(file)


def test_names_that_are_no_decoder_s_are_told(tmp_path):
    more = {"decoder_blocks.last.norm1.bias": torch.zeros(96)}
    file = save(tmp_path, writers.mae_full(192, 96) | more)
    with pytest.raises(UserError, match="1 unexpected .decoder_blocks.last.norm1.bias"):
        load_autoencoder(file)


def test_mae_s_file_for_pictures_is_told_by_its_name(tmp_path, caplog):
    file = save(tmp_path, writers.mae_full(192, 96), "mae_visualize_vit_base.pth")
    load_autoencoder(file)
    assert "another model than mae_pretrain_vit_base_full.pth" in caplog.text
    caplog.clear()
    load_autoencoder(save(tmp_path, writers.mae_full(192, 96)))
    assert "another model" not in caplog.text


def test_an_unusual_width_is_told_by_a_file_that_states_its_heads(tmp_path):
    file = save(tmp_path, writers.mae_full(192, 40))
    with pytest.raises(UserError, match="limbeck convert --layout mae-full --decoder-num-heads N"):
        load_autoencoder(file)
    save_file(
        writers.mae_full(192, 40), tmp_path / "a.safetensors",
        metadata={"num_heads": "3", "decoder_num_heads": "5"},
    )  # fmt: skip
    encoder = load_autoencoder(tmp_path / "a.safetensors")
    assert encoder.facts.identity["architecture"]["decoder"]["num_heads"] == 5
    save_file(writers.mae_full(192, 40), tmp_path / "b.safetensors", {"decoder_num_heads": "0"})
    with pytest.raises(UserError, match="decoder_num_heads = '0', which is no head count"):
        load_autoencoder(tmp_path / "b.safetensors")


def own_with_decoder(**overrides):
    encoder = load_encoder("timm:vit_tiny", pretrained=False, num_classes=0, **SMALL | overrides)
    return MaskedAutoencoder(encoder, small_decoder(grid=encoder.facts.grid))


def own_without(**overrides):
    return load_encoder("timm:vit_tiny", pretrained=False, num_classes=0, **SMALL | overrides)


def test_a_function_of_one_s_own():
    encoder = load_autoencoder(f"{__name__}:own_with_decoder", img_size=64)
    assert encoder.facts.grid == (8, 8) and encoder.facts.decoder_depth == 1
    with pytest.raises(UserError, match="own_without' returns has no decoder"):
        load_autoencoder(f"{__name__}:own_without")


@pytest.mark.parametrize(
    ("write", "words"),
    [
        (lambda: writers.mae_full(192, 512, 2), "2 blocks, width 512, 16 heads; predicts pixels"),
        (lambda: writers.g2sd(192, 128), "4 blocks, width 128, 4 heads; predicts a teacher's feat"),
        (lambda: writers.mae_full(192, 40), "width 40, an unknown number of heads"),
        (lambda: without(writers.mae_full(192, 96), "decoder_norm.bias"),
         "not whole, 1 tensors missing: decoder_norm.bias"),
        (lambda: without(writers.mae_full(192, 96), "decoder_pos_embed"), "is no whole decoder"),
        (lambda: writers.mae_full(192, 96) | {"decoder_embed.weight": torch.zeros(())},
         "is no whole decoder: decoder_embed.weight missing or of another form"),
        (lambda: writers.with_spare_block(writers.mae_full(192, 96)), "enters block 8 .D2-MAE"),
    ],
)  # fmt: skip
def test_it_is_described_in_words(tmp_path, write, words):
    kept = load_keepsakes(str(save(tmp_path, write())))
    assert re.search(words, describe_decoder(kept, "a.pth"))
    assert describe_decoder({}, "a.pth") == ""


def test_a_rectangle_s_positions_are_used_as_they_are(tmp_path):
    weights = writers.mae_full(192, 96)
    whole = load_autoencoder(save(tmp_path, weights), img_size=(16, 64))
    assert whole.facts.grid == whole.decoder.grid == (2, 8)
    assert torch.equal(whole.decoder.decoder_pos_embed, weights["decoder_pos_embed"])
    assert torch.equal(whole.encoder.model.pos_embed, weights["pos_embed"])
    decoder = load_decoder(tmp_path / "a.pth", grid=(8, 2))
    assert torch.equal(decoder.decoder_pos_embed, weights["decoder_pos_embed"])


def test_a_decoder_that_lost_its_last_block_is_told_or_refused(tmp_path, caplog):
    """A file that states its depth is refused; another one may be of that depth, and it is said."""
    weights = writers.mae_full(192, 512, 8)
    load_autoencoder(save(tmp_path, weights))
    assert "released ones" not in caplog.text
    cut = {n: v for n, v in weights.items() if not n.startswith("decoder_blocks.7.")}
    load_autoencoder(save(tmp_path, cut))
    assert "has 7 blocks, and the released ones 512 wide have 8: if its file lost" in caplog.text
    assert "512 wide have 8" in describe_decoder(load_keepsakes(str(tmp_path / "a.pth")), "a.pth")
    save_file(cut, tmp_path / "told.safetensors", {"decoder_depth": "8"})
    with pytest.raises(UserError, match="it states 8 blocks and has 7; get the file again"):
        load_autoencoder(tmp_path / "told.safetensors")


def without(weights, name):
    return {n: v for n, v in weights.items() if n != name}
