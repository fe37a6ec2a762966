"""The encoder in ONNX Runtime says what it says in PyTorch."""

import pytest

from limbeck.exports.formats import FORMATS
from tests.exports.kinds import compared
from tests.models.families import small_encoder


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
