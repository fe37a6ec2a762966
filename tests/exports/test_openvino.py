"""OpenVINO's pair of files: precisions, and what the processor must have for bf16."""

import gc
import importlib.util
import signal
from threading import Thread
from types import SimpleNamespace

import pytest

from limbeck.errors import UserError
from limbeck.exports.graph import Graph
from limbeck.exports.openvino import core, load, write
from tests.exports.kinds import compared
from tests.models.families import small_encoder
from tests.processes import Started

if not importlib.util.find_spec("openvino"):
    pytest.skip("OpenVINO is not installed", allow_module_level=True)


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
    if "BF16" not in core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        pytest.skip("no bf16 instructions")
    _, said = compared(small_encoder("augreg"), "openvino", "bf16", tmp_path)
    assert said == {"compile": {"INFERENCE_PRECISION_HINT": "bf16"}}


def test_bf16_is_not_offered_without_its_instructions(monkeypatch, tmp_path):
    old = SimpleNamespace(get_property=lambda *asked: ["FP32", "INT8"])
    monkeypatch.setattr("limbeck.exports.openvino.core", lambda: old)
    with pytest.raises(UserError, match=r"no bf16 instructions.*export fp32, or fp16"):
        write(Graph(small_encoder("mae")), tmp_path / "x.xml", "bf16")
    assert not list(tmp_path.iterdir())


def test_a_signal_after_a_network_has_gone_in_another_thread(tmp_path):
    """Its stack for signals had gone with it."""
    said = write(Graph(small_encoder("mae")), tmp_path / "x.xml", "fp32")
    done = Started(drop_and_signal, tmp_path / "x.xml", said, folder=tmp_path).end()
    assert done.returncode == 0, done.stderr
    assert done.stdout == "told\n"


def drop_and_signal(file, said):
    """A network that is loaded here and dropped elsewhere, and then a signal."""
    signal.signal(signal.SIGTERM, lambda *_: print("told"))
    networks = [load(file, said, None)]
    thread = Thread(target=lambda: (networks.clear(), gc.collect()))
    thread.start()
    thread.join()
    signal.raise_signal(signal.SIGTERM)
