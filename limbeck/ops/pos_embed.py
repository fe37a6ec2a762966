"""Position tables: MAE's fixed 2-D sin-cos one (arXiv 2111.06377), and learned ones resized."""

from math import isqrt

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from limbeck.errors import UserError


def sincos_2d(
    embed_dim: int, grid: tuple[int, int], num_prefix_tokens: int
) -> Float[Tensor, "N {embed_dim}"]:
    """The fixed table, ``N = num_prefix_tokens + gh * gw`` rows, float32; prefix rows are zero.

    With ``w_k = 10000^(-k / (D/4))``, ``k = 0..D/4-1``, and a patch in column x, row y (patch index
    ``gw * y + x``), the channels are ``[sin(x w), cos(x w), sin(y w), cos(y w)]``, each D/4 long.
    Raises UserError unless 4 divides ``embed_dim``.
    """
    if embed_dim % 4:
        raise UserError(
            f"A sin-cos position table needs a width that 4 divides, not {embed_dim}; "
            "choose another embed_dim."
        )
    # float64 until the end: in float32 the large angles would lose the last digits.
    omega = 10000.0 ** (-torch.arange(embed_dim // 4, dtype=torch.float64) / (embed_dim // 4))
    y, x = torch.meshgrid(
        torch.arange(grid[0], dtype=torch.float64),
        torch.arange(grid[1], dtype=torch.float64),
        indexing="ij",
    )
    x_angles, y_angles = x.reshape(-1, 1) * omega, y.reshape(-1, 1) * omega  # [L, D/4]
    patches = torch.cat((x_angles.sin(), x_angles.cos(), y_angles.sin(), y_angles.cos()), dim=1)
    prefix = torch.zeros(num_prefix_tokens, embed_dim, dtype=torch.float64)
    return torch.cat((prefix, patches)).float()


def is_sincos_2d(
    pos_embed: Float[Tensor, "1 N D"], num_prefix_tokens: int, grid: tuple[int, int]
) -> bool:
    """Whether a table is the fixed one of ``grid``, also as a half-precision file rounds it.

    Also with the halves of the channels swapped (rows first): that is MoCo-v3's (arXiv 2104.02057).
    """
    embed_dim = pos_embed.shape[-1]
    if embed_dim % 4 or pos_embed.shape[1] != num_prefix_tokens + grid[0] * grid[1]:
        return False
    table = pos_embed[0].detach().float().cpu()
    fixed = sincos_2d(embed_dim, grid, num_prefix_tokens)
    # 1e-5: other programs compute the angles in float32.
    return any(
        torch.allclose(table, other.to(dtype).float(), rtol=0, atol=1e-5)
        for other in (fixed, fixed.roll(embed_dim // 2, dims=1))
        for dtype in (torch.float32, torch.float16, torch.bfloat16)
    )


def interpolate_pos_embed(
    pos_embed: Float[Tensor, "1 N D"],
    num_prefix_tokens: int,
    grid_from: tuple[int, int],
    grid_to: tuple[int, int],
    *,
    antialias: bool = True,
) -> Float[Tensor, "1 M D"]:
    """A learned table for another grid: bicubic with antialiasing; prefix rows stay as they are.

    Without it the kernel is another, also where it enlarges: that of the published segmenters.

    ``num_prefix_tokens`` counts the rows without a place in the image (0 where the table has none).
    Raises UserError where the rows do not fit ``grid_from``.
    """
    if pos_embed.shape[1] != num_prefix_tokens + grid_from[0] * grid_from[1]:
        raise UserError(
            f"A position table of {pos_embed.shape[1]} rows does not fit {num_prefix_tokens} "
            f"prefix tokens and a grid of {grid_from[0]} x {grid_from[1]}; name the image and "
            "patch size that it was made for."
        )
    if grid_from == grid_to:
        return pos_embed
    prefix, patches = pos_embed[:, :num_prefix_tokens], pos_embed[:, num_prefix_tokens:]
    # float32: the interpolation has no half-precision version on the CPU.
    image = patches.float().unflatten(1, grid_from).permute(0, 3, 1, 2)
    image = F.interpolate(image, size=grid_to, mode="bicubic", antialias=antialias)
    patches = image.permute(0, 2, 3, 1).flatten(1, 2).to(pos_embed.dtype)
    return torch.cat((prefix, patches), dim=1)


def resize_offsets(biases: Float[Tensor, "nh n"], num_offsets: int) -> Float[Tensor, "nh m"]:
    """A table of biases by absolute offset for a square window of another size, as TinyViT's.

    ``n`` and ``num_offsets`` are squares: the entry |dy| * side + |dx| belongs to tokens that are
    so far apart. Bicubic without antialiasing, as TinyViT (arXiv 2207.10666) went from 224 to 384
    and 512 pixels; timm's way with antialiasing is another kernel, also where it enlarges.
    """
    side_from, side_to = isqrt(biases.shape[1]), isqrt(num_offsets)
    if side_from**2 != biases.shape[1] or side_to**2 != num_offsets:
        raise UserError(
            f"A table of {biases.shape[1]} offsets can't be resized to {num_offsets}: both must be "
            "those of a square window; choose an image size whose windows are square."
        )
    # float32: the interpolation has no half-precision version on the CPU.
    image = biases.float().unflatten(1, (side_from, side_from)).unsqueeze(0)
    image = F.interpolate(image, size=(side_to, side_to), mode="bicubic", align_corners=False)
    return image[0].flatten(1).to(biases.dtype)


def resize_distances(
    table: Float[Tensor, "n nh"], window_from: tuple[int, int], window_to: tuple[int, int]
) -> Float[Tensor, "m nh"]:
    """A table of biases by signed distance for another window, as BEiT's (arXiv 2106.08254).

    ``n`` is (2 rows - 1) (2 columns - 1), distances in rows first, and what follows these is kept
    as it is. The old distances are taken as a geometric series that ends where the new ones end, so
    that near ones stay what they are, and a bicubic spline goes through them. timm's way takes the
    same places and straight lines between them.
    """
    sides_from, sides_to = ([2 * side - 1 for side in w] for w in (window_from, window_to))
    count = sides_from[0] * sides_from[1]
    if len(table) < count:
        raise UserError(
            f"A table of {len(table)} relative positions is not of a window of {window_from[0]} x "
            f"{window_from[1]}; name the image size that it was made for."
        )
    places, others = table[:count].double(), table[count:]
    rows, columns = (
        _spline(_spread(old // 2, new // 2), torch.arange(-(new // 2), new // 2 + 1).double())
        for old, new in zip(sides_from, sides_to, strict=True)
    )
    resized = torch.einsum("ir,rcn,jc->ijn", rows, places.unflatten(0, sides_from), columns)
    return torch.cat((resized.flatten(0, 1).to(table.dtype), others))


def _spread(num_old: int, end: int) -> Tensor:
    """The old distances -num_old..num_old on the scale of the new ones: +-(1, 1 + q, ...).

    Of a window that is no larger they stay what they are.
    """
    low, high, q = 1.01, 1.5, 1.0
    while end > num_old and high - low > 1e-6:
        q = (low + high) / 2
        low, high = (low, q) if sum(q**k for k in range(num_old)) > end else (q, high)
    steps = q ** torch.arange(num_old, dtype=torch.float64)
    steps = steps.cumsum(0)
    return torch.cat((-steps.flip(0), steps.new_zeros(1), steps))


def _spline(at: Tensor, to: Tensor) -> Tensor:
    """What a cubic spline through values at the places ``at`` (n) has at ``to`` (m), as [m, n].

    Its third derivative is continuous at the second and the last but one; up to three places are
    on a parabola.
    """
    n = len(at)
    if n < 4:
        powers = torch.arange(n)
        return (to[:, None] ** powers) @ torch.linalg.inv(at[:, None] ** powers)
    h, eye = at.diff(), torch.eye(n, dtype=at.dtype)
    slopes = eye.diff(dim=0) / h[:, None]
    left, right = torch.zeros_like(eye), torch.zeros_like(eye)  # of the second derivatives
    for k in range(1, n - 1):
        left[k, k - 1 : k + 2] = torch.stack((h[k - 1], 2 * (h[k - 1] + h[k]), h[k])) / 6
        right[k] = slopes[k] - slopes[k - 1]
    for k, (first, second) in ((0, (h[0], h[1])), (n - 1, (h[-2], h[-1]))):
        start = min(k, n - 3)
        left[k, start : start + 3] = torch.stack((second, -first - second, first))
    bends = torch.linalg.solve(left, right)
    index = (torch.searchsorted(at, to, right=True) - 1).clamp(0, n - 2)
    wide = h[index][:, None]
    before, after = (at[index + 1] - to)[:, None], (to - at[index])[:, None]
    linear = (eye[index] * before + eye[index + 1] * after) / wide
    curved = bends[index] * (before**3 / wide - wide * before)
    return linear + (curved + bends[index + 1] * (after**3 / wide - wide * after)) / 6
