"""Every family is built small by ``transformers`` and must give the same tokens through timm."""

import json
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from limbeck.errors import UserError
from limbeck.models.origins import huggingface
from limbeck.models.origins.load import load_encoder
from limbeck.models.origins.repository import UnaskedError
from limbeck.models.vit import build_encoder
from limbeck.records import Tap

transformers = pytest.importorskip("transformers")

SMALL = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 56,
    "image_size": 32, "patch_size": 8,
}  # fmt: skip
DINOV2 = SMALL | {"mlp_ratio": 3}
TEXT = {
    "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8,
    "vocab_size": 16, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1,
}  # fmt: skip
BOTH = {"vision_config": SMALL, "text_config": TEXT}
REGISTERS = {"num_register_tokens": 4}

# Name: (model class, config class, config, how the final tokens are named in the model).
FAMILIES = {
    "vit": ("ViTModel", "ViTConfig", SMALL),
    "vit without qkv bias": ("ViTModel", "ViTConfig", SMALL | {"qkv_bias": False}),
    "vit, tanh gelu": ("ViTModel", "ViTConfig", SMALL | {"hidden_act": "gelu_pytorch_tanh"}),
    "vit, eps 1e-5": ("ViTModel", "ViTConfig", SMALL | {"layer_norm_eps": 1e-5}),
    "vit with a classifier": ("ViTForImageClassification", "ViTConfig", SMALL),
    "deit": ("DeiTModel", "DeiTConfig", SMALL),
    "deit with classifiers": ("DeiTForImageClassificationWithTeacher", "DeiTConfig", SMALL),
    "vit_mae": ("ViTMAEForPreTraining", "ViTMAEConfig", SMALL | {
        "mask_ratio": 0.0, "decoder_hidden_size": 16, "decoder_num_hidden_layers": 1,
        "decoder_num_attention_heads": 2, "decoder_intermediate_size": 16}),
    "vit_msn": ("ViTMSNForImageClassification", "ViTMSNConfig", SMALL),
    "ijepa": ("IJepaForImageClassification", "IJepaConfig", SMALL),
    "dinov2": ("Dinov2ForImageClassification", "Dinov2Config", DINOV2),
    "dinov2, swiglu": ("Dinov2Model", "Dinov2Config", DINOV2 | {"use_swiglu_ffn": True}),
    "dinov2 with registers": (
        "Dinov2WithRegistersModel", "Dinov2WithRegistersConfig", DINOV2 | REGISTERS),
    "dinov3": ("DINOv3ViTModel", "DINOv3ViTConfig", SMALL | REGISTERS),
    "dinov3 without registers": ("DINOv3ViTModel", "DINOv3ViTConfig", SMALL),
    "dinov3, swiglu": (
        "DINOv3ViTModel", "DINOv3ViTConfig",
        SMALL | REGISTERS | {"use_gated_mlp": True, "hidden_act": "silu"}),
    "clip": ("CLIPModel", "CLIPConfig", BOTH),
    "clip_vision_model": ("CLIPVisionModel", "CLIPVisionConfig", SMALL),
    "clip, gelu": ("CLIPVisionModel", "CLIPVisionConfig", SMALL | {"hidden_act": "gelu"}),
    "siglip": ("SiglipModel", "SiglipConfig", BOTH),
    "siglip_vision_model": ("SiglipVisionModel", "SiglipVisionConfig", SMALL),
}  # fmt: skip


def build(family: str):
    model_class, config_class, values = FAMILIES[family]
    config = getattr(transformers, config_class)(**values)
    # Looked at layer by layer in the tests, so the plain attention is enough.
    config._attn_implementation = "eager"
    model = getattr(transformers, model_class)(config).eval()
    with torch.no_grad():
        for name, value in model.named_parameters():
            # Every tensor, biases and norms too, at a scale at which it matters.
            is_norm_weight = "norm" in name and name.endswith("weight")
            centre = 1.0 if is_norm_weight or "lambda" in name else 0.0
            scale = 0.3 if value.ndim != 2 else value.shape[1] ** -0.5
            value.copy_(centre + scale * torch.randn(value.shape))
    return model


