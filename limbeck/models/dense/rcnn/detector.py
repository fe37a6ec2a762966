"""Mask R-CNN and Cascade R-CNN (arXiv 1712.00726) on any encoder: the detector of the papers.

ViTDet's (arXiv 2203.16527), with which G2SD and MAE-Lite are measured. Neck and heads cost five to
ten times a tiny encoder; the light detector is for speed.
"""

from collections.abc import Sequence
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn
from torchvision.ops import batched_nms
from typing_extensions import TypedDict

from limbeck.documents import fit
from limbeck.errors import UserError
from limbeck.models.dense.detector import KIND, Detector, check_finite
from limbeck.models.dense.rcnn import regions, rpn
from limbeck.models.dense.rcnn.backbone import encoder_of as encoder_of
from limbeck.models.dense.rcnn.boxes import clip, decode, grid_anchors, has_area
from limbeck.models.dense.rcnn.pyramid import NUM_LEVELS, SimplePyramid, StagePyramid
from limbeck.models.dense.rcnn.regions import BOX_SIDE, MASK_SIDE, BoxHead, MaskHead, Regions
from limbeck.models.options import DetectorHead, DetectorOptions
from limbeck.models.timm_encoder import TimmEncoder
from limbeck.models.vit import build_encoder
from limbeck.records import Detections, Features, Losses, Objects, Tap

WIDTH = 256
LEAST_SCORE, NMS, MOST = 0.05, 0.5, 100
TAP_KINDS = ("pyramid", "objectness", "box_deltas")

_Count = Annotated[int, Field(ge=1, le=2**16)]


