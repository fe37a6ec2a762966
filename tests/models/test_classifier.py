"""Classifiers of timm as teachers of logits: what they compute, and what they refuse."""

import json

import pytest
import timm
import torch
from safetensors.torch import save_file

from limbeck.errors import UserError
from limbeck.methods.teacher import Teacher
from limbeck.models.classifier import ClassifierEncoder
from limbeck.models.encoder import check_taps
from limbeck.models.finished import weight_hash
from limbeck.models.origins.inspection import inspect_file
from limbeck.models.origins.load import load_encoder
from limbeck.records import Tap

LOGITS = Tap("logits")


def logits_of(encoder, images):
    with torch.no_grad():
        return encoder(images, taps=(LOGITS,)).taps[LOGITS]


@pytest.fixture(scope="module")
def resnet():
    torch.manual_seed(0)
    return timm.create_model("test_resnet", num_classes=5).eval()


@pytest.fixture
def folder(resnet, tmp_path):
    """As timm saves a model to the hub."""
    save_file(resnet.state_dict(), tmp_path / "model.safetensors")
    config = {
        "architecture": "test_resnet", "num_classes": 5, "label_names": list("abcde"),
        "pretrained_cfg": {
            "input_size": [3, 40, 48], "mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6],
            "num_classes": 5, "license": "mit",
        },
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    return tmp_path


@pytest.mark.parametrize(
    "name", ["test_convnext", "test_efficientnet", "test_maxvit", "levit_128s"]
)
def test_it_says_what_timm_says(name):
    """Heads of several forms; the last is no linear layer alone."""
    encoder = load_encoder(f"timm:{name}", pretrained=False)
    assert isinstance(encoder, ClassifierEncoder) and not encoder.training
    images = torch.rand(1, 3, *encoder.facts.img_size)
    with torch.no_grad():
        expected = encoder.model((images - encoder.mean) / encoder.std)
    torch.testing.assert_close(logits_of(encoder, images), expected)


def test_a_folder_of_timm_tells_all(folder, resnet):
    encoder = load_encoder(folder)
    facts = encoder.facts
    assert (facts.depth, facts.num_heads, facts.num_classes) == (0, (), 5)
    assert facts.img_size == (40, 48)
    assert facts.mean == (0.1, 0.2, 0.3) and facts.std == (0.4, 0.5, 0.6)
    assert facts.origin["classes"] == list("abcde") and facts.origin["licence"] == "mit"
    assert facts.origin["weight_hash"] == weight_hash(resnet.state_dict())
    assert facts.identity["weights"] == facts.origin["weight_hash"]
    images = torch.rand(2, 3, 40, 48)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (facts.mean, facts.std))
    with torch.no_grad():
        expected = resnet((images - mean) / std)
    torch.testing.assert_close(logits_of(encoder, images), expected)
    larger = load_encoder(folder, img_size=64)
    assert larger.facts.img_size == (64, 64)
    assert logits_of(larger, torch.rand(1, 3, 64, 64)).shape == (1, 5)
    found = inspect_file(folder)
    assert found.num_classes == 5 and found.depth == 0


def test_a_file_with_the_model_s_name(tmp_path, resnet):
    torch.save({"state_dict": resnet.state_dict()}, tmp_path / "a.pth")
    encoder = load_encoder(tmp_path / "a.pth", model_name="test_resnet")
    assert encoder.facts.num_classes == 5
    assert encoder.facts.img_size == (160, 160)
    assert encoder.facts.origin["weight_hash"] == weight_hash(resnet.state_dict())
    with pytest.raises(UserError, match="can't make 'test_convnext'"):
        load_encoder(tmp_path / "a.pth", model_name="test_convnext")


def test_a_transformer_on_the_whole_image_is_built_for_its_size():
    encoder = load_encoder("timm:test_vit_relpos", pretrained=False, img_size=64, num_classes=3)
    assert logits_of(encoder, torch.rand(1, 3, 64, 64)).shape == (1, 3)


def test_its_logits_do_not_tie_in_low_precision(folder):
    images = torch.rand(4, 3, 40, 48)
    full = logits_of(load_encoder(folder), images)
    teacher = Teacher(load_encoder(folder), torch.device("cpu"), "bf16")
    model = teacher.encoder.model
    assert model.conv1[0].weight.dtype == torch.bfloat16
    assert model.fc.weight.dtype == torch.float32
    said = teacher(images, None, (LOGITS,)).taps[LOGITS]
    assert said.dtype == torch.float32
    assert not torch.equal(said, said.bfloat16().float())
    # bf16 has 8 bits; the logits are below 1
    torch.testing.assert_close(said, full, atol=0.02, rtol=0)


def test_what_it_has_not_is_refused(folder):
    encoder = load_encoder(folder)
    with pytest.raises(UserError, match="needs 'queries' of the teacher, which offers only logits"):
        check_taps(encoder, (Tap("queries"),), "teacher")
    with pytest.raises(UserError, match="test_resnet has no patches that could be dropped"):
        encoder(torch.rand(1, 3, 40, 48), torch.zeros(1, 1, dtype=torch.int64), (LOGITS,))
    with pytest.raises(UserError, match="test_resnet has no blocks"):
        encoder.set_num_heads(0, 4)
    for asked in ({"patch_size": 8}, {"num_heads": 4}, {"num_classes": 0}):
        with pytest.raises(UserError, match="is a classifier without patches and heads that could"):
            load_encoder(folder, **asked)
    with pytest.raises(UserError, match="has 5 classes, not 7"):
        load_encoder(folder, num_classes=7)
    with pytest.raises(UserError, match="'samvit_base_patch16' has no classifier, and it is no"):
        load_encoder("timm:samvit_base_patch16", pretrained=False, depth=1)
    with pytest.raises(UserError, match=r"no model 'resnet5O' in timm. Did you mean 'resnet50'"):
        load_encoder("timm:resnet5O")
