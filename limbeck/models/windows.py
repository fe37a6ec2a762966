"""The windows of a TinyViT: which follow from the image size, and what timm is told of them.

TinyViT, arXiv 2207.10666. timm's builds for windows, not for an image size. At 224, 384 and 512
pixels the published ones are 7, 12 and 16 tokens wide, in the third stage twice that: every map is
cut into the same number of windows. Torch is not imported here.
"""

from collections.abc import Mapping, Sequence
from math import gcd
from typing import Any

from limbeck.errors import UserError
from limbeck.models.shapes import is_tiny_vit

PATCH_STRIDE = 4
"""Pixels per side of a token after the patch embedding; twice as many from stage to stage."""
_OWN_SIZE = 224
_WINDOWS = (7, 7, 14, 7)
_PER_STAGE = ("embed_dims", "depths", "num_heads", "window_sizes")


def window_sizes_for(img_size: Sequence[int], num_stages: int = 4) -> list[int]:
    """Tokens per side of a window, per stage, for images of (height, width) pixels.

    From 224 pixels on windows grow with the images; for smaller ones they stay as at 224, or
    the map is one window. All divide their maps: timm would let padded tokens take part as keys.
    """
    own = [*_WINDOWS, *[_WINDOWS[-1]] * num_stages][:num_stages]
    factor = max(1.0, min(img_size) / _OWN_SIZE)
    return _fit([window * factor for window in own], img_size)


def with_img_size(kwargs: Mapping[str, Any], img_size: Sequence[int]) -> dict[str, Any]:
    """An architecture's arguments for images of another size: stated windows change alike."""
    changed = {**kwargs, "img_size": list(img_size)}
    if "window_sizes" in kwargs and list(to_grid(kwargs["img_size"])) != list(img_size):
        factor = min(img_size) / min(to_grid(kwargs["img_size"]))
        changed["window_sizes"] = _fit([each * factor for each in kwargs["window_sizes"]], img_size)
    if backbone := kwargs.get("backbone"):  # of a segmenter
        inner = with_img_size(backbone["kwargs"], img_size)
        changed["backbone"] = {**backbone, "kwargs": inner}
    return changed


def img_size_of(name: str, kwargs: Mapping[str, Any]) -> tuple[int, int]:
    """(height, width) of a TinyViT's images; those in timm's name if its arguments have none."""
    size = kwargs.get("img_size", int(name.partition(".")[0].rpartition("_")[2]))
    return to_grid(size)


def timm_kwargs(name: str, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """What ``timm.create_model`` takes of an architecture's arguments: all of it, mostly.

    Of a TinyViT the windows in place of the image size. Raises UserError for lists of stages that
    differ in length.
    """
    if not is_tiny_vit(name):
        return dict(kwargs)
    lengths = {key: len(kwargs[key]) for key in _PER_STAGE if key in kwargs}
    needed = _PER_STAGE[:3] if set(lengths.values()) - {len(_WINDOWS)} else ()
    if len(set(lengths.values())) > 1 or any(key not in lengths for key in needed):
        raise UserError(
            f"The stages of a TinyViT are stated by {', '.join(_PER_STAGE)}, one value each, and "
            f"here are {lengths}; give as many of all."
        )
    num_stages = next(iter(lengths.values()), len(_WINDOWS))
    windows = window_sizes_for(img_size_of(name, kwargs), num_stages)
    told = {key: value for key, value in kwargs.items() if key != "img_size"}
    return {"window_sizes": windows} | told


def _fit(targets: Sequence[float], img_size: Sequence[int]) -> list[int]:
    """Per stage the smallest window that is at least the target, or the map, and divides it."""
    windows = []
    for stage, target in enumerate(targets):
        stride = PATCH_STRIDE * 2**stage
        side = max(1, gcd(img_size[0] // stride, img_size[1] // stride))
        divisors = (n for n in range(1, side + 1) if side % n == 0)
        windows.append(next(n for n in divisors if n >= min(target, side)))
    return windows


def to_grid(size: int | Sequence[int]) -> tuple[int, int]:
    """(height, width) from both or from one side."""
    return (size, size) if isinstance(size, int) else (size[0], size[1])
