"""Random masks that are a pure function of each sample's view seed."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def counter_uniform(seeds: Int[Tensor, " B"], count: int) -> Float[Tensor, "B count"]:
    """``count`` uniform numbers in [0, 1) per seed, float64, the same on every device.

    SplitMix64 of (seed, counter): no generator state, so neither the number of ranks nor a resume
    changes a sample's draws, and no loop over the batch is needed.
    """
    counter = torch.arange(1, count + 1, device=seeds.device, dtype=torch.int64)
    z = seeds[:, None] + counter * _signed(0x9E3779B97F4A7C15)
    z = (z ^ _shift_right(z, 30)) * _signed(0xBF58476D1CE4E5B9)
    z = (z ^ _shift_right(z, 27)) * _signed(0x94D049BB133111EB)
    z = z ^ _shift_right(z, 31)
    return _shift_right(z, 11).double() * 2.0**-53


def _signed(value: int) -> int:
    """The same 64 bits as a signed number: torch's int64 products wrap around."""
    return value - (1 << 64) if value >= 1 << 63 else value


def _shift_right(z: Tensor, bits: int) -> Tensor:
    """Logical shift; torch's own keeps the sign."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)


def count_kept(num_patches: int, mask_ratio: float) -> int:
    """How many patches stay visible."""
    return int(num_patches * (1 - mask_ratio))


def random_ids_keep(
    view_seeds: Int[Tensor, " B"], num_patches: int, mask_ratio: float
) -> Int[Tensor, "B kept"]:
    """Patches that stay visible: the int(num_patches * (1 - mask_ratio)) smallest of uniform noise.

    MAE's per-sample random masking (arXiv 2111.06377), with noise from each view's seed.
    """
    num_keep = count_kept(num_patches, mask_ratio)
    return counter_uniform(view_seeds, num_patches).argsort(dim=1)[:, :num_keep]


def is_masked(ids_keep: Int[Tensor, "B kept"], num_patches: int) -> Bool[Tensor, "B L"]:
    """True where a patch is not among those kept."""
    hidden = torch.ones(ids_keep.shape[0], num_patches, dtype=torch.bool, device=ids_keep.device)
    return hidden.scatter(1, ids_keep, False)


def ids_masked(ids_keep: Int[Tensor, "B kept"], num_patches: int) -> Int[Tensor, "B hidden"]:
    """The patches that are not kept, in ascending order."""
    # A stable sort instead of nonzero(): its shape is known, so a GPU need not be waited for.
    order = is_masked(ids_keep, num_patches).to(torch.uint8).argsort(dim=1, stable=True)
    return order[:, ids_keep.shape[1] :]


def split_units(
    ids: Int[Tensor, "B units"], grid: tuple[int, int], parts: int
) -> Int[Tensor, "B patches"]:
    """The patches of units: each unit of a ``grid`` (rows, columns) has ``parts`` x ``parts``.

    Unit by unit, each unit's own in rows.
    """
    place = torch.arange(parts, device=ids.device)
    rows = (ids // grid[1] * parts)[..., None, None] + place[:, None]  # [B, units, parts, 1]
    columns = (ids % grid[1] * parts)[..., None, None] + place  # [B, units, 1, parts]
    return (rows * grid[1] * parts + columns).flatten(1)
