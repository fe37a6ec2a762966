"""What processes that train together agree on, without knowing more of each other."""

from torch import Tensor, distributed


def mean_over_ranks(values: Tensor) -> Tensor:
    """The mean of a tensor over all ranks, in place."""
    if distributed.is_initialized():
        distributed.all_reduce(values)
        values /= distributed.get_world_size()
    return values
