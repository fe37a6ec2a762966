"""OpenVINO's pair of files: precisions, and what the processor must have for bf16."""

import importlib.util
from types import SimpleNamespace

import pytest

from limbeck.errors import UserError
from limbeck.exports.graph import Graph
from limbeck.exports.openvino import write
from limbeck.exports.silent import import_openvino
from tests.exports.kinds import compared
from tests.models.families import small_encoder

if not importlib.util.find_spec("openvino"):
    pytest.skip("OpenVINO is not installed", allow_module_level=True)
openvino = import_openvino()


@pytest.mark.slow
def test_fp16_halves_the_files_and_fp32_stays_fp32(tmp_path):
    sizes = {}
    for precision in ("fp32", "fp16"):
        folder = tmp_path / precision
        folder.mkdir()
        _, said = compared(small_encoder("augreg"), "openvino", precision, folder)
        assert said == {"compile": {"INFERENCE_PRECISION_HINT": "f32"}}
        sizes[precision] = (folder / "network.bin").stat().st_size
    assert sizes["fp16"] < 0.6 * sizes["fp32"]


@pytest.mark.slow
def test_bf16_where_the_processor_has_it(tmp_path):
    if "BF16" not in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        pytest.skip("no bf16 instructions")
    _, said = compared(small_encoder("augreg"), "openvino", "bf16", tmp_path)
    assert said == {"compile": {"INFERENCE_PRECISION_HINT": "bf16"}}


def test_bf16_is_not_offered_without_its_instructions(monkeypatch, tmp_path):
    monkeypatch.setattr(
        openvino, "Core", lambda: SimpleNamespace(get_property=lambda *asked: ["FP32", "INT8"])
    )
    with pytest.raises(UserError, match=r"no bf16 instructions.*export fp32, or fp16"):
        write(Graph(small_encoder("mae")), tmp_path / "x.xml", "bf16")
    assert not list(tmp_path.iterdir())