def run(model, pixels: torch.Tensor) -> torch.Tensor:
    """The last tokens after the final norm."""
    if hasattr(model, "vision_model"):
        model = model.vision_model
    inner = getattr(model, model.base_model_prefix, model)
    if not hasattr(inner, "embeddings"):
        inner = model
    if model.config.model_type == "vit_mae":
        # Without masking it still shuffles the patches by noise; this noise is their order.
        num_patches = (SMALL["image_size"] // SMALL["patch_size"]) ** 2
        noise = torch.arange(num_patches).float().expand(len(pixels), -1)
        return inner(pixels, noise=noise).last_hidden_state
    tokens = inner(pixels).last_hidden_state
    # CLIP norms only what it pools.
    return inner.post_layernorm(tokens) if "clip_vision" in inner.config.model_type else tokens


@pytest.mark.parametrize("family", FAMILIES)
def test_tokens_equal_those_of_transformers(tmp_path, family):
    model = build(family)
    model.save_pretrained(tmp_path)
    encoder = load_encoder(tmp_path)
    images = torch.rand(2, 3, 32, 32)
    mean, std = (
        torch.tensor(value).view(3, 1, 1) for value in (encoder.facts.mean, encoder.facts.std)
    )
    with torch.no_grad():
        expected = run(model, (images - mean) / std)
        tokens = encoder(images).tokens
        # 1e-4: float32 through two implementations, and an epsilon of 1e-6 instead of 1e-12.
        torch.testing.assert_close(tokens, expected, atol=1e-4, rtol=1e-4)
    again = build_encoder(encoder.facts.architecture)
    again.load_state_dict(encoder.state_dict())
    torch.testing.assert_close(again.eval()(images).tokens, tokens)


@pytest.mark.parametrize("family", ["vit with a classifier", "deit with classifiers", "vit_msn"])
def test_classifiers_that_timm_has_are_kept(tmp_path, family):
    model = build(family)
    model.save_pretrained(tmp_path)
    encoder = load_encoder(tmp_path)
    images = torch.rand(2, 3, 32, 32)
    mean, std = (
        torch.tensor(value).view(3, 1, 1) for value in (encoder.facts.mean, encoder.facts.std)
    )
    with torch.no_grad():
        logits = encoder(images, taps=(Tap("logits"),)).taps[Tap("logits")]
        expected = model((images - mean) / std).logits
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)
    assert load_encoder(tmp_path, num_classes=0).facts.num_classes == 0


@pytest.mark.parametrize(
    ("family", "part"),
    [("vit_mae", "the decoder"), ("siglip", "the attention pooling"), ("clip", "the text encoder"),
     ("dinov2", "the classifier"), ("dinov3", "the mask token")],
)  # fmt: skip
def test_what_is_left_out_is_named(tmp_path, family, part):
    build(family).save_pretrained(tmp_path)
    assert any(part in note for note in load_encoder(tmp_path).facts.origin["notes"])


def test_what_a_config_leaves_unsaid_is_the_family_s_default(tmp_path):
    build("siglip_vision_model").save_pretrained(tmp_path)
    # The published SigLIP files say no more than this.
    (tmp_path / "config.json").write_text(
        json.dumps({"model_type": "siglip", "vision_config": {"num_attention_heads": 4}})
    )
    facts = load_encoder(tmp_path).facts
    assert facts.architecture["kwargs"]["act_layer"] == "gelu_tanh"
    assert (facts.img_size, facts.patch_size, facts.has_cls_token) == ((32, 32), 8, False)


