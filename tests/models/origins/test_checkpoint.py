import pytest
import torch
from safetensors.torch import save_file

from limbeck.errors import UserError
from limbeck.models.finished import weight_hash
from limbeck.models.heads import with_classifier
from limbeck.models.origins.load import load_encoder
from limbeck.ops.pos_embed import interpolate_pos_embed
from limbeck.records import Tap
from tests.models.origins import writers

# Two implementations in float32, unit-scale tokens, two blocks.
CLOSE = {"atol": 2e-5, "rtol": 1e-4}


@pytest.fixture
def images():
    return torch.rand(2, 3, 32, 32)


def save(tmp_path, weights):
    file = tmp_path / "weights.safetensors"
    save_file(weights, file)
    return file


@pytest.mark.parametrize("width", [192, 384])
def test_mae_encoder_equals_the_reference(tmp_path, images, width):
    weights = writers.mae_encoder(width)
    encoder = load_encoder(save(tmp_path, weights))
    heads = (width // 64,) * 2
    assert encoder.facts.num_heads == heads
    assert not encoder.training
    torch.testing.assert_close(
        encoder(images).tokens, writers.run_reference(weights, images, heads), **CLOSE
    )
    origin = encoder.facts.origin
    assert origin["layout"] == "mae_encoder"
    assert len(origin["weight_hash"]) == 64
    assert encoder.facts.mean == (0.485, 0.456, 0.406)
    assert any("Head counts" in note for note in origin["notes"])


def test_mae_with_decoder_names_the_decoder_as_left_out(tmp_path, images):
    weights = writers.mae_full()
    encoder = load_encoder(save(tmp_path, weights), num_heads=4)
    torch.testing.assert_close(
        encoder(images).tokens, writers.run_reference(weights, images, (4, 4)), **CLOSE
    )
    notes = encoder.facts.origin["notes"]
    assert any(note.startswith("Left out the decoder (19 tensors)") for note in notes)


@pytest.mark.parametrize("num_heads", [None, 12])
def test_g2sd_s_student_is_read_without_what_it_learnt_with(tmp_path, images, num_heads):
    weights = writers.g2sd(192)
    torch.save(writers.in_g2sd(weights), tmp_path / "checkpoint-299.pth")
    encoder = load_encoder(tmp_path / "checkpoint-299.pth", num_heads=num_heads)
    heads = (num_heads or 3,) * 2
    torch.testing.assert_close(
        encoder(images).tokens, writers.run_reference(weights, images, heads), **CLOSE
    )
    assert encoder.facts.origin["layout"] == "g2sd"
    notes = encoder.facts.origin["notes"]
    assert "Left out the decoder (55 tensors)." in notes
    for what in ("decoder", "encoder"):
        assert f"Left out the projection of the {what}'s tokens (4 tensors)." in notes
    assert any("pass num_heads=12" in note for note in notes) == (num_heads is None)


def test_a_shallow_decoder_does_not_make_g2sd_s_student_one_of_mae_lite(tmp_path):
    file = save(tmp_path, writers.g2sd(192, 96, decoder_depth=1))
    assert load_encoder(file).facts.num_heads == (3, 3)


def test_tinymim_pretraining_gives_the_relations_it_was_trained_for(tmp_path, images):
    weights = writers.tinymim(192)
    encoder = load_encoder(writers.save_published(tmp_path / "TinyMIM-PT-T.pth", weights))
    assert encoder.facts.num_heads == (6, 12)
    taps = encoder(images, taps=(Tap("queries"), Tap("tokens", 0))).taps
    assert taps[Tap("queries")].shape == (2, 12, 17, 16)
    torch.testing.assert_close(
        taps[Tap("tokens", 0)], writers.run_reference(weights, images, (6,), norm=None), **CLOSE
    )


def test_tinymim_head_counts_can_be_overridden(tmp_path):
    file = save(tmp_path, writers.tinymim(192))
    assert load_encoder(file, num_heads=3).facts.num_heads == (3, 3)
    assert load_encoder(file, num_heads=[12, 6]).facts.num_heads == (12, 6)


@pytest.mark.parametrize("fc_norm_dim", [40, 192], ids=["wide fc_norm", "narrow fc_norm"])
def test_tinymim_tstar_loads_whole(tmp_path, images, fc_norm_dim):
    weights = writers.tinymim_tstar(192, fc_norm_dim=fc_norm_dim)
    file = writers.save_published(tmp_path / "TinyMIM-FT-Tstar.pth", weights)
    encoder = load_encoder(file)
    facts = encoder.facts
    assert (facts.num_prefix_tokens, facts.num_heads, facts.num_classes) == (2, (12, 12), 5)
    assert facts.architecture["kwargs"]["fc_norm_dim"] == fc_norm_dim
    own = encoder.model.state_dict()
    assert own.keys() == weights.keys()
    assert all(torch.equal(own[name], value) for name, value in weights.items())
    tokens = encoder(images, taps=(Tap("tokens"),)).taps[Tap("tokens")]
    torch.testing.assert_close(
        tokens, writers.run_reference(weights, images, (12, 12), None), **CLOSE
    )
    notes = " ".join(facts.origin["notes"])
    assert "never published" in notes and "Left out" not in notes
    bare = load_encoder(file, num_classes=0)
    assert bare.facts.num_classes == 0 and bare(images).tokens.shape == (2, 18, 40)


def test_tinymim_tstar_takes_another_image_size(tmp_path):
    weights = writers.tinymim_tstar(192)
    encoder = load_encoder(save(tmp_path, weights), img_size=48)
    table = interpolate_pos_embed(weights["pos_embed"], 2, (4, 4), (6, 6))
    torch.testing.assert_close(encoder.model.pos_embed, table)


def test_a_tinymim_tstar_that_lacks_a_part_is_refused(tmp_path):
    for name in ("fc_norm.weight", "head_dist.bias", "conv1x1.0.bias"):
        weights = writers.tinymim_tstar(192)
        del weights[name]
        with pytest.raises(UserError, match=f"1 missing .{name}"):
            load_encoder(save(tmp_path, weights))


def test_published_counts_of_g2sds_second_stage():
    """155 tensors of the student, 152 of its teacher, MAE's fine-tuned ViT."""
    assert len(writers.g2sd_specific(depth=12)) == 155
    assert len(writers.fine_tuned(depth=12)) == 152


def test_g2sd_specific_loads_whole_with_its_token_at_the_end(tmp_path, images):
    weights = writers.g2sd_specific(192)
    file = writers.save_published(tmp_path / "checkpoint-199.pth", weights, scaler={"scale": 1.0})
    encoder = load_encoder(file)
    facts = encoder.facts
    assert (facts.num_prefix_tokens, facts.num_heads, facts.num_classes) == (2, (3, 3), 5)
    assert facts.has_dist_head and facts.architecture["kind"] == "distilled-last"
    assert facts.origin["layout"] == "g2sd_specific"
    assert any("ViT-Ti with 12 heads looks the same" in note for note in facts.origin["notes"])
    own = encoder.model.state_dict()
    assert own.keys() == weights.keys()
    assert all(torch.equal(own[name], value) for name, value in weights.items())
    tokens = writers.run_reference(weights, images, (3, 3))
    of_class = tokens[:, 0] @ weights["head.weight"].T + weights["head.bias"]
    of_dist = tokens[:, -1] @ weights["head_dist.weight"].T + weights["head_dist.bias"]
    logits = encoder(images, taps=(Tap("logits"),)).taps[Tap("logits")]
    torch.testing.assert_close(logits, (of_class + of_dist) / 2, **CLOSE)
    bare = load_encoder(file, num_classes=0)
    assert bare.facts.num_classes == 0 and bare(images).tokens.shape == (2, 18, 192)
    larger = load_encoder(file, img_size=48)
    table = interpolate_pos_embed(weights["pos_embed"], 1, (4, 4), (6, 6))
    torch.testing.assert_close(larger.model.pos_embed, table)


def test_g2sd_specific_that_lacks_a_part_or_has_one_more_is_refused(tmp_path):
    for name in ("norm.weight", "head_dist.bias", "blocks.1.mlp.fc1.bias"):
        weights = writers.g2sd_specific(192)
        del weights[name]
        with pytest.raises(UserError, match=f"1 missing .{name}"):
            load_encoder(save(tmp_path, weights))
    more = writers.g2sd_specific(192) | {"decoder_embed.bias": torch.zeros(3)}
    with pytest.raises(UserError, match="1 unexpected .decoder_embed.bias"):
        load_encoder(save(tmp_path, more))


def test_g2sds_second_stage_starts_from_the_encoder_alone(tmp_path):
    """Missing are the token and the heads; left out is the decoder; a lost tensor is an error."""
    weights = writers.mae_full(192)
    start = load_encoder(save(tmp_path, weights))
    model = with_classifier(start, 5, None, seed=0, head="distilled-last")
    own = model.model.state_dict()
    added = {"dist_token", "head.weight", "head.bias", "head_dist.weight", "head_dist.bias"}
    assert own.keys() - weights.keys() == added
    left = weights.keys() - own.keys()
    assert all(name.startswith(("decoder_", "mask_token")) for name in left)
    assert all(torch.equal(own[name], weights[name]) for name in own.keys() & weights.keys())
    del weights["blocks.1.norm2.bias"]
    with pytest.raises(UserError, match=r"1 missing .blocks\.1\.norm2\.bias"):
        load_encoder(save(tmp_path, weights))


def test_fine_tuned_keeps_its_classifier(tmp_path, images):
    weights = writers.fine_tuned(192)
    file = save(tmp_path, weights)
    encoder = load_encoder(file)
    tokens = writers.run_reference(weights, images, (3, 3), norm=None)
    pooled = torch.nn.functional.layer_norm(
        tokens[:, 1:].mean(1), (192,), weights["fc_norm.weight"], weights["fc_norm.bias"], 1e-6
    )
    expected = pooled @ weights["head.weight"].T + weights["head.bias"]
    logits = encoder(images, taps=(Tap("logits"),)).taps[Tap("logits")]
    torch.testing.assert_close(logits, expected, **CLOSE)
    assert load_encoder(file, num_classes=0).facts.num_classes == 0
    with pytest.raises(UserError, match="5 classes, not 7"):
        load_encoder(file, num_classes=7)


@pytest.mark.parametrize("num_registers", [0, 4])
def test_dinov2_as_published(tmp_path, images, num_registers):
    weights = writers.dinov2(384, num_registers=num_registers)
    torch.save(weights, tmp_path / "dinov2_vits14_pretrain.pth")
    encoder = load_encoder(tmp_path / "dinov2_vits14_pretrain.pth")
    assert encoder.facts.num_prefix_tokens == 1 + num_registers
    torch.testing.assert_close(
        encoder(images).tokens, writers.run_reference(weights, images, (6, 6)), **CLOSE
    )


def test_another_image_size_interpolates_and_says_so(tmp_path, caplog):
    weights = writers.mae_encoder(192)
    file = save(tmp_path, weights)
    with caplog.at_level("INFO", "limbeck"):
        encoder = load_encoder(file, img_size=(48, 40))
    sentence = "Positions interpolated from 4 x 4 to 6 x 5 patches."
    assert sentence in caplog.text
    assert sentence in encoder.facts.origin["notes"]
    images = torch.rand(1, 3, 48, 40)
    table = interpolate_pos_embed(weights["pos_embed"], 1, (4, 4), (6, 5))
    expected = writers.run_reference(weights | {"pos_embed": table}, images, (3, 3))
    torch.testing.assert_close(encoder(images).tokens, expected, **CLOSE)
    own_hash = load_encoder(file).facts.origin["weight_hash"]
    assert encoder.facts.origin["weight_hash"] == own_hash == weight_hash(weights)


def test_loading_leaves_the_random_state_alone(tmp_path):
    file = save(tmp_path, writers.mae_encoder(192))
    before = torch.get_rng_state()
    load_encoder(file)
    assert torch.equal(before, torch.get_rng_state())


def test_half_precision_files_load_as_float32(tmp_path):
    weights = {name: value.half() for name, value in writers.mae_encoder(192).items()}
    encoder = load_encoder(save(tmp_path, weights))
    assert {value.dtype for value in encoder.parameters()} == {torch.float32}


@pytest.mark.parametrize(
    "change",
    [
        lambda w: w.pop("blocks.1.norm1.bias"),
        lambda w: w.pop("norm.weight"),
        lambda w: w.update({"blocks.1.extra.weight": torch.zeros(3)}),
        lambda w: w.update({"blocks.1.mlp.fc1.bias": torch.zeros(3)}),
    ],
    ids=["missing", "missing norm", "unexpected", "misshapen"],
)
@pytest.mark.parametrize("write", [writers.mae_encoder, writers.mae_full, writers.dinov2])
def test_one_wrong_tensor_is_an_error_that_names_it(tmp_path, request, change, write):
    weights = write(192)
    whole = set(weights)
    change(weights)
    names = whole ^ set(weights) or {"blocks.1.mlp.fc1.bias"}
    kind = request.node.callspec.id.split("-")[-1].split()[0]
    with pytest.raises(UserError) as error:
        load_encoder(save(tmp_path, weights))
    assert f"1 {kind}" in str(error.value)
    assert all(name in str(error.value) for name in names)


def test_a_lost_block_is_listed_whole(tmp_path):
    weights = writers.mae_encoder(192, depth=3)
    weights = {name: value for name, value in weights.items() if "blocks.1." not in name}
    with pytest.raises(UserError, match="12 missing"):
        load_encoder(save(tmp_path, weights))


def test_patch_size_is_that_of_the_file(tmp_path):
    file = save(tmp_path, writers.mae_encoder(192))
    assert load_encoder(file, patch_size=8).facts.patch_size == 8
    with pytest.raises(UserError, match="patches of 8 pixels, not 16"):
        load_encoder(file, patch_size=16)


def test_weights_whose_activation_is_not_told_ask_for_the_model(tmp_path):
    weights = writers.draw(writers.encoder_shapes(192) | {"norm_pre.weight": (192,)})
    with pytest.raises(UserError, match="model_name"):
        load_encoder(save(tmp_path, weights))
