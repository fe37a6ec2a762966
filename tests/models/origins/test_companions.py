"""Checkpoints of MAE-Lite and MoCo-v3: the network is loaded whole, the rest is named."""

import pytest
import torch
from safetensors.torch import save_file

from limbeck.errors import UserError
from limbeck.models.origins.companions import find_network
from limbeck.models.origins.inspection import inspect_file
from limbeck.models.origins.load import load_encoder
from limbeck.records import Tap
from tests.models.origins import writers

# Two implementations in float32, unit-scale tokens, two blocks.
CLOSE = {"atol": 2e-5, "rtol": 1e-4}
IMAGES = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def save(tmp_path, content, name="last_epoch_best_ckpt.pth.tar"):
    torch.save(content, tmp_path / name)
    return tmp_path / name


def assert_loaded(encoder, weights):
    """Every tensor where it belongs, and the same tokens as the reference."""
    own = encoder.model.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in own.items())
    expected = writers.run_reference(weights, IMAGES, encoder.facts.num_heads)
    torch.testing.assert_close(encoder(IMAGES).tokens, expected, **CLOSE)


@pytest.mark.parametrize("with_module", [True, False])
def test_mae_lite_pre_training_has_twelve_heads(tmp_path, with_module):
    weights = writers.mae_full(192, 96)
    content = writers.in_mae_lite(weights)
    if not with_module:  # one GPU
        content["model"] = {n.removeprefix("module."): v for n, v in content["model"].items()}
    encoder = load_encoder(save(tmp_path, content))
    assert encoder.facts.num_heads == (12, 12)
    assert encoder.facts.origin["layout"] == "mae_lite"
    notes = encoder.facts.origin["notes"]
    assert any("Head counts 12: usual for MAE-Lite" in note for note in notes)
    assert "Left out the decoder (19 tensors)." in notes
    assert_loaded(encoder, weights)


@pytest.mark.parametrize(
    ("width", "decoder", "heads"), [(192, 96, 12), (384, 192, 12), (384, 512, 6)]
)
def test_the_small_decoder_alone_tells_mae_lite(tmp_path, width, decoder, heads):
    save_file(writers.mae_full(width, decoder), tmp_path / "a.safetensors")
    assert load_encoder(tmp_path / "a.safetensors").facts.num_heads == (heads, heads)


def test_the_teacher_in_a_distilled_student_s_file_is_left_out_and_measured(tmp_path):
    weights, teacher = writers.mae_full(192, 96), writers.mae_encoder(384, depth=3)
    file = save(tmp_path, writers.d_mae(weights, teacher))
    encoder = load_encoder(file)
    assert encoder.facts.embed_dim == 192 and encoder.facts.num_heads == (12, 12)
    assert_loaded(encoder, weights)
    values = sum(value.numel() for value in teacher.values())
    size = f"the teacher that was saved with it, 3 blocks of width 384 with {values:,} values"
    notes = encoder.facts.origin["notes"]
    assert f"Left out {size} ({len(teacher)} tensors)." in notes
    assert "Left out the head mixer of its distillation (1 tensors)." in notes
    found = inspect_file(file)
    assert found.num_tensors == len(weights) + len(teacher) + 1
    assert f"{size} ({len(teacher)} tensors) would be left out" in found.notes
    assert found.num_heads == (12, 12) and found.unmatched == ()
    assert found.shapes["tch_model.cls_token"] == (1, 1, 384)


def test_the_decoupled_block_goes_and_the_norm_starts_fresh(tmp_path):
    weights = writers.mae_full(192, 96)
    content = writers.d_mae(writers.with_spare_block(weights), writers.mae_encoder(384))
    encoder = load_encoder(save(tmp_path, content))
    fresh = {"norm.weight": torch.ones(192), "norm.bias": torch.zeros(192)}
    assert encoder.facts.depth == 2
    assert_loaded(encoder, weights | fresh)
    notes = encoder.facts.origin["notes"]
    assert any("queries and keys alone, for its distillation (4 tensors)" in n for n in notes)
    assert any("final norm starts fresh" in note and "block 8" in note for note in notes)


