"""The encoder in ONNX Runtime says what it says in PyTorch."""

import importlib.util

import pytest
import torch

from limbeck.errors import UserError
from limbeck.export import onnx as exporting
from limbeck.export.onnx import has_onnx, onnx_pass
from limbeck.models.build import build_student
from tests.models.families import small_encoder
from tests.models.test_contraction import PLAIN, TINY


@pytest.mark.parametrize("shape", [PLAIN, TINY], ids=["plain", "stages"])
@pytest.mark.slow
def test_it_computes_the_same(shape):
    for name in exporting.PACKAGES:
        pytest.importorskip(name)
    encoder = build_student(shape, seed=0)
    torch.manual_seed(3)
    images = torch.rand(2, 3, *encoder.facts.img_size)
    torch.manual_seed(3)
    tokens = onnx_pass(encoder, 2, threads=1)()
    # Another order of summation in fp32.
    torch.testing.assert_close(tokens, encoder.eval()(images).tokens, atol=2e-5, rtol=1e-4)


@pytest.mark.slow
def test_a_student_with_a_distillation_token_computes_the_same():
    for name in exporting.PACKAGES:
        pytest.importorskip(name)
    encoder = small_encoder("distilled-last")
    torch.manual_seed(3)
    images = torch.rand(2, 3, *encoder.facts.img_size)
    torch.manual_seed(3)
    tokens = onnx_pass(encoder, 2, threads=1)()
    torch.testing.assert_close(tokens, encoder(images).tokens, atol=2e-5, rtol=1e-4)


def test_without_it_the_extra_is_named(monkeypatch):
    real = importlib.util.find_spec
    monkeypatch.setattr(
        exporting.importlib.util,
        "find_spec",
        lambda name: None if name == "onnxruntime" else object() if "onnx" in name else real(name),
    )
    assert not has_onnx()
    with pytest.raises(UserError, match=r"onnxruntime.*limbeck\[onnx\]"):
        onnx_pass(build_student(PLAIN, seed=0), 1, 1)
