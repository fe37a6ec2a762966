"""The table of formats is whole, and what it says is what the user reads."""

import importlib.util

import pytest

from limbeck.errors import UserError
from limbeck.exports import formats
from limbeck.exports.formats import (
    FORMATS,
    INPUTS,
    WORDS,
    check_held,
    check_packages,
    has_packages,
    input_of,
    module_of,
)


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_has_its_module_and_its_words(name):
    module, known = module_of(name), FORMATS[name]
    assert callable(module.write) and callable(module.load)
    assert known.suffix.startswith(".") and set(known.inputs) <= set(INPUTS)
    assert set(known.refused) <= {"bf16", "fp16", "int8", *WORDS}
    assert set(known.computes) | set(known.refused) >= {"bf16", "fp16", "int8"}
    assert hasattr(module, "quantise") == ("int8" not in known.refused)


@pytest.mark.parametrize(
    ("name", "word", "message"),
    [
        ("onnx", "bf16", "ONNX can't hold bf16: ONNX Runtime has no bf16 for processors"),
        ("torch", "int8", "torch.export can't hold int8: PyTorch alone has no int8 kernels"),
        ("timm", "segmenter", "timm can't hold a segmenter: .*choose --to onnx"),
        ("timm", "any", "timm can't hold a network for images of any size"),
        ("timm", "detector", "timm can't hold a detector: timm has no detectors"),
        ("openvino", "any", "OpenVINO can't hold .* any size: .*choose --to onnx"),
    ],
)
def test_what_can_t_be_held_is_said_with_the_reason(name, word, message):
    with pytest.raises(UserError, match=message):
        check_held(name, "fp32", word)
    check_held("torch", "fp32", "bf16", "fp16", "any", "segmenter")


def test_timm_s_networks_take_normalised_images():
    assert input_of("timm", None) == "normalised"
    assert input_of("onnx", None) == "float"
    assert input_of("onnx", "uint8") == "uint8"
    with pytest.raises(UserError, match="--input uint8 can't be had"):
        input_of("timm", "uint8")


def test_without_a_package_the_extra_is_named(monkeypatch):
    monkeypatch.setattr(formats.importlib.util, "find_spec", lambda name: None)
    assert not has_packages("openvino")
    with pytest.raises(UserError, match=r"OpenVINO needs .*'openvino'.*limbeck\[export\]"):
        check_packages("openvino")
    monkeypatch.setattr(formats.importlib.util, "find_spec", importlib.util.find_spec)
    check_packages("timm")