def test_preprocessing_and_licence_are_read(tmp_path):
    build("vit").save_pretrained(tmp_path)
    assert load_encoder(tmp_path).facts.mean == (0.5, 0.5, 0.5)
    values = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(values))
    (tmp_path / "README.md").write_text("---\ntags: [x]\nlicense: cc-by-nc-4.0\n---\n# A model\n")
    facts = load_encoder(tmp_path).facts
    assert (facts.mean, facts.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert facts.origin["licence"] == "cc-by-nc-4.0"


PROCESSORS = [
    {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]},
    {"image_mean": 0.5, "image_std": 0.25},
    {"do_normalize": False, "image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]},
    {"rescale_factor": 1 / 127.5, "image_mean": [1.0] * 3, "image_std": [1.0] * 3},
    {"rescale_factor": 1.0, "image_mean": [123.0, 116.0, 103.0], "image_std": [58.0, 57.0, 57.0]},
    {"rescale_factor": 0.01, "do_normalize": False},
    {"do_rescale": False, "image_mean": [123.0, 116.0, 103.0], "image_std": [58.0, 57.0, 57.0]},
]


@pytest.mark.parametrize("is_nested", [False, True])
@pytest.mark.parametrize("said", PROCESSORS)
def test_pixels_are_scaled_as_the_image_processor_does(tmp_path, said, is_nested):
    build("vit").save_pretrained(tmp_path)
    if is_nested:
        other = {"image_mean": [0.9] * 3, "image_std": [0.9] * 3}
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(other))
        nested = {"image_processor": said, "processor_class": "AProcessor"}
        (tmp_path / "processor_config.json").write_text(json.dumps(nested))
    else:
        (tmp_path / "processor_config.json").write_text('{"processor_class": "AProcessor"}')
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(said))
    facts = load_encoder(tmp_path).facts
    pixels = torch.randint(0, 256, (3, 32, 32), dtype=torch.uint8)
    processor = transformers.ViTImageProcessor(**said, do_resize=False)
    expected = processor(pixels, return_tensors="pt")["pixel_values"][0]
    mean, std = (torch.tensor(value).view(3, 1, 1) for value in (facts.mean, facts.std))
    torch.testing.assert_close((pixels / 255 - mean) / std, expected, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"do_rescale": False}, "nothing tells whether pixels go in as 0..255 or as 0..1"),
        ({"image_mean": [0.5, 0.5]}, "'image_mean' is .*3 items"),
        ({"image_mean": "half"}, "'image_mean.0' is 'half'"),
        ({"image_std": [0, 0, 0]}, "'image_std.0' is 0"),
        ({"rescale_factor": 0}, "'rescale_factor' is 0"),
        ([], "not an object"),
    ],
)
def test_a_processor_that_can_not_be_followed_is_refused(tmp_path, said, message):
    build("vit").save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(said))
    with pytest.raises(UserError, match=message):
        load_encoder(tmp_path)


@pytest.mark.parametrize(
    ("entry", "value"),
    [("num_attention_heads", 0), ("image_size", 10**5), ("hidden_act", []), ("id2label", [1]),
     ("layer_norm_eps", "x"), ("vision_config", 3), ("model_type", None)],
)  # fmt: skip
def test_entries_of_another_kind_are_named(tmp_path, entry, value):
    build("vit").save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(written | {entry: value}))
    with pytest.raises(UserError, match=entry if value is not None else "names no model type|conf"):
        load_encoder(tmp_path)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ({"0": "cat", "1": "dog", "2": "eel"}, ["cat", "dog", "eel"]),
        ({"2": "eel", "10": "yak", **{str(n): f"class {n}" for n in (0, 1, *range(3, 10))}},
         ["class 0", "class 1", "eel", *(f"class {n}" for n in range(3, 10)), "yak"]),
        ({"0": "LABEL_0", "1": "LABEL_1"}, None),
        ({"0": "cat", "2": "eel"}, None),
    ],
)  # fmt: skip
def test_a_classifier_s_classes_have_their_names(tmp_path, names, expected):
    config = transformers.ViTConfig(**SMALL, num_labels=len(names))
    transformers.ViTForImageClassification(config).save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(written | {"id2label": names}))
    assert load_encoder(tmp_path).facts.origin.get("classes") == expected
    assert "classes" not in load_encoder(tmp_path, num_classes=0).facts.origin


def test_the_weights_file_alone_is_told_by_the_config_beside_it(tmp_path):
    build("clip_vision_model").save_pretrained(tmp_path)
    encoder = load_encoder(tmp_path / "model.safetensors")
    assert encoder.facts.origin["layout"] == "Hugging Face clip_vision_model"


