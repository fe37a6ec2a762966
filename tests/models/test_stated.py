"""What a file or an option states of a network, judged before anything is built."""

import pytest
import timm
import torch

from limbeck.errors import UserError
from limbeck.models.stated import arguments_of, check_kwargs, check_name, check_size
from limbeck.models.vit import build_encoder

SHAPE = {"img_size": 16, "patch_size": 8, "embed_dim": 24, "depth": 1, "num_heads": 2}


@pytest.mark.parametrize(
    "name", ["hf-hub:someone/something", "local-dir:/etc", "hf_hub:a/b", "../vit", "resnet50", ""]
)
def test_only_plain_names_are_built(name, monkeypatch):
    monkeypatch.setattr(timm, "create_model", lambda *args, **kwargs: pytest.fail("was built"))
    architecture = {"kind": "timm", "name": name, "kwargs": SHAPE, "mean": [0] * 3, "std": [1] * 3}
    with pytest.raises(UserError, match="no vision Transformer of timm"):
        build_encoder(architecture)
    check_name("vit_tiny_patch16_224")
    check_name("vit_tiny_patch16_224.augreg_in21k")


@pytest.mark.parametrize(
    "name",
    ["vit_tiny_patch16_224", "swin_tiny_patch4_window7_224", "beit_base_patch16_224", "resnet50",
     "hiera_tiny_224", "tiny_vit_5m_224", "vit_small_patch16_dinov3_qkvb"],
)  # fmt: skip
def test_no_argument_opens_anything(name):
    known = arguments_of(name)
    assert {"img_size", "num_classes"} <= known
    opening = {"pretrained", "checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay",
               "features_only", "scriptable", "cache_dir", "kwargs", "device"}  # fmt: skip
    assert not known & opening


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("pretrained", True),
        ("checkpoint_path", "/etc/passwd"),
        ("depth", 10**6),
        ("depth", 0),
        ("embed_dim", 10**6),
        ("img_size", 10**5),
        ("img_size", [16, -16]),
        ("mlp_ratio", 1e300),
        ("mlp_ratio", float("nan")),
        ("act_layer", "/etc/passwd"),
        ("num_heads", [[[[2]]]]),
        ("norm_layer", {"a": 1}),
        ("depths", [1] * 1000),
    ],
)
def test_arguments_of_no_network_are_refused(key, value):
    name = "vit_tiny_patch16_224"
    with pytest.raises(UserError, match=f"{name}' .*{key}"):
        check_kwargs(name, SHAPE | {key: value}, arguments_of(name) | {"depths"})
    check_kwargs(name, SHAPE | {"init_values": None, "img_size": (16, 16)}, arguments_of(name))


def test_a_network_is_not_larger_than_its_weights():
    with torch.device("meta"):
        model = torch.nn.Linear(2**14, 2**14)
    check_size(model, 2**28, "here")
    with pytest.raises(UserError, match="here: the network that is stated has 268,451,840 values"):
        check_size(model, 1000, "here")
