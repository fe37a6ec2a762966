import json

import pytest
import timm
import torch
from safetensors.torch import save_file

from limbeck.errors import UserError
from limbeck.models.finished import weight_hash
from limbeck.models.origins import timm as origin
from limbeck.models.origins.load import load_encoder
from limbeck.models.vit import build_encoder
from limbeck.records import Tap

SMALL = {"embed_dim": 32, "depth": 2, "num_heads": 4, "img_size": 32, "patch_size": 8}


def make(name, **kwargs):
    """A timm model with every tensor, biases and norms too, at a scale at which it matters."""
    model = timm.create_model(name, **SMALL | kwargs).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return model


def expected_tokens(model, encoder, images):
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (encoder.facts.mean, encoder.facts.std))
    return model.forward_features((images - mean) / std)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """timm's hub as a folder: the file to be fetched next, and what was asked for."""
    asked = []

    def fetch(repository, names, source):
        asked.append(repository)
        return tmp_path / "model.safetensors"

    monkeypatch.setattr(origin, "fetch", fetch)

    def offer(model):
        save_file(model.state_dict(), tmp_path / "model.safetensors")
        return asked

    return offer


# Wide enough for the three heads that the name has.
SHAPE = {"embed_dim": 48, "depth": 2}
FULL_SIZE = SHAPE | {"num_heads": 3, "img_size": 224, "patch_size": 16, "num_classes": 1000}


def test_weights_come_from_timm_s_hub_with_their_classifier(hub):
    model = make("vit_tiny_patch16_224", **FULL_SIZE)
    asked = hub(model)
    encoder = load_encoder("timm:vit_tiny_patch16_224", **SHAPE)
    assert asked == ["timm/vit_tiny_patch16_224.augreg_in21k_ft_in1k"]
    images = torch.rand(1, 3, 224, 224)
    torch.testing.assert_close(
        encoder(images).tokens, expected_tokens(model, encoder, images), atol=1e-6, rtol=1e-5
    )
    assert encoder.facts.mean == (0.5, 0.5, 0.5)
    assert encoder.facts.num_classes == 1000
    assert encoder.facts.origin["licence"] == "apache-2.0"
    assert encoder.facts.origin["notes"] == []
    assert encoder.facts.architecture["name"] == "vit_tiny_patch16_224"
    again = build_encoder(encoder.facts.architecture)
    again.load_state_dict(encoder.state_dict())
    torch.testing.assert_close(again.eval()(images).tokens, encoder(images).tokens)


def test_a_smaller_image_interpolates_and_says_so(hub, caplog):
    hub(make("vit_tiny_patch16_224", **FULL_SIZE))
    with caplog.at_level("INFO", "limbeck"):
        encoder = load_encoder("timm:vit_tiny_patch16_224", img_size=64, num_heads=2, **SHAPE)
    assert "Positions interpolated from 14 x 14 to 4 x 4 patches." in caplog.text
    assert encoder.facts.num_heads == (2, 2)
    assert encoder(torch.rand(1, 3, 64, 64)).tokens.shape == (1, 17, 48)


def test_the_hash_is_that_of_the_weights_at_their_own_size(hub, tmp_path):
    model = make("vit_tiny_patch16_224", **FULL_SIZE)
    hub(model)
    sizes = ({}, {"img_size": 64}, {"img_size": 96, "patch_size": 8})
    encoders = [load_encoder("timm:vit_tiny", **SHAPE, **size) for size in sizes]
    hashes = {encoder.facts.origin["weight_hash"] for encoder in encoders}
    assert hashes == {weight_hash(model.state_dict())}


def test_the_classifier_can_be_left_out_but_not_replaced(hub):
    hub(make("vit_tiny_patch16_224", **FULL_SIZE))
    encoder = load_encoder("timm:vit_tiny", num_classes=0, **SHAPE)
    assert "logits" not in encoder.offered_taps()
    with pytest.raises(UserError, match="1000 classes, not 10"):
        load_encoder("timm:vit_tiny", num_classes=10, **SHAPE)


def test_weights_that_do_not_fit_are_an_error(hub):
    model = make("vit_tiny_patch16_224", **FULL_SIZE)
    del model.blocks[1].norm2
    hub(model)
    with pytest.raises(UserError, match=r"blocks\.1\.norm2\.weight"):
        load_encoder("timm:vit_tiny_patch16_224", **SHAPE)


def test_missing_weights_never_become_random_ones(monkeypatch):
    def fail(repository, names, source):
        raise UserError("no network")

    monkeypatch.setattr(origin, "fetch", fail)
    with pytest.raises(UserError, match="no network"):
        load_encoder("timm:vit_tiny_patch16_224")


def test_a_model_without_published_weights_says_which_have_some():
    with pytest.raises(
        UserError, match="timm has no weights for 'vit_base_patch16_xp_224'.*pass a"
    ):
        load_encoder("timm:vit_base_patch16_xp_224")


def test_random_weights_only_when_asked_for():
    torch.manual_seed(1)
    encoder = load_encoder("timm:vit_small_patch16_224", pretrained=False, num_classes=3, **SMALL)
    assert encoder.facts.origin["notes"] == ["Random weights (pretrained=False)."]
    assert encoder.facts.num_classes == 3
    assert not encoder.training


def test_arguments_must_be_plain_data():
    with pytest.raises(UserError, match="must be plain data"):
        load_encoder("timm:vit_tiny", pretrained=False, act_layer=torch.nn.ReLU)
    with pytest.raises(UserError, match="can't make 'vit_tiny_patch16_224'.*no_such"):
        load_encoder("timm:vit_tiny", pretrained=False, no_such=1)


