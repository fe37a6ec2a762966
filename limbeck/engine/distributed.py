"""Several processes: what torchrun says, PyTorch's own DDP, and the few things ranks agree on.

Nothing home-made: one process per device, started by ``torchrun``, gradients averaged by DDP.
What ranks tell each other before they compute together, and when one of them fails, goes through
the store in which PyTorch lets them meet.
"""

import itertools
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from limbeck.documents import parse_json, to_json
from limbeck.engine.differences import MAY_DIFFER, differences
from limbeck.errors import OfRank, RunError, UserError
from limbeck.limits import num_cores
from limbeck.records import Batch

T = TypeVar("T")

# Ranks wait for one another in collectives, and rank 0's probes may take long. A process that has
# died is noticed at once.
TIMEOUT = timedelta(hours=2)
MEETING_TIMEOUT = timedelta(minutes=10)  # until all processes have started
START_TIMEOUT = timedelta(seconds=30)  # likewise, to tell them that one has failed at once
GRACE = timedelta(seconds=2)

_SESSIONS = itertools.count()  # of this process: each has its own names in the store


@dataclass(frozen=True)
class Ranks:
    """Where this process stands: its rank, the number of processes, its device."""

    rank: int = 0
    local_rank: int = 0
    world_size: int = 1
    device: torch.device = torch.device("cpu")

    @property
    def is_main(self) -> bool:
        """Whether this is the rank that writes and shows."""
        return self.rank == 0


@contextmanager
def ranks_session(device: str = "auto", config: dict[str, Any] | None = None) -> Iterator[Ranks]:
    """The ranks that torchrun's environment states, joined; one alone without it.

    ``device``: "cpu", "cuda", or "auto" for CUDA where there is one. ``config``: plain data that
    must be the same on all ranks. Raises UserError where the device is absent or shared, or the
    environment incomplete. Of several ranks, whatever one raises comes out as OfRank, so that one
    of them tells it; one that is lost ends the others.
    """
    ranks = _read_environment(device)
    _set_threads()
    if ranks.device.type == "cuda":
        torch.cuda.set_device(ranks.device)
    if ranks.world_size == 1:
        yield ranks
        return
    is_cuda = ranks.device.type == "cuda"
    store = _meet(MEETING_TIMEOUT)
    try:
        _compare(_publish({"device": ranks.device.type, **(config or {})}, ranks, store))
        distributed.init_process_group(
            "nccl" if is_cuda else "gloo",
            store=distributed.PrefixStore("group", store),
            rank=ranks.rank,
            world_size=ranks.world_size,
            timeout=TIMEOUT,
            device_id=ranks.device if is_cuda else None,
        )
        yield ranks
    except Exception as error:
        told = _tell(error, ranks, store)
        _end_group()  # the others notice
        _leave(ranks, store)
        raise told from error
    finally:
        _end_group()


def told_by_one(error: BaseException) -> OfRank | None:
    """What an error that came before ``ranks_session`` is to the run; None without other ranks."""
    try:
        ranks = _read_environment("cpu")
        if ranks.world_size == 1:
            return None
        store = _meet(START_TIMEOUT)
    except UserError:
        return None
    told = _tell(error, ranks, store)
    _leave(ranks, store)
    return told


def _end_group() -> None:
    if distributed.is_initialized():
        distributed.destroy_process_group()


def _meet(timeout: timedelta) -> distributed.Store:
    """The store that all ranks have, once they are there."""
    try:
        store, _, _ = next(distributed.rendezvous("env://", timeout=timeout))
    except ValueError as error:  # no address, or no port
        raise UserError(f"WORLD_SIZE is set, but {error}; start with torchrun.") from error
    except RuntimeError as error:
        address = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        if "EADDRINUSE" in str(error):
            raise UserError(
                f"The port of {address}, where the processes of a run meet, is in use, most likely "
                "by another run; choose another with torchrun's --master-port, or --standalone."
            ) from error
        raise UserError(
            f"The {os.environ['WORLD_SIZE']} processes of this run have not met at {address} "
            f"within {timeout.seconds} seconds; see that all have started."
        ) from error
    # torchrun's own store outlives a process that it starts again.
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    return distributed.PrefixStore(f"limbeck/{attempt}/{next(_SESSIONS)}", store)


def _publish(
    config: dict[str, Any], ranks: Ranks, store: distributed.Store
) -> list[dict[str, Any]]:
    """Every rank's config, in rank order. Raises RunError where one has failed before."""
    store.set(f"config/{ranks.rank}", to_json(config))
    names = [f"config/{rank}" for rank in range(ranks.world_size)]
    if not _wait(store, names, MEETING_TIMEOUT, or_failed=True):
        raise RunError("Another process of this run has ended before it began.")
    return [parse_json(store.get(name)) for name in names]