STAGES = ((0.5, (10, 5)), (0.6, (20, 10)), (0.7, (30, 15)))
"""Of a cascade: from which overlap on there is an object, and the weights of ``encode``. Without a
cascade there is the first alone."""


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
        self.rpn = rpn.RegionProposals(width)
        stages, cascade = STAGES if parts["cascade"] else STAGES[:1], parts["cascade"]
        heads = (BoxHead(width, count, is_agnostic=cascade) for _ in stages)
        self.boxes = nn.ModuleList(heads)
        self.masks = MaskHead(width, count) if parts["masks"] else None
        self.has_masks = parts["masks"]
        self.loss_taps = tuple(Tap(kind, k) for kind in TAP_KINDS for k in range(NUM_LEVELS))  # type: ignore[arg-type]
        self.own_kinds = TAP_KINDS
        self.facts = self.state_facts(
            KIND, f"{facts.architecture['name']} with rcnn", {**parts}, origin,
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
            found[tap] = said[level][TAP_KINDS.index(tap.kind) - 1]
        return found

    def losses(self, features: Features, objects: Sequence[Objects], seeds: Tensor) -> Losses:
        """See ``Detector``: "rpn_objectness", "rpn_boxes", "class", "box" (of a cascade "class_2"
        and so on too) and "mask"."""
        generators = [torch.Generator().manual_seed(int(seed)) for seed in seeds]
        levels, logits, deltas, anchors = self._proposing(features.taps)
        of_logits, of_deltas = rpn.proposal_losses(
            torch.cat(logits, 1), torch.cat(deltas, 1), torch.cat(anchors), objects, generators
        )
        parts = {"rpn_objectness": of_logits, "rpn_boxes": of_deltas}
        count, least, drawn = self.facts.num_classes, STAGES[0][0], []
        for k, (truth, generator) in enumerate(zip(objects, generators, strict=True)):
            own = ([each[k] for each in logits], [each[k] for each in deltas])
            boxes = rpn.propose(*own, anchors, truth.size, is_training=True)
            boxes = torch.cat((boxes, truth.boxes.to(boxes.dtype)))
            found = regions.assign(boxes, k, truth, count, least)
            drawn.append(regions.sample(found, count, generator))
        sampled = regions.joined(drawn)
        parts |= self._box_losses(levels, sampled, objects)
        if self.masks is not None:
            sampled = sampled.at(sampled.classes < count)
            pooled = regions.pool(levels, self.facts.level_strides, sampled, MASK_SIDE)
            said = self.masks(pooled, sampled.classes)
            parts["mask"] = regions.mask_loss(said, sampled, objects)
        total = torch.stack(list(parts.values())).sum()
        return Losses(total, {name: value.detach() for name, value in parts.items()})

    def _heads(self) -> list[tuple[float, tuple[int, int], nn.Module]]:
        return [(*stage, head) for stage, head in zip(STAGES, self.boxes, strict=False)]

    def _proposing(
        self, taps: dict[Tap, Tensor]
    ) -> tuple[list[Tensor], list[Tensor], list[Tensor], list[Tensor]]:
        """Of each level its map, logits (B, n), deltas (B, n, 4) and anchors (n, 4)."""
        levels = [taps[Tap("pyramid", k)] for k in range(NUM_LEVELS)]
        logits, deltas, anchors = [], [], []
        for k, stride in enumerate(self.facts.level_strides):
            own, moves = rpn.in_rows(taps[Tap("objectness", k)], taps[Tap("box_deltas", k)])
            logits.append(own)
            deltas.append(moves)
            anchors.append(grid_anchors(levels[k].shape[-2:], stride, moves))
        return levels, logits, deltas, anchors

    def _box_losses(
        self, levels: Sequence[Tensor], found: Regions, objects: Sequence[Objects]
    ) -> dict[str, Tensor]:
        """Of each stage; a later one learns of the boxes that the one before gave."""
        parts, facts, moved = {}, self.facts, found.boxes
        for index, (least, weights, head) in enumerate(self._heads()):
            if index:
                each = [clip(moved[found.images == k], e.size) for k, e in enumerate(objects)]
                found = regions.joined(
                    regions.assign(own[has_area(own)], k, truth, facts.num_classes, least)
                    for k, (own, truth) in enumerate(zip(each, objects, strict=True))
                )
            logits, deltas = head(regions.pool(levels, facts.level_strides, found, BOX_SIDE))
            suffix = f"_{index + 1}" if index else ""
            parts[f"class{suffix}"], parts[f"box{suffix}"] = regions.box_losses(
                logits, deltas, found, weights, self.class_weights
            )
            moved = decode(deltas[:, 0].detach(), found.boxes, weights)
        return parts

    def answers(self, images: Tensor) -> tuple[Tensor, ...]:
        """See ``Detector``: what ``detect`` finds in whole images, filled up with zeros."""
        found = self.detect(images, [self.facts.img_size] * len(images))
        columns = zip(*((e.boxes, e.scores, e.classes) for e in found), strict=True)
        return tuple(
            torch.stack([F.pad(v, (*[0] * (2 * v.ndim - 1), MOST - len(v))) for v in column])
            for column in columns
        )

    @torch.no_grad()
    def detect(self, images: Tensor, sizes: Sequence[tuple[int, int]]) -> list[Detections]:
        """See ``Detector``."""
        levels, logits, deltas, anchors = self._proposing(self(images, None, self.loss_taps).taps)
        found = []
        for k, size in enumerate(sizes):
            own, moved = ([check_finite(each[k]) for each in values] for values in (logits, deltas))
            boxes = rpn.propose(own, moved, anchors, size, is_training=False)
            found.append(self._classified([level[k : k + 1] for level in levels], boxes, size))
        return found

    def _classified(
        self, levels: Sequence[Tensor], boxes: Tensor, size: tuple[int, int]
    ) -> Detections:
        """What is in the proposals (n, 4) of one image."""
        strides, probabilities = self.facts.level_strides, boxes.new_zeros(())
        for index, (_, weights, head) in enumerate(self._heads()):
            boxes = clip(boxes[:, 0], size) if index else boxes
            logits, deltas = head(regions.pool(levels, strides, regions.alone(boxes), BOX_SIDE))
            probabilities = probabilities + logits.softmax(1, boxes.dtype) / len(self.boxes)
            boxes = decode(deltas.to(boxes.dtype), boxes, weights)  # [n, C or 1, 4]
        boxes = clip(check_finite(boxes), size).expand(-1, self.facts.num_classes, -1)
        scores = check_finite(probabilities[:, :-1])
        chosen = (scores > LEAST_SCORE) & has_area(boxes)
        boxes, scores, classes = boxes[chosen], scores[chosen], chosen.nonzero()[:, 1]
        kept = batched_nms(boxes, scores, classes, NMS)[:MOST]
        boxes, scores, classes = boxes[kept], scores[kept], classes[kept]
        masks = None
        if self.masks is not None:
            pooled = regions.pool(levels, strides, regions.alone(boxes), MASK_SIDE)
            masks = self.masks(pooled, classes).sigmoid().to(boxes.dtype)
        return Detections(boxes, scores, classes, masks)


def read_blocks(encoder: TimmEncoder) -> list[int]:
    """The last block of a plain ViT, or that of each scale.

    Raises UserError for patches that 4 does not divide.
    """
    facts, depth = encoder.facts, encoder.facts.depth
    strides = facts.block_strides
    ends = [k for k in range(depth) if k == depth - 1 or strides[k] != strides[k + 1]]
    if len(ends) == 1 and facts.patch_size % 4:
        raise UserError(
            f"{facts.architecture['name']} has patches of {facts.patch_size} pixels, and rcnn "
            "needs a multiple of 4; set --patch-size, or choose --head light."
        )
    return ends


def parts_of(encoder: TimmEncoder, options: DetectorOptions) -> dict[str, Any]:
    """What the options put on an encoder."""
    read_blocks(encoder)
    return {"width": options.width or WIDTH, "cascade": options.cascade}


build = RcnnDetector


def rebuild(architecture: dict[str, Any], origin: dict[str, Any] | None = None) -> RcnnDetector:
    """From ``facts.architecture``; see ``rebuild_detector``."""
    name = str(architecture.get("name"))[:64]
    parts: RcnnParts = fit(architecture["kwargs"], RcnnParts, f"The architecture of {name}")
    return RcnnDetector(build_encoder(parts["backbone"], origin), parts, origin or {})
