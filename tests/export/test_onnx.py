"""The encoder in ONNX Runtime says what it says in PyTorch."""

import importlib.util

import pytest
import torch

from limbeck.errors import UserError
from limbeck.export import formats
from limbeck.export.formats import FORMATS
from limbeck.export.onnx import has_onnx, onnx_pass
from limbeck.models.build import build_student
from limbeck.models.vit import build_encoder
from tests.export.kinds import compared
from tests.models.families import architecture_of, small_encoder
from tests.models.test_contraction import PLAIN, TINY


@pytest.mark.parametrize("shape", [PLAIN, TINY], ids=["plain", "stages"])
@pytest.mark.slow
def test_it_computes_the_same(shape):
    for name in FORMATS["onnx"].packages:
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
    for name in FORMATS["onnx"].packages:
        pytest.importorskip(name)
    architecture = architecture_of("distilled-last")
    architecture["kwargs"]["num_classes"] = 0
    encoder = build_encoder(architecture).eval()
    torch.manual_seed(3)
    images = torch.rand(2, 3, *encoder.facts.img_size)
    torch.manual_seed(3)
    tokens = onnx_pass(encoder, 2, threads=1)()
    torch.testing.assert_close(tokens, encoder(images).tokens, atol=2e-5, rtol=1e-4)


def test_without_it_the_extra_is_named(monkeypatch):
    real = importlib.util.find_spec
    monkeypatch.setattr(
        formats.importlib.util,
        "find_spec",
        lambda name: None if name == "onnxruntime" else object() if "onnx" in name else real(name),
    )
    assert not has_onnx()
    with pytest.raises(UserError, match=r"onnxruntime.*limbeck\[export\]"):
        onnx_pass(build_student(PLAIN, seed=0), 1, 1)


@pytest.mark.slow
def test_fp16_halves_the_file_and_computes_nearly_the_same(tmp_path):
    for name in FORMATS["onnx"].packages:
        pytest.importorskip(name)
    sizes = {}
    for precision in ("fp32", "fp16"):
        (tmp_path / precision).mkdir()
        _, said = compared(small_encoder("hiera"), "onnx", precision, tmp_path / precision)
        assert said["opset"] >= 18
        sizes[precision] = (tmp_path / precision / "network.onnx").stat().st_size
    assert sizes["fp16"] < 0.7 * sizes["fp32"]


@pytest.mark.slow
def test_images_of_any_size(tmp_path):
    for name in FORMATS["onnx"].packages:
        pytest.importorskip(name)
    found, _ = compared(small_encoder("mae"), "onnx", "fp32", tmp_path, any_size=True)
    assert found.keys[-1] == "2 (40, 48)"
