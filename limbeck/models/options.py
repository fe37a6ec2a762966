"""Options that name a student or a teacher (no torch here, see ``limbeck.config``)."""

from dataclasses import fields
from typing import Annotated, Any, Literal

import pydantic
import tyro
from pydantic_core import ArgsKwargs

from limbeck.config import RECORD, Depth, PositiveFloat, Rate, Side, Width, options
from limbeck.errors import UserError, did_you_mean
from limbeck.models.shape_names import is_shape, join_shape, split_shape

HEAD_DIM = 32
"""Channels of a head of every released TinyViT, arXiv 2207.10666."""
Stages = tuple[Width, Width, Width, Width]

GlobalPool = Literal["token", "avg"]
HeadKind = Literal["single", "distilled", "distilled-last", "cls-distilled", "tinymim-star"]
RelPos = Literal["qkv-bias", "qv-bias"]
POOLS: dict[HeadKind, tuple[GlobalPool, ...]] = {
    "single": ("avg", "token"),
    "distilled": ("token",),
    "distilled-last": ("token",),
    "cls-distilled": ("avg",),
    "tinymim-star": ("avg",),
}
"""What a classifier of each kind can read; the first is taken if not asked for."""


def choose_pool(head: HeadKind, global_pool: GlobalPool | None) -> GlobalPool:
    """The pooling of a kind of head. Raises UserError for one that it can't have."""
    if global_pool not in (None, *POOLS[head]):
        raise UserError(
            f"A {head} head has only {' or '.join(POOLS[head])} pooling, not {global_pool}; leave "
            "--global-pool out."
        )
    return global_pool or POOLS[head][0]


@options
class StudentOptions:
    """The network to train: a timm name, and what differs from it."""

    name: Annotated[str, tyro.conf.arg(aliases=["--student"])] = "vit_tiny_patch16_224"
    """Name of a timm ViT, Hiera, Swin or TinyViT, or a short one: vit_tiny, vit_small, vit_base,
    hiera_46, swin_48, tiny_vit_5m, tiny_vit_11m, tiny_vit_21m. It may say the shape:
    vit_tiny:num_heads=6:depth=10. distill, compare and search also take a budget, such as
    "<=5ms", "<=6M" (parameters), "<=1.3GMAC" or "<=5ms,<=6M", and choose the most capable shape
    that is within it on this machine."""
    img_size: Side | None = None
    """Image side in pixels; the name's own if not given."""
    patch_size: Side | None = None
    embed_dim: Width | None = None
    depth: Depth | None = None
    num_heads: Width | None = None
    mlp_ratio: PositiveFloat | None = None
    embed_dims: Stages | None = None
    """Of a TinyViT, and the next four: width by stage; of stages 2 to 4 a multiple of head_dim."""
    depths: Stages | None = None
    window_sizes: Stages | None = None
    """Of stages 2 to 4; the first has none and ignores its number."""
    head_dim: Width | None = None
    """32 if not given."""
    mbconv_expand_ratio: PositiveFloat | None = None
    q_pool: Depth | None = None
    """How often a Hiera pools; 2 if not given, so that its last tokens stand for 16 x 16 pixels."""
    weights: str | None = None
    """Start from these weights (a source as for the teacher) instead of a fresh initialisation."""
    budget: Annotated[str | None, RECORD, tyro.conf.Suppress] = None
    """For which the shape was chosen."""

    @pydantic.model_validator(mode="before")
    @classmethod
    def _read_name(cls, values: Any) -> Any:
        """Take the shape out of the name, so that it is stated in one place."""
        given = values.kwargs if isinstance(values, ArgsKwargs) else values
        text = given.get("name") if isinstance(given, dict) else None
        if not isinstance(text, str) or not is_shape(text):
            return values
        name, stated = split_shape(text)
        for key in stated:
            if key not in SHAPE:
                raise UserError(
                    f"'{text}': there is no option '{key}'.{did_you_mean(key, SHAPE)} "
                    f"A shape has {', '.join(SHAPE)}."
                )
            if given.get(key) is not None:
                raise UserError(f"'{text}' and student.{key} state the same; leave one out.")
        given = {**given, **stated, "name": name}
        return ArgsKwargs(values.args, given) if isinstance(values, ArgsKwargs) else given

    @property
    def text(self) -> str:
        """The name that says the whole of what is stated; ``weights`` are no part of it."""
        return join_shape(self.name, {key: getattr(self, key) for key in SHAPE})