def check_ranks(values: dict[str, Any]) -> None:
    """Raise UserError, on every rank, where plain data is not the same on all of them."""
    _compare(gather(values))


def _compare(of_rank: list[dict[str, Any]]) -> None:
    for rank, values in enumerate(of_rank):
        if found := differences(values, of_rank[0], MAY_DIFFER):
            parts = [f"{name} is {own} there and {main} on rank 0" for name, own, main in found[:3]]
            raise UserError(
                f"Rank {rank} is not in the same run: {'; '.join(parts)}. Start all processes with "
                "the same command, on the same images and weights."
            )


def _tell(error: BaseException, ranks: Ranks, store: distributed.Store) -> OfRank:
    """What a rank's error is to the run: told by this rank, or by the one that met it first."""
    cause = _lost(error) if _is_lost(error) else error
    own = first = str(ranks.rank)
    with suppress(RuntimeError):  # rank 0, which may have the store, is gone
        if not ranks.is_main:
            _wait(store, ["failed"], GRACE)  # for rank 0 to tell what all have met
        first = store.compare_set("failed", "", own).decode()
    return OfRank(cause, ranks.rank, speaks=first == own)


def _leave(ranks: Ranks, store: distributed.Store) -> None:
    """Say that this rank ends; rank 0, which may have the store, lets the others ask it before."""
    with suppress(RuntimeError):
        store.set(f"left/{ranks.rank}", "")
        if ranks.is_main:
            _wait(store, [f"left/{rank}" for rank in range(ranks.world_size)], 2 * GRACE)


def _wait(
    store: distributed.Store, names: list[str], timeout: timedelta, or_failed: bool = False
) -> bool:
    """Whether the names are there in time. (The store's own wait writes warnings of its own.)"""
    end = time.monotonic() + timeout.total_seconds()
    while not store.check(names):
        if time.monotonic() > end or (or_failed and store.check(["failed"])):
            return False
        time.sleep(0.05)
    return True


def _is_lost(error: BaseException) -> bool:
    """Whether it says that another process is gone: of gloo a bare RuntimeError."""
    text = str(error)
    return isinstance(error, distributed.DistError) or (
        isinstance(error, RuntimeError) and ("/gloo/" in text or "Connection closed by" in text)
    )


def _lost(error: BaseException) -> RunError:
    # Without the file and line of gloo.
    why = re.sub(r"^\[[^]]*\] *", "", str(error)).partition(". ")[0]
    return RunError(
        f"Another process of this run is gone (killed, or out of memory) or does not answer: {why}."
        " Run the same command again: it goes on from the last checkpoint."
    )


def _set_threads() -> None:
    """As many as PyTorch would take, but no more than there are cores for this process."""
    count = torch.get_num_threads()
    if "OMP_NUM_THREADS" not in os.environ:  # which states it, as torchrun does
        count = min(count, num_cores())
    torch.set_num_threads(count)  # the same count, too: it settles how products are cut


def _read_environment(device: str) -> Ranks:
    has_cuda = torch.cuda.is_available()
    if device == "cuda" and not has_cuda:
        raise UserError("train.device is cuda, but PyTorch finds no CUDA device; use cpu or auto.")
    kind = "cuda" if device == "cuda" or (device == "auto" and has_cuda) else "cpu"
    if "WORLD_SIZE" not in os.environ:
        return Ranks(device=torch.device(kind, 0) if kind == "cuda" else torch.device(kind))
    try:
        rank, local_rank, world_size = (
            int(os.environ[name]) for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE")
        )
    except (KeyError, ValueError) as error:
        raise UserError(
            f"WORLD_SIZE is set, but RANK or LOCAL_RANK is not a number ({error}); start with "
            "torchrun, or unset WORLD_SIZE for one process."
        ) from error
    if not 0 <= rank < world_size or local_rank < 0:
        raise UserError(
            f"RANK {rank}, LOCAL_RANK {local_rank} and WORLD_SIZE {world_size} don't fit together; "
            "start with torchrun, or unset WORLD_SIZE for one process."
        )
    if kind == "cpu":
        return Ranks(rank, local_rank, world_size, torch.device("cpu"))
    if local_rank >= torch.cuda.device_count():
        raise UserError(
            f"Process {local_rank} of this machine has no GPU: there are "
            f"{torch.cuda.device_count()}; lower torchrun's --nproc-per-node."
        )
    return Ranks(rank, local_rank, world_size, torch.device("cuda", local_rank))


