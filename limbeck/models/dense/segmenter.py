"""A segmenter: an encoder with neck and heads, itself an encoder whose maps are taps.

It is trained, taught, saved and loaded as any other; ``dense/build.py`` makes one of an encoder.
"""

from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import Field
from torch import Tensor, nn
from typing_extensions import TypedDict

from limbeck.documents import fit
from limbeck.errors import UserError
from limbeck.models.dense.headed import Headed
from limbeck.models.dense.light import LightHead
from limbeck.models.dense.neck import LevelNeck, PlainNeck, neck_dims
from limbeck.models.dense.semantic_fpn import SemanticFpnHead
from limbeck.models.dense.upernet import AuxHead, UperHead
from limbeck.models.options import DenseHead, DenseNorm, NeckKind
from limbeck.models.timm_encoder import TimmEncoder
from limbeck.models.vit import build_encoder
from limbeck.records import NUM_LEVELS, Features, Tap

KIND = "segmenter"
OWN_KINDS = ("logits", "pyramid", "aux_logits")
PLAIN_STRIDE = 16
AUX_LEVEL = 2

_Size = Annotated[int, Field(ge=1, le=2**20)]


class Parts(TypedDict):
    """What is put on the encoder, as an architecture states it.

    ``blocks`` are those that are read, of a TinyMIM* the wide tokens in the place of the last.
    ``neck`` is None for the light head. ``width`` is the head's.
    """

    img_size: Annotated[list[_Size], Field(min_length=2, max_length=2)]
    num_classes: _Size
    backbone: dict[str, Any]
    blocks: Annotated[list[int], Field(min_length=NUM_LEVELS, max_length=NUM_LEVELS)]
    head: DenseHead
    width: _Size
    neck: NeckKind | None
    norm: DenseNorm
    dropout: Annotated[float, Field(ge=0, lt=1)]
    aux: bool


class Segmenter(Headed):
    """A backbone, a neck, a head, and an auxiliary head if ``parts`` has one; all fresh but the
    backbone, which loses what comes after its last block.

    Tap("logits") are (B, C, h, w), four times as fine as the patches of a plain ViT, and a quarter
    of the image's size of a hierarchical encoder. All taps of blocks are the backbone's.
    """

    def __init__(self, backbone: TimmEncoder, parts: Parts, origin: dict[str, Any]) -> None:
        super().__init__(backbone)
        facts = backbone.facts
        if any(not 0 <= block < facts.depth for block in parts["blocks"]):
            raise UserError(
                f"A segmenter that reads the blocks {', '.join(map(str, parts['blocks']))} does "
                f"not fit an encoder of {facts.depth} blocks; get the file again that says so."
            )
        self.reads = tuple(Tap("tokens", block) for block in parts["blocks"])
        if has_wide_end(backbone):
            self.reads = (*self.reads[:-1], Tap("output"))
        self.drop_end(kept=("conv1x1",) if has_wide_end(backbone) else ())
        dims = [facts.tap_dim(tap) for tap in self.reads]
        self.own_kinds = OWN_KINDS if parts["aux"] else OWN_KINDS[:-1]
        norm, width, count = parts["norm"], parts["width"], parts["num_classes"]
        neck, dropout = parts["neck"] or "same", parts["dropout"]
        if is_staged(backbone) or parts["head"] == "light":
            self.neck: nn.Module = LevelNeck(neck, dims)
        else:
            self.neck = PlainNeck(neck, dims, norm)
        levels = neck_dims(neck, dims)
        if parts["head"] == "light":
            strides = [facts.tap_stride(tap) for tap in self.reads]
            if not is_staged(backbone):
                strides = [PLAIN_STRIDE] * NUM_LEVELS
            self.head: nn.Module = LightHead(levels, strides, width, count, norm, dropout)
        else:
            kind = UperHead if parts["head"] == "upernet" else SemanticFpnHead
            self.head = kind(levels, width, count, norm, dropout)
        self.aux_head = AuxHead(levels[AUX_LEVEL], count, norm, dropout) if parts["aux"] else None
        self.facts = self.state_facts(
            KIND, f"{facts.architecture['name']} with {parts['head']}", {**parts}, origin,
            num_classes=count, has_maps=True,
        )  # fmt: skip

    def read_maps(self, features: Features, taps: Sequence[Tap]) -> dict[Tap, Tensor]:
        """See ``Headed``."""
        maps = self.neck(self.token_maps(features))  # from the finest to the coarsest
        kinds = {tap.kind for tap in taps}
        found = {tap: maps[tap.block] for tap in taps if tap.kind == "pyramid"}
        if "logits" in kinds:
            logits = self.head(maps)
            found |= {tap: logits for tap in taps if tap.kind == "logits"}
        if "aux_logits" in kinds:
            assert self.aux_head is not None
            logits = self.aux_head(maps[AUX_LEVEL])
            found |= {tap: logits for tap in taps if tap.kind == "aux_logits"}
        return found


def rebuild_segmenter(
    architecture: dict[str, Any], origin: dict[str, Any] | None = None
) -> Segmenter:
    """A segmenter from ``facts.architecture`` with fresh weights.

    Draws from torch's global generator. Raises UserError as ``build_encoder``, and for parts that
    are none.
    """
    name = str(architecture.get("name"))
    parts: Parts = fit(architecture["kwargs"], Parts, f"The architecture of {name[:64]}")
    backbone = build_encoder(parts["backbone"], origin)
    if tuple(parts["img_size"]) != backbone.facts.img_size or backbone.facts.num_classes:
        raise UserError(
            f"{name[:64]} states another image size than its backbone, or one with a classifier; "
            "get the file again that says so."
        )
    return Segmenter(backbone, parts, origin or {})


def is_staged(encoder: TimmEncoder) -> bool:
    """Whether its blocks have several scales."""
    return len(set(encoder.facts.block_strides)) > 1


def has_wide_end(encoder: TimmEncoder) -> bool:
    """Whether the tokens get wider after the last block: of TinyMIM*."""
    return encoder.facts.output_dim != encoder.facts.embed_dim
