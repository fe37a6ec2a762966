"""SIGTERM and Ctrl-C, noted until the loop can act on them."""

import os
import signal
import threading
import time
from types import FrameType
from typing import Any, Self

from limbeck.engine.log import Log


class StopSignals:
    """Notes SIGTERM and Ctrl-C in ``number`` (0: none) for the loop to act on at a step's end."""

    def __init__(self, log: Log) -> None:
        self.log = log
        self.number = 0
        self._process = os.getpid()
        self._noted_at = 0.0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        # Python lets only the main thread set handlers; in another one the program has its own.
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        del frame
        if os.getpid() != self._process:
            # A forked loader process has inherited this handler: Ctrl-C is its parent's affair.
            if number == signal.SIGTERM:
                os._exit(128 + number)
            return
        # torchrun passes the terminal's Ctrl-C on to the ranks that already got it themselves;
        # only a later one is a person's second.
        if self.number and time.monotonic() - self._noted_at > 1:
            if number == signal.SIGTERM:  # a step that never ends must not keep the process alive
                signal.signal(signal.SIGTERM, signal.SIG_DFL)
                signal.raise_signal(signal.SIGTERM)
            raise KeyboardInterrupt
        if not self.number:
            self.number, self._noted_at = number, time.monotonic()
            text = "Stopping after this step; another Ctrl-C stops at once, without saving."
            # From a thread: the main one may be in the middle of writing to the same stream.
            threading.Thread(target=self.log.note, args=(text,), daemon=True).start()
