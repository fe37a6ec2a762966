"""Images of one network's size for another network."""

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F


def resize_images(
    images: Float[Tensor, "B C H W"], size: tuple[int, int]
) -> Float[Tensor, "B C h w"]:
    """Images in 0..1 as (B, C, *size), bicubic with antialiasing; untouched if of this size."""
    if images.shape[-2:] == size:
        return images
    resized = F.interpolate(images, size, mode="bicubic", antialias=True)
    return resized.clamp(0, 1)  # bicubic overshoots at edges
