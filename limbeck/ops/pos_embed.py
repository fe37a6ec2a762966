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
) -> Float[Tensor, "1 M D"]:
    """A learned table for another grid: bicubic with antialiasing; prefix rows stay as they are.

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
    image = F.interpolate(image, size=grid_to, mode="bicubic", antialias=True)
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
