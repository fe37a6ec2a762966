"""Mask R-CNN and Cascade R-CNN (arXiv 1712.00726) on any encoder: the detector of the papers.

ViTDet's (arXiv 2203.16527), with which G2SD and MAE-Lite are measured. Neck and heads cost five to
ten times a tiny encoder; the light detector is for speed.
"""

from collections.abc import Sequence
from typing import Annotated, Any, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn
from torchvision.ops import batched_nms
from typing_extensions import TypedDict

from limbeck.documents import fit
from limbeck.errors import UserError
from limbeck.models.dense.detector import Detector
from limbeck.models.dense.rcnn.backbone import encoder_of
from limbeck.models.dense.rcnn.boxes import clip, decode, grid_anchors
from limbeck.models.dense.rcnn.pyramid import NUM_LEVELS, SimplePyramid, StagePyramid
from limbeck.models.dense.rcnn.regions import (
    BOX_SIDE,
    MASK_SIDE,
    BoxHead,
    MaskHead,
    Regions,
    assign_regions,
    box_losses,
    joined,
    mask_loss,
    pool,
    sample,
)
from limbeck.models.dense.rcnn.rpn import RegionProposals, in_rows, proposal_losses, propose
from limbeck.models.options import DetectorHead, DetectorOptions
from limbeck.models.timm_encoder import TimmEncoder
from limbeck.models.vit import build_encoder
from limbeck.records import Detections, Features, Losses, Objects, Tap

WIDTH = 256
LEAST_SCORE, NMS, MOST = 0.05, 0.5, 100
__all__ = ["RcnnDetector", "build", "encoder_of", "parts_of", "rebuild"]
KINDS = ("pyramid", "objectness", "box_deltas")

_Count = Annotated[int, Field(ge=1, le=2**16)]


class Stage(NamedTuple):
    """What counts as an object, by overlap, and the weights of ``encode``."""

    least: float
    weights: tuple[float, float]


STAGES = (Stage(0.5, (10, 5)), Stage(0.6, (20, 10)), Stage(0.7, (30, 15)))
"""Of a cascade; without there is the first alone."""


class RcnnParts(TypedDict):
    """What is put on the encoder, as an architecture states it."""

    img_size: Annotated[list[_Count], Field(min_length=2, max_length=2)]
    num_classes: _Count
    backbone: dict[str, Any]
    head: DetectorHead
    width: _Count
    cascade: bool
    masks: bool