def test_a_last_block_that_is_merely_cut_is_refused(tmp_path):
    weights = writers.with_spare_block(writers.mae_encoder(192))
    weights["blocks.2.attn.proj.bias"] = torch.zeros(192)
    with pytest.raises(UserError, match="missing .*blocks.2.attn.proj.weight"):
        load_encoder(save(tmp_path, writers.in_mae_lite(weights)))


def test_mae_lite_fine_tuned(tmp_path):
    weights = writers.fine_tuned(192)
    encoder = load_encoder(save(tmp_path, writers.in_mae_lite(weights)))
    assert encoder.facts.origin["layout"] == "mae_lite_fine_tuned"
    assert (encoder.facts.num_heads, encoder.facts.num_classes) == ((12, 12), 5)
    tokens = writers.run_reference(weights, IMAGES, (12, 12), norm=None)
    pooled = writers._norm(weights, "fc_norm", tokens[:, 1:].mean(1))
    logits = encoder(IMAGES, taps=(Tap("logits"),)).taps[Tap("logits")]
    expected = pooled @ weights["head.weight"].T + weights["head.bias"]
    torch.testing.assert_close(logits, expected, **CLOSE)


def classifier(width=192):
    """A class token, a final norm and a classifier: as DeiT's."""
    head = {"head.weight": torch.rand(5, width), "head.bias": torch.rand(5)}
    return writers.mae_encoder(width) | head


@pytest.mark.parametrize("width", [192, 384])
def test_a_classifier_of_the_class_token_has_twelve_heads_too(tmp_path, width):
    weights = classifier(width)
    encoder = load_encoder(save(tmp_path, writers.in_mae_lite(weights)))
    assert encoder.facts.num_heads == (12, 12) and encoder.model.global_pool == "token"
    notes = " ".join(encoder.facts.origin["notes"])
    assert "Head counts 12: usual for MAE-Lite fine-tuned: class token" in notes
    tokens = writers.run_reference(weights, IMAGES, (12, 12))
    expected = tokens[:, 0] @ weights["head.weight"].T + weights["head.bias"]
    torch.testing.assert_close(logits_of(encoder), expected, **CLOSE)


@pytest.mark.parametrize(
    "write", [classifier, writers.fine_tuned, writers.mae_encoder, writers.encoder_of_deit]
)
def test_without_the_entries_the_other_count_is_told(tmp_path, write):
    """DeiT's 3 heads and MAE-Lite's 12 have the same tensors."""
    encoder = load_encoder(save(tmp_path, {"model": write(192)}))
    assert encoder.facts.num_heads == (3, 3)
    assert "pass num_heads=12 for it" in " ".join(encoder.facts.origin["notes"])
    for content, heads in (({"model": write(192)}, 3), (writers.in_mae_lite(write(192)), None)):
        notes = load_encoder(save(tmp_path, content), num_heads=heads).facts.origin["notes"]
        assert "pass num_heads" not in " ".join(notes)


def logits_of(encoder, kind="logits"):
    with torch.no_grad():
        return encoder(IMAGES, taps=(Tap(kind),)).taps[Tap(kind)]


@pytest.mark.parametrize("norm", ["norm", "dist_norm"])
@pytest.mark.parametrize("has_entries", [True, False])
def test_a_second_classifier_on_the_class_token(tmp_path, norm, has_entries):
    """The labels' reads the mean of the patches, the teacher's the class token; then their mean."""
    weights = writers.fine_tuned(192) | {
        "head_dist.weight": torch.rand(5, 192), "head_dist.bias": torch.rand(5),
        f"{norm}.weight": torch.rand(192), f"{norm}.bias": torch.rand(192),
    }  # fmt: skip
    file = save(tmp_path, writers.in_mae_lite(weights) if has_entries else {"model": weights})
    encoder = load_encoder(file)
    assert (encoder.facts.num_heads, encoder.facts.num_classes) == ((12, 12), 5)
    tokens = writers.run_reference(weights, IMAGES, (12, 12), norm=None)
    pooled = writers._norm(weights, "fc_norm", tokens[:, 1:].mean(1))
    of_labels = pooled @ weights["head.weight"].T + weights["head.bias"]
    of_class = writers._norm(weights, norm, tokens[:, 0])
    of_teacher = of_class @ weights["head_dist.weight"].T + weights["head_dist.bias"]
    torch.testing.assert_close(logits_of(encoder, "class_logits"), of_labels, **CLOSE)
    torch.testing.assert_close(logits_of(encoder, "dist_logits"), of_teacher, **CLOSE)
    torch.testing.assert_close(logits_of(encoder), (of_labels + of_teacher) / 2, **CLOSE)
    assert inspect_file(file).unmatched == ()
    assert load_encoder(file, num_classes=0).facts.num_classes == 0
    del weights["head_dist.bias"]
    with pytest.raises(UserError, match="1 missing .head_dist.bias"):
        load_encoder(save(tmp_path, {"model": weights}))


