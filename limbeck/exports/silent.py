"""The one door to OpenVINO, NNCF and ONNX Runtime: nothing that they do is told to anybody, and
nothing of what all exporters say to a user who could not mend it.

OpenVINO and NNCF bring a package that sends an event as they are imported. Where it can't be
imported they use stand-ins of their own, which send nothing.
"""

import contextlib
import io
import logging
import sys
import warnings
from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from limbeck.errors import require_extra

TELEMETRY = "openvino_telemetry"


def import_openvino() -> Any:
    """OpenVINO, which sends nothing."""
    _shut()
    return import_module("openvino")


def import_nncf() -> Any:
    """NNCF, which sends nothing; raises UserError that names the extra where it is missing."""
    _shut()
    if not find_spec("nncf"):
        raise require_extra("nncf", "export", "int8 for OpenVINO")
    nncf = import_module("nncf")
    logging.getLogger("nncf").setLevel(logging.ERROR)
    return nncf


def import_onnxruntime() -> Any:
    """ONNX Runtime, which sends nothing (its builds for Windows would)."""
    onnxruntime = import_module("onnxruntime")
    onnxruntime.disable_telemetry_events()
    return onnxruntime


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without bars, warnings and logs of the tools, which say nothing that a user could mend."""
    level = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


def _shut() -> None:
    loaded = sys.modules.get(TELEMETRY)
    if loaded is None:
        sys.modules[TELEMETRY] = None  # type: ignore[assignment]
    else:  # somebody else has imported OpenVINO before
        loaded.Telemetry.send_event = loaded.Telemetry.start_session = _nothing
        loaded.Telemetry.send_error = loaded.Telemetry.send_stack_trace = _nothing
        loaded.Telemetry.end_session = _nothing


def _nothing(*asked: Any, **more: Any) -> None:
    pass