class RcnnDetector(Detector):
    """A backbone, a pyramid of five levels, region proposals, and heads for what is in regions.

    Tap("objectness", level) are logits of the three anchors of a place, Tap("box_deltas", level)
    move them.
    """

    def __init__(self, backbone: TimmEncoder, parts: RcnnParts, origin: dict[str, Any]) -> None:
        super().__init__(backbone)
        facts, width, count = backbone.facts, parts["width"], parts["num_classes"]
        blocks = read_blocks(backbone)
        self.reads = tuple(Tap("tokens", block) for block in blocks)
        self.drop_end()
        if len(blocks) == 1:
            self.pyramid: nn.Module = SimplePyramid(facts.embed_dim, width)
            first = facts.patch_size // 4
        else:
            self.pyramid = StagePyramid([facts.tap_dim(tap) for tap in self.reads], width)
            first = facts.tap_stride(self.reads[0])
        strides = tuple(first * 2**level for level in range(NUM_LEVELS))
        self.rpn = RegionProposals(width)
        self.stages = STAGES if parts["cascade"] else STAGES[:1]
        self.boxes = nn.ModuleList(
            BoxHead(width, count, is_agnostic=parts["cascade"]) for _ in self.stages
        )
        self.masks = MaskHead(width, count) if parts["masks"] else None
        self.has_masks = parts["masks"]
        self.loss_taps = tuple(Tap(kind, k) for kind in KINDS for k in range(NUM_LEVELS))  # type: ignore[arg-type]
        self.own_kinds = KINDS
        self.facts = self.state_facts(
            "detector", f"{facts.architecture['name']} with rcnn", {**parts}, origin,
            num_classes=count, has_boxes=True, level_strides=strides,
            level_dims=(width,) * NUM_LEVELS,
        )  # fmt: skip

    def read_maps(self, features: Features, taps: Sequence[Tap]) -> dict[Tap, Tensor]:
        """See ``Headed``."""
        levels = self.pyramid(self.token_maps(features))
        found, said = {}, {}
        for tap in taps:
            level = tap.block % NUM_LEVELS
            if tap.kind == "pyramid":
                found[tap] = levels[level]
                continue
            if level not in said:
                said[level] = self.rpn(levels[level])
            found[tap] = said[level][KINDS.index(tap.kind) - 1]
        return found

    def losses(self, features: Features, objects: Sequence[Objects], seeds: Tensor) -> Losses:
        """See ``Detector``: "rpn_objectness", "rpn_boxes", "class", "box" (of a cascade "class_2"
        and so on too) and "mask"."""
        generators = [torch.Generator().manual_seed(int(seed)) for seed in seeds]
        levels, logits, deltas, anchors = self._proposing(features.taps)
        of_logits, of_deltas = proposal_losses(
            torch.cat(logits, 1), torch.cat(deltas, 1), torch.cat(anchors), objects, generators
        )
        parts = {"rpn_objectness": of_logits, "rpn_boxes": of_deltas}
        proposals = [
            torch.cat((
                propose([e[k] for e in logits], [e[k] for e in deltas], anchors, truth.size,
                        is_training=True),
                truth.boxes.to(anchors[0].dtype),
            ))
            for k, truth in enumerate(objects)
        ]  # fmt: skip
        count = self.facts.num_classes
        found = assign_regions(proposals, objects, count, self.stages[0].least)
        drawn = [sample(e, count, own) for e, own in zip(found, generators, strict=True)]
        regions = joined(drawn)
        parts |= self._box_losses(levels, regions, objects)
        if self.masks is not None:
            of_objects = regions.at(regions.classes < count)
            pooled = pool(
                levels, self.facts.level_strides, of_objects.boxes, of_objects.images, MASK_SIDE
            )
            own = self.masks(pooled, of_objects.classes)
            parts["mask"] = mask_loss(own, of_objects, objects)
        total = torch.stack(list(parts.values())).sum()
        return Losses(total, {name: value.detach() for name, value in parts.items()})

    def _proposing(
        self, taps: dict[Tap, Tensor]
    ) -> tuple[list[Tensor], list[Tensor], list[Tensor], list[Tensor]]:
        """Of each level its map, logits (B, n), deltas (B, n, 4) and anchors (n, 4)."""
        levels = [taps[Tap("pyramid", k)] for k in range(NUM_LEVELS)]
        logits, deltas, anchors = [], [], []
        for k, stride in enumerate(self.facts.level_strides):
            own, moves = in_rows(taps[Tap("objectness", k)], taps[Tap("box_deltas", k)])
            logits.append(own)
            deltas.append(moves)
            anchors.append(grid_anchors(levels[k].shape[-2:], stride, moves))
        return levels, logits, deltas, anchors

    def _box_losses(
        self, levels: Sequence[Tensor], regions: Regions, objects: Sequence[Objects]
    ) -> dict[str, Tensor]:
        """Of each stage; a later one learns of the boxes that the one before gave."""
        parts, count = {}, self.facts.num_classes
        for index, (stage, head) in enumerate(zip(self.stages, self.boxes, strict=True)):
            if index:
                boxes = self._moved(deltas, regions, objects, self.stages[index - 1])  # noqa: F821
                regions = joined(assign_regions(boxes, objects, count, stage.least))
            pooled = pool(levels, self.facts.level_strides, regions.boxes, regions.images, BOX_SIDE)
            logits, deltas = head(pooled)
            suffix = f"_{index + 1}" if index else ""
            parts[f"class{suffix}"], parts[f"box{suffix}"] = box_losses(
                logits, deltas, regions, stage.weights, self.class_weights
            )
        return parts

    @torch.no_grad()
    def _moved(
        self, deltas: Tensor, regions: Regions, objects: Sequence[Objects], stage: Stage
    ) -> list[Tensor]:
        """Each image's boxes as a stage of a cascade gives them, without empty ones."""
        boxes = decode(deltas[:, 0], regions.boxes, stage.weights)
        clipped = [clip(boxes[regions.images == k], truth.size) for k, truth in enumerate(objects)]
        return [each[(each[:, 2:] > each[:, :2]).all(1)] for each in clipped]

    def answers(self, images: Tensor) -> tuple[Tensor, ...]:
        """See ``Detector``: what ``detect`` finds in whole images, filled up with scores of 0."""
        found = self.detect(images, [self.facts.img_size] * len(images))
        boxes, scores = images.new_zeros(len(images), MOST, 4), images.new_zeros(len(images), MOST)
        classes = torch.zeros_like(scores, dtype=torch.int64)
        for index, each in enumerate(found):
            count = len(each.scores)
            boxes[index, :count], scores[index, :count] = each.boxes, each.scores
            classes[index, :count] = each.classes
        return boxes, scores, classes

    @torch.no_grad()
    def detect(self, images: Tensor, sizes: Sequence[tuple[int, int]]) -> list[Detections]:
        """See ``Detector``."""
        levels, logits, deltas, anchors = self._proposing(self(images, None, self.loss_taps).taps)
        found = []
        for k, size in enumerate(sizes):
            own = [level[k : k + 1] for level in levels]
            boxes = propose(
                [e[k] for e in logits], [e[k] for e in deltas], anchors, size, is_training=False
            )
            found.append(self._classified(own, boxes, size))
        return found

    def _classified(
        self, levels: Sequence[Tensor], boxes: Tensor, size: tuple[int, int]
    ) -> Detections:
        """What is in the proposals (n, 4) of one image."""
        strides, probabilities = self.facts.level_strides, boxes.new_zeros(())
        images = torch.zeros(len(boxes), dtype=torch.int64, device=boxes.device)
        for index, (stage, head) in enumerate(zip(self.stages, self.boxes, strict=True)):
            boxes = clip(boxes[:, 0], size) if index else boxes
            logits, deltas = head(pool(levels, strides, boxes, images, BOX_SIDE))
            probabilities = probabilities + logits.softmax(1) / len(self.stages)
            boxes = decode(deltas, boxes, stage.weights)  # [n, C or 1, 4]
        boxes = clip(boxes, size)
        is_box = (boxes[..., 2:] > boxes[..., :2]).all(-1)
        chosen = (probabilities[:, :-1] > LEAST_SCORE) & is_box
        rows, classes = chosen.nonzero(as_tuple=True)
        scores = probabilities[rows, classes]
        boxes = boxes[rows, classes if boxes.shape[1] > 1 else torch.zeros_like(classes)]
        kept = batched_nms(boxes, scores, classes, NMS)[:MOST]
        boxes, scores, classes = boxes[kept], scores[kept], classes[kept]
        masks = None
        if self.masks is not None:
            pooled = pool(levels, strides, boxes, images.new_zeros(len(boxes)), MASK_SIDE)
            masks = self.masks(pooled, classes).sigmoid()
        return Detections(boxes, scores, classes, masks)


