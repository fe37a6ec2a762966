"""Options that name a student or a teacher (no torch here, see ``limbeck.config``)."""

from typing import Annotated, Literal

import pydantic
import tyro

from limbeck.config import options

PositiveInt = Annotated[int, pydantic.Field(gt=0)]


@options
class StudentOptions:
    """The network to train: a timm name, and what differs from it."""

    name: Annotated[str, tyro.conf.arg(aliases=["--student"])] = "vit_tiny_patch16_224"
    """Name of a timm ViT, or a short one: vit_tiny, vit_small, vit_base."""
    img_size: PositiveInt | None = None
    """Image side in pixels; the name's own if not given."""
    patch_size: PositiveInt | None = None
    embed_dim: PositiveInt | None = None
    depth: PositiveInt | None = None
    num_heads: PositiveInt | None = None
    mlp_ratio: Annotated[float, pydantic.Field(gt=0)] | None = None
    weights: str | None = None
    """Start from these weights (a source as for the teacher) instead of a fresh initialisation."""


@options
class TeacherOptions:
    """The frozen network to learn from."""

    source: Annotated[str | None, tyro.conf.arg(aliases=["--teacher"])] = None
    """timm:NAME (pre-trained weights from the hub), hf:NAME, or a path: a weights file or a run."""
    img_size: PositiveInt | None = None
    """Image side in pixels; chosen so that the patch grids agree if not given."""
    num_heads: PositiveInt | None = None
    """Head count, for a weights file that does not say it and whose width does not tell."""
    patch_size: PositiveInt | None = None
    """Patch side, for a weights file that does not tell it."""
    precision: Literal["fp32", "bf16", "fp16"] = "bf16"
    """fp32, bf16 or fp16: of the teacher's forward pass."""