SHAPE = tuple(f.name for f in fields(StudentOptions) if f.name not in ("name", "weights", "budget"))
"""What may be stated of a student's shape, in its name too."""


@options
class TeacherOptions:
    """The frozen network to learn from."""

    source: Annotated[str | None, tyro.conf.arg(aliases=["--teacher"])] = None
    """timm:NAME (pre-trained weights from the hub), hf:NAME, or a path: a weights file or a run.
    For finetune any classifier of timm will do, such as timm:regnety_160.deit_in1k."""
    model_name: str | None = None
    """timm's name of what is in a weights file that does not tell it."""
    img_size: Side | None = None
    """Image side in pixels. If not given: where inner tensors are compared, the one that makes the
    patch grids agree; where only logits are wanted (finetune), the teacher's own; of maps
    (segment) the crops' of the student."""
    num_heads: Width | None = None
    """Head count, for a weights file that does not say it and whose width does not tell."""
    patch_size: Side | None = None
    """Patch side, for a weights file that does not tell it."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Of the teacher's forward pass; auto as of train.precision."""
    drop_path_rate: Rate = 0.0
    """Stochastic depth of the teacher: this rate in every block but the last. TinyMIM distils with
    0 and found 0.1 to be worse."""


DenseHead = Literal["light", "upernet", "semantic-fpn"]
DenseNorm = Literal["batch", "group"]
NeckKind = Literal["same", "wide", "narrow"]
DenseTaps = Literal["published", "quarters"]


@options
class SegmenterOptions:
    """What is put on an encoder so that it answers with maps of classes."""

    head: DenseHead = "light"
    """light: one convolution on the encoder's own scales, for speed; upernet: as TinyMIM and G2SD
    segment; semantic-fpn: as MAE-Lite does."""
    width: Width | None = None
    """Channels inside the head; if not given 128, of upernet as many as the maps have."""
    neck: NeckKind | None = None
    """Of a plain ViT's maps, before upernet and semantic-fpn: same (TinyMIM's and G2SD's), wide
    (TinyMIM*-T's, four times the encoder's width), narrow (MAE-Lite's, a quarter of it; of stages
    of the first's). If not given same for upernet and narrow for semantic-fpn."""
    taps: DenseTaps = "published"
    """After which blocks a plain ViT is read. published: a third, half, two thirds and all of them
    (4, 6, 8 and 12 of 12); quarters: a quarter and so on."""
    norm: DenseNorm = "batch"
    """batch: over the images of all processes; group: of each image alone, for small batches."""
    dropout: Rate = 0.1
    """Of whole channels, before the classes, in the auxiliary head too."""
    aux: bool | None = None
    """An auxiliary head that helps in training; if not given of upernet alone."""
    rel_pos: bool | None = None
    """Give every block of a plain ViT a bias of relative positions and scales of its branches that
    start at 1, as published; if not given for upernet and semantic-fpn where the encoder can have
    them."""
    freeze: bool = False
    """Train neck and head alone; the encoder stays as it is."""

    def __post_init__(self) -> None:
        if self.head == "light" and self.neck is not None:
            raise UserError("segmenter.neck is for upernet and semantic-fpn; leave it out.")


DetectorHead = Literal["light"]


@options
class DetectorOptions:
    """What is put on an encoder so that it finds objects."""

    head: DetectorHead = "light"
    """light: every place of three maps answers, one place an object; nothing is suppressed."""
    width: Width | None = None
    """Channels of pyramid and heads; 96 if not given."""
    masks: Annotated[bool, tyro.conf.arg(aliases=["--masks"])] = False
    """Find masks, too, of objects with outlines."""
    norm: DenseNorm = "batch"
    """batch: over the images of all processes; group: of each image alone, for small batches."""
    freeze: bool = False
    """Train pyramid and heads alone; the encoder stays as it is."""