def read_blocks(encoder: TimmEncoder) -> list[int]:
    """The last block of a plain ViT, or that of each scale.

    Raises UserError for more than four scales, and for images or patches that do not divide.
    """
    facts, depth = encoder.facts, encoder.facts.depth
    strides, name = facts.block_strides, facts.architecture["name"]
    ends = [k for k in range(depth) if k == depth - 1 or strides[k] != strides[k + 1]]
    if len(ends) >= NUM_LEVELS:
        raise UserError(f"{name} has {len(ends)} scales, and rcnn reads four; choose another.")
    if len(ends) == 1 and facts.patch_size % 4:
        raise UserError(
            f"{name} has patches of {facts.patch_size} pixels, and rcnn needs a multiple of 4; set "
            "--patch-size, or choose --head light."
        )
    multiple = strides[-1] * (2 if len(ends) == 1 else 1)
    if any(side % multiple for side in facts.img_size):
        raise UserError(
            f"rcnn on {name} takes images whose sides are multiples of {multiple} pixels, not "
            f"{facts.img_size[1]}; set --img-size."
        )
    return ends


def parts_of(encoder: TimmEncoder, options: DetectorOptions) -> dict[str, Any]:
    """What the options put on an encoder."""
    read_blocks(encoder)
    return {"width": options.width or WIDTH, "cascade": options.cascade}


def build(backbone: TimmEncoder, parts: RcnnParts, origin: dict[str, Any]) -> RcnnDetector:
    """With fresh pyramid and heads."""
    return RcnnDetector(backbone, parts, origin)


def rebuild(architecture: dict[str, Any], origin: dict[str, Any] | None = None) -> RcnnDetector:
    """From ``facts.architecture``; see ``rebuild_detector``."""
    name = str(architecture.get("name"))[:64]
    parts: RcnnParts = fit(architecture["kwargs"], RcnnParts, f"The architecture of {name}")
    return RcnnDetector(build_encoder(parts["backbone"], origin), parts, origin or {})