def wrap(module: nn.Module, ranks: Ranks) -> nn.Module:
    """The module in DDP, or as it is for one process.

    Every trainable parameter must get a gradient at every step (``freeze_untrained`` sees to it).
    """
    if ranks.world_size == 1:
        return module
    # DDP gives every rank the buffers of rank 0 before each forward pass: so batch norm normalises
    # by its rank's own micro-batch while it trains, and all evaluate and save rank 0's statistics.
    device_ids = [ranks.device.index] if ranks.device.type == "cuda" else None
    return DistributedDataParallel(module, device_ids, gradient_as_bucket_view=True)


def gather(value: T) -> list[T]:
    """Every rank's value, on every rank, in rank order."""
    if not distributed.is_initialized():
        return [value]
    values: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(values, value)
    return values


def num_ranks() -> int:
    """The number of processes that train together."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def gather_rows(rows: Tensor) -> tuple[Tensor, int]:
    """All ranks' rows (n each) in rank order, without gradient, and where this rank's begin."""
    if not distributed.is_initialized():
        return rows.detach(), 0
    parts = [torch.empty_like(rows) for _ in range(distributed.get_world_size())]
    distributed.all_gather(parts, rows.detach().contiguous())
    return torch.cat(parts), distributed.get_rank() * len(rows)


class SumOverRanks(torch.autograd.Function):
    """The sum of a tensor over all ranks, with gradient; call it by ``apply``."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        """A new tensor, the same on every rank."""
        del ctx
        return _sum_over_ranks(values)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        """Every rank's losses depend on this rank's values."""
        del ctx
        return _sum_over_ranks(*gradients)


def _sum_over_ranks(values: Tensor) -> Tensor:
    total = values.clone()
    if distributed.is_initialized():
        distributed.all_reduce(total)
    return total


def on_main_rank(function: Callable[[], T]) -> T:
    """Call ``function`` on rank 0 alone; every rank returns its value, or raises its error.

    Files are so read and written by one process: other nodes need not see rank 0's disk.
    """
    if not distributed.is_initialized():
        return function()
    answer: list[Any] = [None, None]
    failure: Exception | None = None
    if distributed.get_rank() == 0:
        try:
            answer[0] = function()
        except Exception as error:  # passed on, or the other ranks would wait for it
            failure = error
            answer[1] = (type(error) if isinstance(error, UserError) else RunError, str(error))
    distributed.broadcast_object_list(answer)
    if failure is not None:
        raise failure
    if answer[1] is not None:
        kind, message = answer[1]
        raise kind(message)
    return answer[0]


def freeze_untrained(
    module: nn.Module,
    batch: Batch,
    parts: Callable[[str, Tensor], dict[str, Tensor]] = lambda name, value: {},
) -> list[str]:
    """Freeze the parameters that the losses do not depend on, and return their names.

    TinyMIM's early exit, for one, leaves the tail of the student without a gradient. Frozen, such
    parameters are skipped by AdamW, by DDP (which would wait for them) and by the average.

    ``parts(name, gradient)`` names what of a parameter may be untrained alone, as views of it.
    Parts whose gradient is exactly zero, while that of others of the same parameter is not, are
    named, too; they can't be frozen, and weight decay goes on shrinking them.

    Passes of two samples find them; random state, buffers and gradients are left as they were
    found.
    """
    num_local = 0 if batch.local_images is None else len(batch.local_images) // len(batch.keys)
    views = slice(2 * batch.num_views)
    batch = replace(
        batch,
        images=batch.images[views],
        teacher_images=batch.teacher_images[views],
        labels=None if batch.labels is None else batch.labels[:2],
        objects=None if batch.objects is None else batch.objects[:2],
        keys=batch.keys[:2],
        view_seeds=batch.view_seeds[views],
        local_images=None if batch.local_images is None else batch.local_images[: 2 * num_local],
        targets=batch.targets and {name: value[:2] for name, value in batch.targets.items()},
    )
    buffers = {name: buffer.clone() for name, buffer in module.named_buffers()}
    was_training = module.training
    devices = [batch.images.device] if batch.images.is_cuda else []
    with torch.random.fork_rng(devices):
        # In both modes, adding up: drop path may zero a gradient of two samples by chance.
        for is_training in (True, False):
            module.train(is_training)(batch).total.backward()
    names = []
    for name, parameter in module.named_parameters():
        if parameter.grad is not None:
            is_zero = {part: not grad.any() for part, grad in parts(name, parameter.grad).items()}
            if not all(is_zero.values()):
                names += [part for part in is_zero if is_zero[part]]
        elif parameter.requires_grad:
            parameter.requires_grad_(False)
            names.append(name)
    module.zero_grad(set_to_none=True)
    module.train(was_training)
    for name, buffer in module.named_buffers():
        buffer.data.copy_(buffers[name])
    return names