def test_two_classifiers_of_a_token_of_its_own(tmp_path):
    """DeiT's distillation token with MAE-Lite's heads; and the plain reference of both."""
    weights = writers.encoder_of_deit(192)
    encoder = load_encoder(save(tmp_path, writers.in_mae_lite(weights)))
    assert encoder.facts.num_heads == (12, 12)
    tokens = writers.run_reference(weights, IMAGES, (12, 12))
    of_labels = tokens[:, 0] @ weights["head.weight"].T + weights["head.bias"]
    of_teacher = tokens[:, 1] @ weights["head_dist.weight"].T + weights["head_dist.bias"]
    torch.testing.assert_close(logits_of(encoder), (of_labels + of_teacher) / 2, **CLOSE)


def test_moco_v3_keeps_the_base_encoder(tmp_path):
    weights, content = writers.moco_v3()
    encoder = load_encoder(save(tmp_path, content))
    assert encoder.facts.num_heads == (12, 12)
    assert_loaded(encoder, weights)
    notes = encoder.facts.origin["notes"]
    assert any("the momentum encoder, 2 blocks of width 192" in note for note in notes)
    assert "Left out the predictor (1 tensors)." in notes
    assert "Left out the projection head (7 tensors)." in notes


def test_the_user_s_head_count_wins(tmp_path):
    file = save(tmp_path, writers.in_mae_lite(writers.mae_full(192, 96)))
    encoder = load_encoder(file, num_heads=3)
    assert encoder.facts.num_heads == (3, 3)


def test_a_part_that_is_not_known_is_refused_by_name(tmp_path):
    content = writers.d_mae(writers.mae_full(192, 96), writers.mae_encoder(384))
    content["model"]["module.surprise.weight"] = torch.zeros(2)
    file = save(tmp_path, content)
    message = "1 tensors that are neither the network's .*surprise.weight"
    with pytest.raises(UserError, match=message):
        load_encoder(file)
    found = inspect_file(file)
    assert "surprise.weight" in found.unmatched
    assert any("surprise.weight; remove them" in note for note in found.notes)


def test_a_lost_tensor_of_the_network_is_refused(tmp_path):
    content = writers.d_mae(writers.mae_full(192, 96), writers.mae_encoder(192))
    del content["model"]["module.model.blocks.1.norm1.bias"]  # the teacher has one of that name
    with pytest.raises(UserError, match="1 missing .blocks.1.norm1.bias"):
        load_encoder(save(tmp_path, content))


def test_a_prefix_is_removed_from_the_beginning_alone():
    weights = {"model.a.model.b": torch.zeros(1), "tch_model.a.model.b": torch.zeros(1)}
    found = find_network(weights)
    assert list(found.weights) == ["a.model.b"]
    assert found.left_out == {"the teacher that was saved with it": ["tch_model.a.model.b"]}