@pytest.mark.parametrize("family", ["vit", "dinov3", "siglip", "dinov2 with registers"])
def test_another_image_size(tmp_path, family):
    build(family).save_pretrained(tmp_path)
    encoder = load_encoder(tmp_path, img_size=48)
    assert encoder.facts.grid == (6, 6)
    assert encoder(torch.rand(1, 3, 48, 48)).tokens.shape[1] == 36 + encoder.facts.num_prefix_tokens
    is_said = any("interpolated from 4 x 4 to 6 x 6" in n for n in encoder.facts.origin["notes"])
    assert is_said == (family != "dinov3")  # rotary positions are computed, not stored


@pytest.mark.parametrize(
    ("family", "config", "message"),
    [
        ("vit", {"model_type": "swin"}, "type 'swin'.*Supported: vit, deit"),
        ("vit", {"model_type": "vits"}, "Did you mean 'vit'"),
        ("vit", {"hidden_act": "relu"}, "activation 'relu'"),
        ("vit", {"layer_norm_eps": 1e-3}, "epsilon of 0.001"),
        ("dinov3", {"hidden_act": "relu"}, "hidden_act = relu"),
        ("dinov3", {"layer_norm_eps": 1e-6}, "layer_norm_eps = 1e-06"),
    ],
)
def test_what_timm_can_not_be_is_refused(tmp_path, family, config, message):
    build(family).save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | config))
    with pytest.raises(UserError, match=message):
        load_encoder(tmp_path)


@pytest.mark.parametrize("family", ["vit", "dinov3", "siglip_vision_model"])
@pytest.mark.parametrize("what", ["missing", "unexpected", "misshapen"])
def test_one_wrong_tensor_is_an_error_that_names_it(tmp_path, family, what):
    build(family).save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    weights = load_file(file)
    name = next(n for n in weights if n.endswith("mlp.fc1.bias") or "intermediate.dense.bias" in n
                or n.endswith("mlp.up_proj.bias"))  # fmt: skip
    if what == "missing":
        del weights[name]
    else:
        weights[name + "x" if what == "unexpected" else name] = torch.zeros(3)
    save_file(weights, file)
    with pytest.raises(UserError, match=f"1 {what} .*fc1.bias|1 {what} .*up_proj.bias"):
        load_encoder(tmp_path)


def test_sharded_and_pickled_weights_are_read(tmp_path):
    build("vit").save_pretrained(tmp_path)
    whole = load_encoder(tmp_path).facts.origin["weight_hash"]
    weights = load_file(tmp_path / "model.safetensors")
    names = sorted(weights)
    index = {}
    for number, part in enumerate((names[:9], names[9:])):
        save_file({name: weights[name] for name in part}, tmp_path / f"part{number}.safetensors")
        index |= dict.fromkeys(part, f"part{number}.safetensors")
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    assert load_encoder(tmp_path).facts.origin["weight_hash"] == whole
    (tmp_path / "model.safetensors.index.json").unlink()
    torch.save(weights, tmp_path / "pytorch_model.bin")
    assert load_encoder(tmp_path).facts.origin["weight_hash"] == whole


def test_a_folder_without_weights_says_which_files_it_lacks(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vit"}))
    with pytest.raises(UserError, match="none of the files model.safetensors"):
        load_encoder(tmp_path)


@pytest.mark.parametrize(
    ("said", "note"),
    [
        (lambda *place: None, "No preprocessor_config.json"),
        (lambda *place: {"do_rescale": True}, "It names no mean and std"),
        (lambda *place: unasked(), "The hub could not be asked for preprocessor_config.json"),
    ],
    ids=["none", "silent", "unasked"],
)
def test_why_mean_and_std_are_the_usual_ones_is_noted(monkeypatch, said, note):
    monkeypatch.setattr(huggingface, "read_processor", said)
    family, notes = SimpleNamespace(norm=huggingface.HALF_NORM), []
    found = huggingface._read_norm("a/b", family, "hf:a/b", notes)
    assert found == ([0.5] * 3, [0.5] * 3)
    assert notes == [f"{note}: mean and std are the usual ones of its family."]


def unasked():
    raise UnaskedError("Can't get it.")
