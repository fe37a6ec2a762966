"""Model names: complete, quick, without torch, and with the nearest name for a wrong one."""

import subprocess
import sys

import pytest
import timm
from timm.models import _registry

from limbeck.errors import UserError
from limbeck.models.shapes import SHORT_NAMES, check_model_name, known_model_names

MODULES = [
    *("vision_transformer", "vision_transformer_hybrid", "deit", "eva", "beit"),
    *("hiera", "swin_transformer", "tiny_vit"),
]


def test_names_are_those_that_timm_registers():
    registered = [name for module in MODULES for name in timm.list_models(module=module)]
    assert known_model_names() == sorted(registered)


def test_every_pretrained_tag_of_timm_is_accepted():
    tagged = [name for model in known_model_names() for name in _registry._model_with_tags[model]]
    assert len(tagged) > 300
    assert [check_model_name(name) for name in tagged] == tagged


def test_short_names():
    assert check_model_name("vit_tiny") == "vit_tiny_patch16_224"
    assert set(SHORT_NAMES.values()) <= set(known_model_names())


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("vit_tinny", "Did you mean 'vit_tiny'"),
        ("vit_base_patch14_dinov3", "Did you mean 'vit_base_patch16_dinov3'"),
        ("vit_base_patch16_224.maee", "no weights 'maee'.*Did you mean 'mae'.*It has .*augreg"),
        ("vit_bse_patch16_224.mae", "Did you mean 'vit_base_patch16_224.mae'"),
        ("qqqqqqq", "There is no vision Transformer 'qqqqqqq' in timm. Short names: vit_tiny"),
    ],
)
def test_wrong_names_get_the_nearest_one(name, message):
    with pytest.raises(UserError, match=message):
        check_model_name(name)


@pytest.mark.parametrize("name", ["samvit_base_patch16", "vit_relpos_small_patch16_224.sw_in1k"])
def test_models_of_timm_that_are_not_supported_are_said_to_be(name):
    with pytest.raises(UserError, match=f"timm's '{name.split('.')[0]}' is not supported; choose"):
        check_model_name(name)


def test_any_model_of_timm_may_be_asked_for():
    names = timm.list_models()
    assert [check_model_name(name, any_model=True) for name in names] == names
    for name in ("regnety_160.deit_in1k", "vit_base_patch16_224.mae"):
        assert check_model_name(name, any_model=True) == name
    with pytest.raises(UserError, match="timm's 'regnety_160' is not supported; choose a plain"):
        check_model_name("regnety_160.deit_in1k")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("regnety_161", r"There is no model 'regnety_161' in timm. Did you mean 'regnety_16\d'\?"),
        (
            "regnety_160.deit_in1kk",
            "no weights 'deit_in1kk' .* Did you mean 'deit_in1k'.*pycls_in1k",
        ),
        ("vit_base_patch16_224.maee", "no weights 'maee'.*Did you mean 'mae'"),
    ],
)
def test_a_wrong_name_among_all_gets_the_nearest_one(name, message):
    with pytest.raises(UserError, match=message):
        check_model_name(name, any_model=True)


def test_names_are_checked_without_torch_and_timm():
    code = (
        "import sys\n"
        "from limbeck.models.shapes import check_model_name, known_model_names\n"
        "check_model_name('vit_base_patch16_224.mae'); assert len(known_model_names()) > 200\n"
        "assert not {'torch', 'timm'} & set(sys.modules), 'torch or timm was imported'"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