@pytest.mark.parametrize("separate", [True, False])
@pytest.mark.parametrize("scale", [True, False])
@pytest.mark.parametrize("has_tables", [True, False])
@pytest.mark.parametrize("has_entries", [True, False])
def test_files_in_beit_s_names(tmp_path, separate, scale, has_tables, has_entries):
    """All that fine-tuning has: with and without layer scale (2023, 2025; BootMAE's)."""
    weights = writers.fine_tuned(192)
    if has_tables:
        weights = writers.with_relative(weights, scale=scale)
    elif scale:
        weights |= {f"blocks.{i}.gamma_{k}": torch.rand(192) for i in (0, 1) for k in (1, 2)}
    if separate:
        weights = writers.with_separate_bias(weights)
    file = save(tmp_path, writers.in_mae_lite(weights) if has_entries else {"model": weights})
    if not (has_entries or has_tables) and (separate or scale):
        with pytest.raises(UserError, match="in no layout that is known"):  # EVA has these, too
            load_encoder(file)
        return
    encoder = load_encoder(file, num_heads=None if has_entries or has_tables else 12)
    assert encoder.facts.num_heads == (12, 12)
    assert inspect_file(file).unmatched == ()
    tokens = writers.run_reference(weights, IMAGES, (12, 12), norm=None)
    pooled = writers._norm(weights, "fc_norm", tokens[:, 1:].mean(1))
    expected = pooled @ weights["head.weight"].T + weights["head.bias"]
    torch.testing.assert_close(logits_of(encoder), expected, **CLOSE)


def relative_file(tmp_path, *, separate, scale=True, side=4):
    weights = writers.with_relative(writers.fine_tuned(192), scale=scale, side=side)
    weights = writers.with_separate_bias(weights) if separate else weights
    return weights, save(tmp_path, writers.in_mae_lite(weights))


def test_relative_positions_with_separate_biases(tmp_path):
    weights, file = relative_file(tmp_path, separate=True)
    encoder = load_encoder(file)
    assert encoder.facts.num_heads == (12, 12)
    assert encoder.facts.num_classes == 5 and not encoder.facts.can_drop
    tokens = encoder(IMAGES, taps=(Tap("tokens"),)).taps[Tap("tokens")]
    expected = writers.run_reference(weights, IMAGES, (12, 12), norm=None)
    torch.testing.assert_close(tokens, expected, **CLOSE)
    notes = encoder.facts.origin["notes"]
    assert "Left out tables of indices, which are computed (2 tensors)." in notes
    assert inspect_file(file).unmatched == ()
    assert "blocks.0.gamma_1" in encoder.model.state_dict()


def test_relative_positions_with_a_whole_bias(tmp_path):
    weights, file = relative_file(tmp_path, separate=False)
    tokens = load_encoder(file)(IMAGES, taps=(Tap("tokens"),)).taps[Tap("tokens")]
    expected = writers.run_reference(weights, IMAGES, (12, 12), norm=None)
    torch.testing.assert_close(tokens, expected, **CLOSE)


def test_layer_scale_alone_is_the_plain_vit_s(tmp_path):
    weights = writers.mae_encoder(192) | {
        f"blocks.{index}.gamma_{k}": torch.rand(192) for index in (0, 1) for k in (1, 2)
    }
    encoder = load_encoder(save(tmp_path, writers.in_mae_lite(weights)))
    assert "blocks.0.ls1.gamma" in encoder.model.state_dict()
    expected = writers.run_reference(weights, IMAGES, (12, 12))
    torch.testing.assert_close(encoder(IMAGES).tokens, expected, **CLOSE)


def test_files_without_a_prefix_that_only_beit_could_be(tmp_path):
    """Separate biases and layer scale, with the head of its pre-training and a mask token."""
    weights = writers.with_separate_bias(writers.mae_encoder(192)) | {
        f"blocks.{index}.gamma_{k}": torch.rand(192) for index in (0, 1) for k in (1, 2)
    }
    head = {"lm_head.weight": torch.rand(7, 192), "lm_head.bias": torch.rand(7)}
    file = save(tmp_path, weights | head | {"mask_token": torch.rand(1, 1, 192)})
    with pytest.raises(UserError, match="width of 192 does not tell it .*num_heads"):
        load_encoder(file)
    encoder = load_encoder(file, num_heads=12)
    expected = writers.run_reference(weights, IMAGES, (12, 12))
    torch.testing.assert_close(encoder(IMAGES).tokens, expected, **CLOSE)
    assert "Left out the head of its pre-training (2 tensors)." in encoder.facts.origin["notes"]


def test_biases_apart_without_more_could_be_eva_and_are_refused(tmp_path):
    weights = writers.with_separate_bias(writers.mae_encoder(192))
    with pytest.raises(UserError, match="in no layout that is known"):
        load_encoder(save(tmp_path, weights))
