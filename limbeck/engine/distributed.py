"""Several processes: what torchrun says, PyTorch's own DDP, and the few things ranks agree on.

Nothing home-made: one process per device, started by ``torchrun``, gradients averaged by DDP.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from limbeck.errors import RunError, UserError
from limbeck.limits import num_cores
from limbeck.records import Batch

T = TypeVar("T")

# Ranks wait for one another in collectives, and rank 0's probes may take long.
TIMEOUT = timedelta(hours=2)


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
def ranks_session(device: str = "auto") -> Iterator[Ranks]:
    """The ranks that torchrun's environment states, joined; one alone without it.

    ``device``: "cpu", "cuda", or "auto" for CUDA where there is one. Raises UserError where the
    device is absent or shared, or the environment incomplete.
    """
    ranks = _read_environment(device)
    _set_threads()
    if ranks.device.type == "cuda":
        torch.cuda.set_device(ranks.device)
    if ranks.world_size == 1:
        yield ranks
        return
    is_cuda = ranks.device.type == "cuda"
    distributed.init_process_group(
        "nccl" if is_cuda else "gloo",
        timeout=TIMEOUT,
        device_id=ranks.device if is_cuda else None,
    )
    try:
        yield ranks
    finally:
        distributed.destroy_process_group()


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


def mean_over_ranks(values: Tensor) -> Tensor:
    """The mean of a tensor over all ranks, in place."""
    if distributed.is_initialized():
        distributed.all_reduce(values)
        values /= distributed.get_world_size()
    return values


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
        total = values.clone()
        if distributed.is_initialized():
            distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        """Every rank's losses depend on this rank's values."""
        del ctx
        (total,) = gradients
        total = total.clone()
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
    value: T = answer[0]
    return value


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
