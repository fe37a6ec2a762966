"""Passes in every runtime give what the encoder says in PyTorch."""

import importlib.util

import pytest
import torch

from limbeck.errors import UserError
from limbeck.exports import formats
from limbeck.exports.formats import FORMATS
from limbeck.exports.passes import RUNTIMES, open_passes, runtime_shipped_with
from limbeck.models.build import build_student
from limbeck.models.vit import build_encoder
from tests.models.families import architecture_of
from tests.models.test_contraction import PLAIN, TINY


def compare(encoder, runtime):
    for name in FORMATS[runtime].packages:
        pytest.importorskip(name)
    draw = torch.Generator().manual_seed(0)
    images = torch.rand(2, 3, *encoder.facts.img_size, generator=draw)
    tokens = torch.from_numpy(open_passes(encoder, runtime, 1)(2)()["tokens"])
    # Another order of summation in fp32.
    torch.testing.assert_close(tokens, encoder.eval()(images).tokens, atol=2e-5, rtol=1e-4)


def test_in_pytorch_it_is_the_encoder_itself():
    compare(build_student(PLAIN, seed=0), "torch")


@pytest.mark.parametrize("shape", [PLAIN, TINY], ids=["plain", "stages"])
@pytest.mark.slow
def test_onnx_runtime_computes_the_same(shape):
    compare(build_student(shape, seed=0), "onnx")


@pytest.mark.slow
def test_openvino_computes_the_same():
    compare(build_student(PLAIN, seed=0), "openvino")


@pytest.mark.slow
def test_a_student_with_a_distillation_token_computes_the_same():
    architecture = architecture_of("distilled-last")
    architecture["kwargs"]["num_classes"] = 0
    compare(build_encoder(architecture).eval(), "onnx")


def test_without_it_the_extra_is_named(monkeypatch):
    real = importlib.util.find_spec
    absent = ("onnxruntime", "openvino")
    monkeypatch.setattr(
        formats.importlib.util,
        "find_spec",
        lambda name: None if name in absent else object() if "onnx" in name else real(name),
    )
    assert runtime_shipped_with() == "torch" and list(RUNTIMES)[-1] == "torch"
    with pytest.raises(UserError, match=r"onnxruntime.*limbeck\[export\]"):
        open_passes(build_student(PLAIN, seed=0), "onnx", 1)
    absent = ("onnxruntime",)
    monkeypatch.setattr(
        formats.importlib.util, "find_spec", lambda name: name not in absent or None
    )
    assert runtime_shipped_with() == "openvino"


def test_what_a_runtime_can_t_hold_is_told():
    with pytest.raises(UserError, match="ONNX can't hold bf16"):
        pytest.importorskip("onnxscript")
        open_passes(build_student(PLAIN, seed=0), "onnx", 1, "bf16")