# Families whose tensors do not tell everything: their files need the model's name.
NAMED = {
    "clip": ("vit_base_patch16_clip_quickgelu_224", {"num_classes": 0}),
    "siglip": ("vit_base_patch16_siglip_224", {}),
    "so400m": ("vit_so400m_patch14_siglip_224", {"mlp_ratio": 4}),
    "dinov3": ("vit_small_patch16_dinov3", {"num_classes": 0}),
    "eva02": ("eva02_tiny_patch14_224", {"num_classes": 0}),
    "beit": ("beit_base_patch16_224", {"num_classes": 7}),
}


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["cat", "dog", "eel"], ["cat", "dog", "eel"]),
        ({"0": "cat", "7": "dog"}, None),
        (None, None),
    ],
)
def test_a_folder_of_timm_may_name_its_classes(tmp_path, names, expected):
    name = "vit_tiny_patch16_224"
    save_file(make(name, num_classes=3).state_dict(), tmp_path / "model.safetensors")
    config = {
        "architecture": name, "num_classes": 3, "label_names": names,
        "pretrained_cfg": {"input_size": [3, 32, 32], "num_classes": 3}, "model_args": SMALL,
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert load_encoder(tmp_path).facts.origin.get("classes") == expected


@pytest.mark.parametrize("family", NAMED)
def test_a_folder_of_timm_is_told_by_its_config(tmp_path, family):
    name, kwargs = NAMED[family]
    model = make(name, **kwargs)
    # Clones: some models hold tensors twice.
    weights = {key: value.clone() for key, value in model.state_dict().items()}
    save_file(weights, tmp_path / "model.safetensors")
    described = {
        "input_size": [3, 32, 32], "mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6],
        "num_classes": model.num_classes, "license": "mit",
    }  # fmt: skip
    config = {"architecture": name, "pretrained_cfg": described, "model_args": SMALL | kwargs}
    (tmp_path / "config.json").write_text(json.dumps(config))
    encoder = load_encoder(tmp_path)
    assert encoder.facts.mean == (0.1, 0.2, 0.3)
    assert encoder.facts.num_classes == model.num_classes
    assert encoder.facts.origin["licence"] == "mit"
    images = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(
        encoder(images).tokens, expected_tokens(model, encoder, images), atol=1e-6, rtol=1e-5
    )


@pytest.mark.parametrize("family", ["clip", "siglip"])
def test_a_file_with_the_model_s_name(tmp_path, family):
    name, kwargs = NAMED[family]
    # The real width, because a file alone has no other arguments.
    model = timm.create_model(name, depth=1, **kwargs).eval()
    torch.save({"model": model.state_dict()}, tmp_path / "a.pth")
    with pytest.raises(UserError, match="model_name"):
        load_encoder(tmp_path / "a.pth")
    with pytest.raises(UserError, match=r"blocks\.11\."):
        load_encoder(tmp_path / "a.pth", model_name=name)


def test_a_timm_file_at_another_size_says_so(tmp_path):
    model = make("vit_tiny_patch16_224", num_classes=5)
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    config = {"architecture": "vit_tiny_patch16_224", "num_classes": 5, "model_args": SMALL,
              "input_size": [3, 32, 32]}  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    encoder = load_encoder(tmp_path, img_size=48)
    assert encoder.facts.grid == (6, 6)
    assert any("Positions interpolated" in note for note in encoder.facts.origin["notes"])
    logits = encoder(torch.rand(1, 3, 48, 48), taps=(Tap("logits"),)).taps[Tap("logits")]
    assert logits.shape == (1, 5)


@pytest.mark.parametrize("name", ["hiera_tiny_224", "swin_tiny_patch4_window7_224"])
def test_patches_of_stages_can_not_be_set(name):
    with pytest.raises(UserError, match="is an encoder of stages; leave patch_size away"):
        load_encoder(f"timm:{name}", pretrained=False, patch_size=8, img_size=256)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"architecture": "hf-hub:someone/something"}, "no model 'hf-hub:someone/something'"),
        ({"architecture": ["a"]}, "'architecture'"),
        ({"model_args": {"pretrained": True}}, "'pretrained', which is none of its arguments"),
        ({"model_args": {"checkpoint_path": "/etc/passwd"}}, "'checkpoint_path'"),
        ({"model_args": {"features_only": True}}, "'features_only'"),
        ({"model_args": SMALL | {"depth": 10**6}}, "depth = 1000000"),
        ({"model_args": SMALL | {"embed_dim": 65536, "num_heads": 1}}, "do not belong together"),
        ({"pretrained_cfg": {"mean": [0.5, 0.5]}}, "'pretrained_cfg.mean'"),
        ({"pretrained_cfg": {"input_size": [3, 10**6, 10**6]}}, "'pretrained_cfg.input_size.1'"),
        ({"pretrained_cfg": {"num_classes": -1}}, "'pretrained_cfg.num_classes'"),
    ],
)
def test_what_a_folder_of_timm_may_not_say(tmp_path, changed, message):
    name = "vit_tiny_patch16_224"
    save_file(make(name, num_classes=3).state_dict(), tmp_path / "model.safetensors")
    config = {"architecture": name, "num_classes": 3, "model_args": SMALL} | changed
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=message):
        load_encoder(tmp_path)
