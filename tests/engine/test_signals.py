"""What a signal does depends on whose it is; how the loop stops at one is tested with the loop."""

import os
import signal
import subprocess
import sys

from limbeck.engine.signals import StopSignals


def test_a_second_sigterm_ends_a_step_that_never_ends():
    """What hangs must not be deaf to those who ask it to stop."""
    code = (
        "import os, signal, threading, time\n"
        "from types import SimpleNamespace\n"
        "from limbeck.engine import signals\n"
        "signals.time = SimpleNamespace(monotonic=iter(range(0, 99, 2)).__next__)\n"
        "with signals.StopSignals(SimpleNamespace(note=print)):\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    threading.Event().wait()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], timeout=60)
    assert done.returncode == -signal.SIGTERM


def test_a_forked_loader_process_leaves_stopping_to_its_parent(monkeypatch):
    stop = StopSignals(log=None)
    stop._process = -1
    stop._handle(signal.SIGINT, None)
    assert stop.number == 0
    codes = []
    monkeypatch.setattr(os, "_exit", codes.append)
    stop._handle(signal.SIGTERM, None)
    assert codes == [143]
