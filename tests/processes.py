"""Processes of their own at the price of a fork: a server that has imported torch starts them.

They share nothing with the tests but files: they may be killed, or be ranks of one run. What a user
starts from a shell begins with imports instead; a few tests do that too.
"""

import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from limbeck.engine import machine

SERVER = get_context("forkserver")
SERVER.set_forkserver_preload(
    [
        "torch._dynamo",  # the first optimiser imports it
        "torch.utils.tensorboard",  # as a run does where it is installed
        *(f"limbeck.recipes.{name}" for name in ("distill", "finetune", "store_targets")),
        *("limbeck.models.origins.load", "limbeck.recipes.run.networks", "tests.engine.fakes"),
    ]
)


class Started:
    """``work(*args)`` in a process in ``folder``, on one thread; what it writes is kept."""

    def __init__(
        self,
        work: Callable[..., Any],
        *args: Any,
        folder: Path,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._written = tempfile.TemporaryDirectory()
        self.stdout, self.stderr = (Path(self._written.name) / name for name in ("out", "err"))
        self.process = SERVER.Process(
            target=_run,
            args=(work, args, folder, dict(environment or {}), self.stdout, self.stderr),
        )
        self.process.start()

    def end(self, timeout: float = 300) -> subprocess.CompletedProcess[str]:
        """Wait for it. One that hangs is killed."""
        self.process.join(timeout)
        self.process.kill()
        self.process.join()
        assert self.process.exitcode is not None
        texts = [each.read_text() if each.exists() else "" for each in (self.stdout, self.stderr)]
        self._written.cleanup()
        return subprocess.CompletedProcess((), self.process.exitcode, *texts)


def start_ranks(work: Callable[..., Any], *args: Any, folder: Path, count: int) -> list[Started]:
    """The same work in ``count`` processes; of several each is told what torchrun tells it."""
    if count == 1:
        return [Started(work, *args, folder=folder)]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(count)}
    return [
        Started(
            work,
            *args,
            folder=folder,
            environment=common | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(count)
    ]


def _run(
    work: Callable[..., Any],
    args: tuple[Any, ...],
    folder: Path,
    environment: dict[str, str],
    stdout: Path,
    stderr: Path,
) -> None:
    for file, number in ((stdout, 1), (stderr, 2)):
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT)
        os.dup2(descriptor, number)
        os.close(descriptor)
    torch.set_num_threads(1)
    machine.product_seconds = lambda dtype: (1.0, 1.0)  # as in the tests' own process
    os.environ.update(environment)
    sys.argv = sys.argv[:1]  # of the tests' own command line
    os.chdir(folder)
    sys.path.insert(0, str(folder))
    work(*args)
