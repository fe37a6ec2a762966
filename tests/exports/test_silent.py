"""OpenVINO and NNCF send nothing through us, whoever imported what before; no tool is heard."""

import importlib.util
import logging
import subprocess
import sys
import warnings
from types import SimpleNamespace

import pytest

from limbeck.errors import UserError
from limbeck.exports import silent

ASKED = """
import socket, sys
sent = []
socket.socket.connect = lambda *asked: sent.append(asked)
from limbeck.exports.silent import import_nncf, import_openvino
import_openvino(), import_nncf()
import nncf.telemetry.wrapper, openvino.tools.ovc.telemetry_utils as ovc
assert ovc.tm.__name__ == "openvino.tools.ovc.telemetry_stub", ovc.tm
assert not isinstance(nncf.telemetry.wrapper.telemetry, nncf.telemetry.wrapper.ITelemetry)
assert not sent and sys.modules["openvino_telemetry"] is None
"""


@pytest.mark.slow  # NNCF takes seconds to import
def test_both_use_their_stand_ins():
    for package in ("openvino", "nncf"):
        if not importlib.util.find_spec(package):
            pytest.skip(f"{package} is not installed")
    done = subprocess.run([sys.executable, "-c", ASKED], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""


def test_the_package_can_t_be_imported_after_the_door():
    if not importlib.util.find_spec("openvino"):
        pytest.skip("OpenVINO is not installed")
    openvino = silent.import_openvino()
    assert openvino.tools.ovc.telemetry_utils.tm.__name__.endswith("telemetry_stub")
    with pytest.raises(ImportError):
        import openvino_telemetry  # noqa: F401


def test_without_nncf_the_extra_is_named(monkeypatch):
    monkeypatch.setattr(silent, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"int8 for OpenVINO needs .*'nncf'.*limbeck\[export\]"):
        silent.import_nncf()


def test_what_somebody_loaded_before_is_stopped(monkeypatch):
    class Telemetry:
        def send_event(self, *asked):
            raise AssertionError("sent")

        start_session = end_session = send_error = send_stack_trace = send_event

    monkeypatch.setitem(sys.modules, silent.TELEMETRY, SimpleNamespace(Telemetry=Telemetry))
    silent._shut()
    for name in ("send_event", "start_session", "end_session", "send_error", "send_stack_trace"):
        assert getattr(Telemetry(), name)("ov", "import", "general") is None


def test_the_tools_say_nothing(capfd):
    with silent.quiet():
        print("a bar")
        sys.stderr.write("a word")
        logging.getLogger("nncf").warning("a log")
        warnings.warn("a warning", stacklevel=1)
    assert capfd.readouterr() == ("", "")
    assert logging.root.manager.disable == logging.NOTSET
