"""What a signal does depends on whose it is; how the loop stops at one is tested with the loop."""

import os
import signal

from limbeck.engine.signals import StopSignals


def test_a_forked_loader_process_leaves_stopping_to_its_parent(monkeypatch):
    stop = StopSignals(log=None)
    stop._process = -1
    stop._handle(signal.SIGINT, None)
    assert stop.number == 0
    codes = []
    monkeypatch.setattr(os, "_exit", codes.append)
    stop._handle(signal.SIGTERM, None)
    assert codes == [143]
