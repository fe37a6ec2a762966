"""Patch embedding of the patches that are kept alone, so that a masked pass costs what it keeps."""

from timm.layers import PatchEmbed
from torch import Tensor, arange, nn
from torch.nn.functional import linear


def embed_patches(patch_embed: nn.Module, images: Tensor, ids_keep: Tensor | None) -> Tensor:
    """``patch_embed`` of images (B, 3, H, W): (B, L, D), zeros for patches not in ``ids_keep``.

    timm's plain convolution is a linear layer of each patch. Others, such as a convolutional stem
    that sees beyond a patch, embed all of the image.
    """
    if ids_keep is None or not _is_plain(patch_embed):
        return patch_embed(images)
    side = patch_embed.patch_size[0]
    grid = images.unflatten(3, (-1, side)).unflatten(2, (-1, side))  # [B, 3, gh, p, gw, p]
    columns = grid.shape[4]
    sample = arange(len(images), device=images.device)[:, None]
    patches = grid.permute(0, 2, 4, 1, 3, 5)[sample, ids_keep // columns, ids_keep % columns]
    conv = patch_embed.proj
    kept = linear(patches.flatten(2), conv.weight.flatten(1), conv.bias)  # [B, kept, D]
    kept = patch_embed.norm(kept)
    full = kept.new_zeros(len(images), grid.shape[2] * columns, kept.shape[2])
    return full.scatter(1, ids_keep.unsqueeze(-1).expand_as(kept), kept)


def _is_plain(patch_embed: nn.Module) -> bool:
    if type(patch_embed) is not PatchEmbed or not patch_embed.flatten:
        return False
    conv = patch_embed.proj
    is_square = conv.kernel_size == conv.stride == (patch_embed.patch_size[0],) * 2
    return is_square and not patch_embed.dynamic_img_pad
