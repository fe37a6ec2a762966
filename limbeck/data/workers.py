"""Loader processes: what is made ahead in them, and what becomes of it where memory is short.

Batches come to the main process by shared memory. Where there is none left (a container's /dev/shm
has 64 MB) or none to be had, they come through a pipe, and where no process can be started the
main one does the work: slower, and said, but nothing hangs.
"""

import atexit
import logging
import os
import pickle
import signal
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from multiprocessing import queues
from traceback import walk_tb
from typing import Any, NamedTuple

import torch
from torch.utils.data import DataLoader, Dataset
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from limbeck.errors import RunError, UserError

log = logging.getLogger("limbeck")

REMEDY = (
    "give more shared memory (docker run --shm-size=2g), see that the folder of temporary files "
    "(TMPDIR) is there, or pass --data.num-workers 0"
)


def run_workers(
    dataset: Dataset[Any], requests: Iterable[Any], num_workers: int, pin_memory: bool = False
) -> Iterator[Any]:
    """``dataset[request]`` for each request, in order, computed ahead in ``num_workers`` processes.

    Raises RunError if a worker dies, and a worker's own UserError as it is. Workers start once and
    live until the end of the requests.
    """
    results = _start(_Answers(dataset), requests, max(0, num_workers), pin_memory)

    def stop() -> None:
        # Not left to the garbage collector: a traceback may hold the iterator until the program
        # ends, where multiprocessing would wait for workers that ignore its SIGTERM.
        if isinstance(results, _MultiProcessingDataLoaderIter):
            results._shutdown_workers()

    atexit.register(stop)
    try:
        with lost_workers_explained():
            while True:
                try:
                    answer = next(results)
                except StopIteration:
                    return
                except OSError as error:
                    raise RunError(
                        f"Images from a loader process can't be received ({error}); {REMEDY}. The "
                        "same command continues."
                    ) from error
                if isinstance(answer, _Refusal):
                    raise answer.kind(answer.message)
                yield answer
    finally:
        atexit.unregister(stop)
        stop()


@contextmanager
def lost_workers_explained() -> Iterator[None]:
    """Turn torch's word of a dead loader process into a RunError with the remedy.

    torch raises it in the main thread the moment a process dies, wherever that thread is: whoever
    works between two batches needs this too.
    """
    try:
        yield
    except RuntimeError as error:
        if "DataLoader worker" not in str(error) and "Pin memory thread" not in str(error):
            raise
        raise RunError(
            "A loader process died, most likely for want of memory (RAM or /dev/shm); "
            "run the same command again with a smaller --data.num-workers (0 uses none)."
        ) from error


def _start(
    dataset: Dataset[Any], requests: Iterable[Any], num_workers: int, pin_memory: bool
) -> Iterator[Any]:
    with warnings.catch_warnings(action="ignore"):  # Of more workers than cores, and of forking.
        loader = DataLoader(
            dataset,
            batch_size=None,
            sampler=requests,
            num_workers=num_workers,
            collate_fn=_unchanged,
            pin_memory=pin_memory,
            worker_init_fn=_prepare,
            # Otherwise it draws from the global generator, and a resumed run would differ.
            generator=torch.Generator(),
        )
        try:
            with _born_deaf():
                return iter(loader)
        except OSError as error:  # no memory, no more processes, no locks in /dev/shm
            _abandon(error)
            if not num_workers:
                raise
            log.warning("No loader process can be started (%s), so images come slower.", error)
            log.warning("To have them: %s.", REMEDY)
            return _start(dataset, requests, 0, pin_memory)


def _abandon(error: OSError) -> None:
    """End what DataLoader's half-made iterator has started; its own destructor would fail."""
    for frame, _ in walk_tb(error.__traceback__):
        iterator = frame.f_locals.get("self")
        if isinstance(iterator, _MultiProcessingDataLoaderIter):
            iterator._shutdown = True
            for process in getattr(iterator, "_workers", ()):
                process.kill()


_DEAF_TO = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def _born_deaf() -> Iterator[None]:
    # Ctrl-C and torchrun signal the whole process group. The main process must finish its step
    # and save, for which it needs its workers: they are born deaf, and end with it.
    if not hasattr(signal, "pthread_sigmask"):  # Windows, which has no such signals
        yield
        return
    old = signal.pthread_sigmask(signal.SIG_BLOCK, _DEAF_TO)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, old)


class _Refusal(NamedTuple):
    """A worker's error that is one clear sentence; torch would wrap it in a traceback."""

    kind: type[UserError]
    message: str


class _Answers(Dataset[Any]):
    """A data set whose clear errors are answers, too."""

    def __init__(self, dataset: Dataset[Any]) -> None:
        self.dataset = dataset

    def __getitem__(self, request: Any) -> Any:
        try:
            return self.dataset[request]
        except UserError as error:
            return _Refusal(type(error), str(error))


def _unchanged(batch: Any) -> Any:
    return batch


def _prepare(worker: int) -> None:
    """In a new worker: what its queue can't send by shared memory goes by value."""
    del worker
    for number in _DEAF_TO:  # one that a server starts (of Python 3.14) inherits no mask
        signal.signal(number, signal.SIG_IGN)
    # Python's own reaction is to print a traceback and go on: the main process would wait for ever.
    queues.Queue._on_queue_feeder_error = _send_by_value  # type: ignore[attr-defined]


def _send_by_value(queue: Any, error: BaseException, item: Any) -> None:
    try:
        number, batch = item
        queue.put((number, _ByValue(pickle.dumps(batch), " ".join(str(error).split()))))
    except BaseException:
        os._exit(1)  # the pipe itself is broken; the main process learns of a death


class _ByValue:
    """A batch as bytes, which unpickles as the batch itself."""

    def __init__(self, data: bytes, reason: str) -> None:
        self.data, self.reason = data, reason

    def __reduce__(self) -> tuple[Any, ...]:
        return _receive, (self.data, self.reason)


_told: list[str] = []  # once a process is enough


def _receive(data: bytes, reason: str) -> Any:
    if not _told:
        _told.append(reason)
        log.warning("Images can't come by shared memory (%s), so they come slower.", reason)
        log.warning("To have them faster: %s.", REMEDY)
    return pickle.loads(data)
