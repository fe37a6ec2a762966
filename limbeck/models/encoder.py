"""The contract of every encoder: images and wanted taps in, features out."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import pydantic
import torch
from torch import Tensor, nn

from limbeck.errors import UserError
from limbeck.records import (
    DECODER_KINDS,
    HEAD_KINDS,
    LEVEL_KINDS,
    LOGIT_KINDS,
    MAP_KINDS,
    NUM_LEVELS,
    Features,
    Tap,
)


@dataclass(frozen=True)
class EncoderFacts:
    """What others may know of an encoder.

    ``num_heads`` one count per block (an adaptive last block may differ); 0 of a block without
    attention, which offers only "block_input" and "tokens". ``num_prefix_tokens`` counts the CLS,
    register and distillation tokens before the patches; where ``has_cls_token`` the CLS token is
    the first of them. ``img_size`` (H, W) and ``grid`` (gh, gw) are those the
    encoder was built for. ``mean`` and ``std`` (3 values each) normalise images in 0..1.
    ``num_classes`` is 0 without a classifier; ``has_dist_head``: there is a second one, on the
    distillation token. ``output_dim`` is the width of Tap("output"), ``embed_dim`` if not given.

    A hierarchical encoder says more: ``embed_dim`` and ``patch_size`` are those of its last tokens;
    ``block_dims`` and ``block_strides`` the width and the pixels per side of a token, after each
    block; ``input_dims`` and ``input_strides`` those before it (of the block before if not given;
    the patch embedding's width is the first); ``mask_unit`` the pixels per side of what
    ``ids_keep`` counts; ``global_blocks`` the blocks in which every token attends to all (only
    these offer what has an axis of heads). A plain one need not: each block is as the last, a unit
    is a patch, all attention is global. ``can_drop``: patches can be left out of the computation.
    ``has_position_bias``: its scores contain a table of relative positions. ``decoder_depth`` and
    ``decoder_dim`` are of a masked autoencoder: the blocks of its decoder and their width.
    ``has_maps``: the classes are those of pixels, and its logits are maps. ``has_boxes``: they are
    those of objects, which it finds. ``level_dims`` and ``level_strides`` are of the levels of a
    detector's pyramid: their width, and the pixels per side of a place.

    ``architecture`` is plain JSON data from which ``models.build_encoder`` rebuilds the encoder.
    ``origin`` is for people and for lineage: where the weights came from, their hash and licence
    where known.
    """

    embed_dim: int
    depth: int
    num_heads: tuple[int, ...]
    num_prefix_tokens: int
    has_cls_token: bool
    patch_size: int
    img_size: tuple[int, int]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    num_classes: int
    architecture: dict[str, Any]
    origin: dict[str, Any]
    has_dist_head: bool = False
    output_dim: int = 0
    block_dims: tuple[int, ...] = ()
    block_strides: tuple[int, ...] = ()
    input_dims: tuple[int, ...] = ()
    input_strides: tuple[int, ...] = ()
    mask_unit: int = 0
    global_blocks: tuple[int, ...] | None = None
    can_drop: bool = True
    has_position_bias: bool = False
    decoder_depth: int = 0
    decoder_dim: int = 0
    has_maps: bool = False
    has_boxes: bool = False
    level_dims: tuple[int, ...] = ()
    level_strides: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        dims = self.block_dims or (self.embed_dim,) * self.depth
        strides = self.block_strides or (self.patch_size,) * self.depth
        usual = {
            "output_dim": self.embed_dim,
            "block_dims": dims,
            "block_strides": strides,
            "input_dims": (*dims[:1], *dims[:-1]),
            "input_strides": (*strides[:1], *strides[:-1]),
            "mask_unit": self.patch_size,
        }
        for name, value in usual.items():
            if not getattr(self, name):
                object.__setattr__(self, name, value)
        if self.global_blocks is None:
            object.__setattr__(self, "global_blocks", tuple(range(self.depth)))

    @classmethod
    def from_plain(cls, values: dict[str, Any]) -> "EncoderFacts":
        """Facts again from plain data, such as ``dataclasses.asdict`` and JSON made of them."""
        return pydantic.TypeAdapter(cls).validate_python(values)

    def grid_of(self, stride: int) -> tuple[int, int]:
        """Rows and columns of tokens of ``stride`` pixels per side."""
        return self.img_size[0] // stride, self.img_size[1] // stride

    @property
    def grid(self) -> tuple[int, int]:
        """Patches (rows, columns) at ``img_size``."""
        return self.grid_of(self.patch_size)

    @property
    def input_grid(self) -> tuple[int, int]:
        """What the patch embedding gives (rows, columns); a hierarchical encoder then pools."""
        return self.grid_of(self.input_strides[0])

    @property
    def mask_grid(self) -> tuple[int, int]:
        """What ``ids_keep`` counts (rows, columns): the patches, or units of several."""
        return self.grid_of(self.mask_unit)

    def tap_dim(self, tap: Tap) -> int:
        """Width of a tap that has no axis of heads."""
        if tap.kind == "output":
            return self.output_dim
        if tap.kind in DECODER_KINDS:
            return self.decoder_dim
        before = tap.kind in ("block_input", "attention_input")
        return (self.input_dims if before else self.block_dims)[tap.block]

    def tap_stride(self, tap: Tap) -> int:
        """Pixels per side of a token of such a tap."""
        if tap.kind in ("output", *DECODER_KINDS):
            return self.patch_size
        before = tap.kind in ("block_input", "attention_input")
        return (self.input_strides if before else self.block_strides)[tap.block]

    @property
    def identity(self) -> dict[str, Any]:
        """What tells what it computes from what others do: plain data, whatever its image size.

        "weights" is their hash, None where it is not known: then only the source can tell.
        """
        kwargs = {k: v for k, v in self.architecture.get("kwargs", {}).items() if k != "img_size"}
        return {
            "weights": self.origin.get("weight_hash"),
            "num_heads": list(self.num_heads),
            "architecture": self.architecture | {"kwargs": kwargs},
        }


class Encoder(nn.Module, ABC):
    """A vision Transformer that normalises its own input and gives the inner tensors asked for.

    Another network can be one, too: with ``depth`` 0 it offers only the kinds of tap without a
    block, "output" and the logits.
    """

    facts: EncoderFacts
    mask_token: Tensor | None
    """(1, 1, width of the patch embedding): what stood for hidden patches in its own pre-training;
    None where there was no such thing, or it is not known."""

    def __init__(self) -> None:
        super().__init__()
        # Not persistent: it belongs to the pre-training, and the weights' names stay as they are.
        self.register_buffer("mask_token", None, persistent=False)

    @abstractmethod
    def forward(
        self,
        images: Tensor,
        ids_keep: Tensor | None = None,
        taps: tuple[Tap, ...] = (),
        mask_token: Tensor | None = None,
    ) -> Features:
        """Encode images.

        ``images`` (B, 3, H, W), 0..1, not normalised, of the size in ``facts.img_size``.
        ``ids_keep`` (B, kept) int64 indices in ``facts.mask_grid``: only these patches (and the
        prefix tokens) are computed, in this order. With a ``mask_token`` (1, 1, width of the patch
        embedding) all are, and it stands for those that are not kept. Raises UserError where
        patches can't be dropped (``facts.can_drop``) or masked.

        ``taps``: what is wanted. Without taps the final tokens are computed
        (``Features.tokens``); with taps only what they need: the encoder stops after the last block
        that a tap needs, and ``Features.tokens`` is None unless Tap("output") is among them. A
        "queries", "keys", "values" or "scores" tap on the deepest block needed runs
        only that block's norm and qkv projection.
        """

    def forward_small(self, images: Tensor, taps: tuple[Tap, ...] = ()) -> Features:
        """Encode images (B, 3, h, w) of another size than ``facts.img_size``, as small crops are.

        Raises UserError where positions can't be interpolated.
        """
        del images, taps
        raise UserError(
            f"{self.facts.architecture.get('name', 'The student')} takes images of one size only; "
            "leave small crops out, or choose a plain ViT with absolute positions."
        )

    def weights_from(self, block: int, *, is_dropping: bool = False) -> dict[str, Tensor]:
        """Its own tensors that ``continue_from`` reads for the taps of ``block``, by name.

        Of the last block with the norm after it. ``is_dropping``: of tokens among which patches are
        missing. Raises UserError where it can't go on from them.
        """
        del block, is_dropping
        raise self._cannot_continue()

    def continue_from(self, block: int, tokens: Tensor, taps: tuple[Tap, ...]) -> Features:
        """Go on from what enters a block, ``tokens`` (B, N, D) as of Tap("block_input", block).

        ``taps``, at least one, are of this block or of what comes after it. Raises UserError for an
        encoder that can't.
        """
        del block, tokens, taps
        raise self._cannot_continue()

    def _cannot_continue(self) -> UserError:
        name = self.facts.architecture.get("name", "This encoder")
        return UserError(
            f"{name} can't go on from the tokens of an inner block, so that these can't be stored; "
            "train with it as a live teacher, or choose a plain ViT."
        )

    @abstractmethod
    def offered_taps(self) -> tuple[str, ...]:
        """Kinds of tap this encoder can give (for every block, where the kind has a block)."""

    @abstractmethod
    def layer_id(self, parameter_name: str) -> int:
        """Depth of a parameter: 0 embedding, k + 1 block k, depth + 1 after, or learnt as the heads
        are, as G2SD's distillation token.

        For layer decay, and for what of a teacher stays in float32: all that is after. (An encoder
        computes its logits outside autocast, in the type of the classifier's weights.)
        """

    @abstractmethod
    def set_num_heads(self, block: int, num_heads: int) -> None:
        """Re-split the attention of one block (TinyMIM's adaptive block); no weight changes.

        Raises UserError where ``embed_dim`` does not divide or the block has per-head weights.
        """


def check_images(encoder: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """A hook before ``forward``: raise UserError for images that are not meant to be in 0..1.

    While training they need only be floats, for a disturbed view may leave 0..1. A resized image
    swings a little beyond: half of the range is allowed on both sides.
    """
    images = args[0] if args else kwargs.get("images")
    if not isinstance(images, Tensor) or torch.compiler.is_compiling():
        return
    if not images.is_floating_point():
        raise UserError(
            f"Images are {str(images.dtype).removeprefix('torch.')}, and an encoder takes floats "
            "in 0..1, not normalised; pass images.float() / 255."
        )
    if encoder.training or not images.numel():
        return
    low, high = (float(value) for value in images.detach().aminmax())
    if low >= -0.5 and high <= 1.5:
        return
    if low != low or high != high:
        raise UserError("Images have NaN among their values; an encoder takes floats in 0..1.")
    remedy = (
        "leave the normalisation out: the encoder has its own mean and std"
        if low < -0.5
        else "divide pixels by 255, and leave out any normalisation: the encoder does it"
    )
    raise UserError(
        f"Images have values from {low:.3g} to {high:.3g}, and an encoder takes 0..1; {remedy}."
    )


def check_taps(encoder: Encoder, taps: tuple[Tap, ...], role: str) -> None:
    """Raise UserError unless the encoder offers every tap; ``role`` is "student" or "teacher"."""
    check_offered(encoder.facts, encoder.offered_taps(), taps, role)


def check_offered(
    facts: EncoderFacts, offered: tuple[str, ...], taps: tuple[Tap, ...], role: str
) -> None:
    """Likewise of an encoder of these facts that offers these kinds."""
    for tap in taps:
        if tap.kind not in offered:
            raise UserError(
                f"The method needs '{tap.kind}' of the {role}, which offers only "
                f"{', '.join(offered)}; choose another {role} or method."
            )
        count = len(facts.level_strides) or NUM_LEVELS
        if tap.kind in LEVEL_KINDS and not -count <= tap.block < count:
            raise UserError(
                f"The pyramid of the {role} has {count} levels (0 to {count - 1}); there is no "
                f"level {tap.block}."
            )
        if tap.kind in ("output", *LOGIT_KINDS, *MAP_KINDS):
            continue  # after all blocks, and there need be none
        if tap.kind in DECODER_KINDS:
            if not -facts.decoder_depth <= tap.block < facts.decoder_depth:
                raise UserError(
                    f"The {role}'s decoder has {facts.decoder_depth} blocks (0 to "
                    f"{facts.decoder_depth - 1}, or -1 for the last); there is no block "
                    f"{tap.block} in it."
                )
            continue
        if not -facts.depth <= tap.block < facts.depth:
            raise UserError(
                f"The {role} has {facts.depth} blocks (0 to {facts.depth - 1}, or -1 for the "
                f"last); there is no block {tap.block}."
            )
        if not facts.num_heads[tap.block] and tap.kind not in ("block_input", "tokens"):
            usable = ", ".join(str(k) for k, heads in enumerate(facts.num_heads) if heads)
            raise UserError(
                f"Block {tap.block} of the {role} has no attention, so there is no '{tap.kind}' in "
                f"it, only 'block_input' and 'tokens'; choose one of the blocks {usable}."
            )
        assert facts.global_blocks is not None
        if tap.kind in HEAD_KINDS and tap.block % facts.depth not in facts.global_blocks:
            usable = ", ".join(map(str, facts.global_blocks)) or "none"
            raise UserError(
                f"Block {tap.block} of the {role} attends within windows, so its '{tap.kind}' are "
                f"not of all tokens; choose a block with global attention: {usable}."
            )
        own = facts.num_heads[tap.block]
        if tap.num_heads not in (None, own):
            raise UserError(
                f"The method needs {tap.num_heads} heads in block {tap.block} of the {role}, "
                f"which has {own}."
            )
