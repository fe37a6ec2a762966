"""Progressive contraction: the shapes that are a little smaller than another. No torch here.

TinyViT, arXiv 2207.10666. A factor is one thing that can be made smaller: of a TinyViT the width
of each stage (fewer heads, each as wide), its depth, its window (not of the first, which has none),
the expansion of the MBConv blocks and of the MLPs, and the channels of a head; of a plain ViT
depth, heads, and the expansion of the MLPs. Besides, "width": of all stages together.

The paper states the factors and no sizes of steps. The steps are ours: width and heads one head
less, depth one block less, a window the next smaller one that cuts the stage's map without a rest,
MBConv expansion 1 less, MLP expansion 0.5 less, a head half as wide. No stage gets wider than the
one after it, and everything stays 1 or more (a window 2, a head 8 channels).
"""

from collections.abc import Callable
from dataclasses import replace

from limbeck.models.options import StudentOptions

WIDTH = "width"
"""The factor of the baseline: all stages thinner together, or a plain ViT."""

MIN_HEAD_DIM = 8
_PATCH_STRIDE = 4  # of a TinyViT's patch embedding; each further stage doubles it

Contracted = StudentOptions | None
Contract = Callable[[StudentOptions, int, int], Contracted]
"""(shape, stage, steps) -> the smaller one. A whole shape states what is contracted."""


def factors_of(shape: StudentOptions) -> tuple[str, ...]:
    """Names of the factors that a whole shape has; "embed_dims.2" is the width of stage 3."""
    if shape.embed_dims is None:
        return (WIDTH, "depth", "num_heads", "mlp_ratio")
    return (
        WIDTH,
        *(f"embed_dims.{stage}" for stage in range(4)),
        *(f"depths.{stage}" for stage in range(4)),
        *(f"window_sizes.{stage}" for stage in range(1, 4)),
        *("mbconv_expand_ratio", "mlp_ratio", "head_dim"),
    )


def contract(shape: StudentOptions, factor: str, steps: int = 1) -> Contracted:
    """The shape with one factor so many steps smaller; None where it has no so many.

    ``shape`` is whole (``models.whole_shape``): what is contracted must be stated.
    """
    name, _, stage = factor.partition(".")
    how = (_OF_PLAIN if shape.embed_dims is None else _OF_STAGES)[name]
    return how(shape, int(stage or 0), steps)


# --- TinyViT --------------------------------------------------------------------------------------


def _all_stages(shape: StudentOptions, _: int, steps: int) -> Contracted:
    """The widest stage loses ``steps`` heads; the others keep their proportion to it."""
    dims, channels = shape.embed_dims, shape.head_dim
    heads = [dim // channels for dim in dims]
    left = max(heads) - steps
    if left < 1:
        return None
    thinner = [max(1, round(each * left / max(heads))) * channels for each in heads]
    return replace(shape, embed_dims=tuple(thinner))


def _one_stage(shape: StudentOptions, stage: int, steps: int) -> Contracted:
    dims, channels = shape.embed_dims, shape.head_dim
    left = dims[stage] - steps * channels
    if left < max((channels, *dims[:stage])):
        return None
    return replace(shape, embed_dims=_with(dims, stage, left))


def _depths(shape: StudentOptions, stage: int, steps: int) -> Contracted:
    left = shape.depths[stage] - steps
    return replace(shape, depths=_with(shape.depths, stage, left)) if left >= 1 else None


def _windows(shape: StudentOptions, stage: int, steps: int) -> Contracted:
    side = shape.img_size // (_PATCH_STRIDE * 2**stage)
    own = shape.window_sizes[stage]
    smaller = [window for window in range(own - 1, 1, -1) if side % window == 0]
    if len(smaller) < steps:
        return None
    return replace(shape, window_sizes=_with(shape.window_sizes, stage, smaller[steps - 1]))


def _head_dim(shape: StudentOptions, _: int, steps: int) -> Contracted:
    """As wide as before: timm's TinyViT then has twice as many heads."""
    left, rest = divmod(shape.head_dim, 2**steps)
    return replace(shape, head_dim=left) if left >= MIN_HEAD_DIM and not rest else None


# --- Plain ViT ------------------------------------------------------------------------------------


def _width(shape: StudentOptions, _: int, steps: int) -> Contracted:
    channels = shape.embed_dim // shape.num_heads
    # A fixed table of positions needs a width that 4 divides.
    fewer = [n for n in range(shape.num_heads - 1, 0, -1) if n * channels % 4 == 0]
    if len(fewer) < steps:
        return None
    left = fewer[steps - 1]
    return replace(shape, num_heads=left, embed_dim=left * channels)


def _num_heads(shape: StudentOptions, _: int, steps: int) -> Contracted:
    """As wide as before: the next smaller count that the width divides by."""
    fewer = [n for n in range(shape.num_heads - 1, 0, -1) if shape.embed_dim % n == 0]
    return replace(shape, num_heads=fewer[steps - 1]) if len(fewer) >= steps else None


# --- Both -----------------------------------------------------------------------------------------


def _less(name: str, step: float) -> Contract:
    """A number that gets smaller by ``step`` and stays 1 or more."""

    def contracted(shape: StudentOptions, _: int, steps: int) -> Contracted:
        left = getattr(shape, name) - step * steps
        return replace(shape, **{name: left}) if left >= 1 else None

    return contracted


def _with(values: tuple[int, ...], place: int, value: int) -> tuple[int, ...]:
    return (*values[:place], value, *values[place + 1 :])


_OF_STAGES: dict[str, Contract] = {
    WIDTH: _all_stages,
    "embed_dims": _one_stage,
    "depths": _depths,
    "window_sizes": _windows,
    "mbconv_expand_ratio": _less("mbconv_expand_ratio", 1),
    "mlp_ratio": _less("mlp_ratio", 0.5),
    "head_dim": _head_dim,
}
_OF_PLAIN: dict[str, Contract] = {
    WIDTH: _width,
    "depth": _less("depth", 1),
    "num_heads": _num_heads,
    "mlp_ratio": _less("mlp_ratio", 0.5),
}
