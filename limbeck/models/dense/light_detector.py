"""A detector that is small and fast: every place of three maps says what lies there, and how large.

No anchors, and no suppression of doubles: beside the heads that learn from many places an object,
which a distillation compares and which stay behind in training, are heads that learn from one
(consistent dual assignments, arXiv 2405.14458). Classes learn the quality of their place's box
(task alignment, TOOD, arXiv 2108.07755), boxes by generalised IoU (arXiv 1902.09630). Masks are
sums of a few maps that all objects share, with signs and weights of an object's own (YOLACT, arXiv
1904.02689).
"""

from collections.abc import Sequence
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn
from torchvision.ops import generalized_box_iou_loss, roi_align
from typing_extensions import TypedDict

from limbeck.documents import fit
from limbeck.errors import UserError
from limbeck.models.dense.assignment import Assigned, assign
from limbeck.models.dense.build import without_classifier
from limbeck.models.dense.detector import KIND, Detector, check_finite
from limbeck.models.dense.light_pyramid import LightPyramid, Separable
from limbeck.models.dense.units import Unit
from limbeck.models.options import DenseNorm, DetectorHead, DetectorOptions
from limbeck.models.timm_encoder import TimmEncoder
from limbeck.models.vit import build_encoder
from limbeck.ops.ranks import mean_over_ranks
from limbeck.records import Detections, Features, Losses, Objects, Tap

WIDTH, NUM_MAPS = 96, 3
MANY = 10  # places an object, TOOD's and that of most others
BOX_WEIGHT = 2.0  # TOOD's
MOST = 100  # answers an image, as COCO scores them
LEAST_SCORE = 1e-3
PRIOR = -4.6  # a logit of 0.01: most places see nothing (focal loss, arXiv 1708.02002)
START = 2.5  # cells from a place to the sides of its first box
NUM_SHARED = 16
MASK_SIDE = 28
MASK_OBJECTS = 32  # an image whose masks are learnt at a time

_Count = Annotated[int, Field(ge=1, le=2**16)]


class LightParts(TypedDict):
    """What is put on the encoder, as an architecture states it; ``blocks`` are those read."""

    img_size: Annotated[list[_Count], Field(min_length=2, max_length=2)]
    num_classes: _Count
    backbone: dict[str, Any]
    blocks: Annotated[list[int], Field(min_length=1, max_length=3)]
    head: DetectorHead
    width: _Count
    norm: DenseNorm
    masks: bool


class _Places(nn.Module):
    """What the places of one map say: logits of classes, and a box."""

    def __init__(self, width: int, num_classes: int, norm: DenseNorm, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.class_stem = nn.Sequential(Separable(width, norm), Unit(width, width, 1, norm))
        self.box_stem = nn.Sequential(Separable(width, norm), Unit(width, width, 1, norm))
        self.classes = nn.Conv2d(width, num_classes, 1)
        self.sides = nn.Conv2d(width, 4, 1)
        for conv, bias in ((self.classes, PRIOR), (self.sides, START)):
            nn.init.normal_(conv.weight, std=0.01)
            nn.init.constant_(conv.bias, bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits (B, C, h, w), distances (B, 4, h, w) in pixels, and what the latter are read of
        (B, D, h, w)."""
        of_classes, of_boxes = self.class_stem(x), self.box_stem(x)
        with torch.autocast(x.device.type, enabled=False):  # in bfloat16 the likeliest may tie
            logits = self.classes(of_classes.to(self.classes.weight.dtype))
            sides = F.softplus(self.sides(of_boxes.to(self.sides.weight.dtype))) * self.stride
        return logits, sides, of_boxes


class _Masks(nn.Module):
    """Maps that all objects share, and how much each is of the object of a place."""

    def __init__(self, width: int, norm: DenseNorm, num_levels: int) -> None:
        super().__init__()
        self.shared = nn.Sequential(
            Separable(width, norm), nn.ConvTranspose2d(width, NUM_SHARED, 2, 2)
        )
        self.shares = nn.ModuleList(nn.Conv2d(width, NUM_SHARED, 1) for _ in range(num_levels))

    def of_places(self, read: Sequence[Tensor]) -> Tensor:
        """The shares (B, P, M) of all places, of what their boxes are read of."""
        pairs = zip(self.shares, read, strict=True)
        return torch.cat([conv(x).flatten(2).mT for conv, x in pairs], 1)

    def within(self, shared: Tensor, shares: Tensor, boxes: Tensor, stride: float) -> Tensor:
        """Logits (n, m, m) laid over boxes (n, 4) of one image, of its maps (M, h, w)."""
        maps = torch.einsum("nm,mhw->nhw", shares.float(), shared.float())[:, None]
        return _crops(maps, boxes, 1 / stride)


def _crops(maps: Tensor, boxes: Tensor, scale: float) -> Tensor:
    """Of maps (n, 1, h, w) what lies in a box each: (n, m, m)."""
    turns = torch.arange(len(boxes), device=boxes.device, dtype=boxes.dtype)[:, None]
    return roi_align(maps, torch.cat((turns, boxes), 1), MASK_SIDE, scale, 2, aligned=True)[:, 0]


class LightDetector(Detector):
    """A backbone, a light pyramid, and two sets of heads of places.

    Tap("class_maps", level) and Tap("box_maps", level) are of those that learn from many places,
    and Tap("objectness", level) is their likeliest class.
    """

    def __init__(self, backbone: TimmEncoder, parts: LightParts, origin: dict[str, Any]) -> None:
        super().__init__(backbone)
        self.reads = tuple(Tap("tokens", block) for block in parts["blocks"])
        self.drop_end()
        facts, width, norm = backbone.facts, parts["width"], parts["norm"]
        is_plain = len(set(facts.block_strides)) == 1
        dims = [facts.tap_dim(tap) for tap in self.reads]
        strides = (facts.patch_size // 2, facts.patch_size, facts.patch_size * 2)
        if not is_plain:
            strides = tuple(facts.tap_stride(tap) for tap in self.reads)  # type: ignore[assignment]
        self.pyramid = LightPyramid(dims, width, norm, is_plain=is_plain)
        count = parts["num_classes"]
        self.many = nn.ModuleList(_Places(width, count, norm, stride) for stride in strides)
        self.one = nn.ModuleList(_Places(width, count, norm, stride) for stride in strides)
        self.masks = _Masks(width, norm, len(strides)) if parts["masks"] else None
        levels = range(len(strides))
        self.has_masks = parts["masks"]
        self.loss_taps = tuple(
            Tap(kind, k) for kind in ("pyramid", "class_maps", "box_maps") for k in levels
        )
        self.own_kinds = ("pyramid", "class_maps", "box_maps", "objectness")
        self.facts = self.state_facts(
            KIND, f"{facts.architecture['name']} with light", {**parts}, origin,
            num_classes=count, has_boxes=True, level_strides=strides,
            level_dims=(width,) * len(strides),
        )  # fmt: skip

    def read_maps(self, features: Features, taps: Sequence[Tap]) -> dict[Tap, Tensor]:
        """See ``Headed``."""
        levels = self.pyramid(self.token_maps(features))
        said = {}
        for k in {tap.block % len(levels) for tap in taps if tap.kind != "pyramid"}:
            logits, sides, _ = self.many[k](levels[k])
            objectness = logits.amax(1, keepdim=True)
            said[k] = {"class_maps": logits, "box_maps": sides, "objectness": objectness}
        return {
            tap: levels[tap.block] if tap.kind == "pyramid"
            else said[tap.block % len(levels)][tap.kind]
            for tap in taps
        }  # fmt: skip

    def losses(self, features: Features, objects: Sequence[Objects], seeds: Tensor) -> Losses:
        """See ``Detector``: "class" and "box" of many places, "one_class" and "one_box" of one,
        and "mask". Nothing is drawn."""
        del seeds
        taps = features.taps
        levels = [taps[Tap("pyramid", k)] for k in range(len(self.one))]
        many = [(taps[Tap("class_maps", k)], taps[Tap("box_maps", k)]) for k in range(len(levels))]
        own = [head(level) for head, level in zip(self.one, levels, strict=True)]
        of_many, _ = self._place_losses(many, objects, MANY)
        of_one, found = self._place_losses(own, objects, 1)
        parts = of_many | {f"one_{name}": value for name, value in of_one.items()}
        if self.masks is not None:
            parts["mask"] = self._mask_loss(own, levels[0], objects, found)
        total = torch.stack(list(parts.values())).sum()
        return Losses(total, {name: value.detach() for name, value in parts.items()})

    def _place_losses(
        self, said: Sequence[tuple[Tensor, ...]], objects: Sequence[Objects], count: int
    ) -> tuple[dict[str, Tensor], list[Assigned]]:
        logits, boxes, centres = self._joined(said)
        targets = torch.zeros_like(logits)
        own, truth, found = [], [], []
        for index, wanted in enumerate(objects):
            each = assign(
                logits[index].detach().sigmoid(), boxes[index].detach(), centres,
                wanted.boxes, wanted.classes, count,
            )  # fmt: skip
            targets[index, each.places, wanted.classes[each.objects]] = each.quality
            own.append(boxes[index, each.places])
            truth.append(wanted.boxes[each.objects])
            found.append(each)
        weight = torch.cat([each.quality for each in found])
        whole = mean_over_ranks(weight.sum()).clamp(min=1)
        of_classes = (
            F.binary_cross_entropy_with_logits(logits, targets, self.class_weights, reduction="sum")
            / whole
        )
        apart = generalized_box_iou_loss(torch.cat(own), torch.cat(truth))
        return {"class": of_classes, "box": BOX_WEIGHT * (weight * apart).sum() / whole}, found

    def _mask_loss(
        self,
        said: Sequence[tuple[Tensor, ...]],
        finest: Tensor,
        objects: Sequence[Objects],
        found: Sequence[Assigned],
    ) -> Tensor:
        """The mean cross entropy over the grids of all objects, in their true boxes."""
        assert self.masks is not None
        shared = self.masks.shared(finest)
        shares = self.masks.of_places([read for *_, read in said])
        # Also without an object every weight has a gradient, which other processes wait for.
        total, stride = (shared.sum() + shares.sum()) * 0, self.facts.level_strides[0] / 2
        count = total.new_zeros(())
        for index, (wanted, each) in enumerate(zip(objects, found, strict=True)):
            if wanted.masks is None:
                continue
            is_known = wanted.masks.flatten(1).any(1)[each.objects]
            places, which = (v[is_known][:MASK_OBJECTS] for v in (each.places, each.objects))
            boxes = wanted.boxes[which]
            own = self.masks.within(shared[index], shares[index, places], boxes, stride)
            truth = _crops(wanted.masks[which][:, None].float(), boxes, 1.0) >= 0.5
            total = total + F.binary_cross_entropy_with_logits(own, truth.float(), reduction="sum")
            count += truth.numel()
        return total / mean_over_ranks(count).clamp(min=1)

    def _joined(self, said: Sequence[tuple[Tensor, ...]]) -> tuple[Tensor, Tensor, Tensor]:
        """Of all levels together logits (B, P, C), boxes (B, P, 4) and centres (P, 2)."""
        logits, boxes, centres = [], [], []
        for stride, (classes, sides, *_) in zip(self.facts.level_strides, said, strict=True):
            height, width = classes.shape[-2:]
            y, x = (
                (torch.arange(side, device=classes.device) + 0.5) * stride
                for side in (height, width)
            )
            own = torch.stack(torch.meshgrid(x, y, indexing="xy"), -1).flatten(0, 1)  # [h w, 2]
            distances = sides.flatten(2).mT  # [B, h w, 4]
            corners = torch.cat((own - distances[..., :2], own + distances[..., 2:]), -1)
            logits.append(classes.flatten(2).mT)
            boxes.append(corners)
            centres.append(own)
        return torch.cat(logits, 1), torch.cat(boxes, 1), torch.cat(centres)

    def answers(self, images: Tensor) -> tuple[Tensor, ...]:
        """See ``Detector``: the ``MOST`` likeliest; with masks also the shares (B, K, M) of the
        shared maps (B, M, h, w)."""
        asked = tuple(Tap("pyramid", k) for k in range(len(self.one)))
        found = self(images, None, asked).taps
        said = [head(found[tap]) for head, tap in zip(self.one, asked, strict=True)]
        logits, boxes, _ = self._joined(said)
        count = min(MOST, logits.shape[1] * logits.shape[2])
        values, which = logits.flatten(1).topk(count)
        places = which // logits.shape[2]
        chosen = boxes.gather(1, places[..., None].expand(-1, -1, 4))
        answers = (chosen, values.sigmoid(), which % logits.shape[2])
        if self.masks is None:
            return answers
        shares = self.masks.of_places([read for *_, read in said])
        shares = shares.gather(1, places[..., None].expand(-1, -1, shares.shape[2]))
        return (*answers, shares, self.masks.shared(found[asked[0]]))

    @torch.no_grad()
    def detect(self, images: Tensor, sizes: Sequence[tuple[int, int]]) -> list[Detections]:
        """See ``Detector``."""
        all_boxes, all_scores, all_classes, *of_masks = self.answers(images)
        found = []
        for index, size in enumerate(sizes):
            scores, classes = check_finite(all_scores[index]), all_classes[index]
            limits = all_boxes.new_tensor([size[1], size[0], size[1], size[0]])
            boxes = torch.minimum(check_finite(all_boxes[index]).clamp(min=0), limits)
            is_kept = (scores > LEAST_SCORE) & (boxes[:, 2:] > boxes[:, :2]).all(1)
            masks = None
            if self.masks is not None:
                shares, shared = (each[index] for each in of_masks)
                stride = self.facts.level_strides[0] / 2
                logits = self.masks.within(shared, shares[is_kept], boxes[is_kept], stride)
                masks = logits.sigmoid()
            found.append(Detections(boxes[is_kept], scores[is_kept], classes[is_kept], masks))
        return found


encoder_of = without_classifier


def parts_of(encoder: TimmEncoder, options: DetectorOptions) -> dict[str, Any]:
    """What the options put on an encoder: it is read after two thirds of a plain ViT's blocks and
    the last, or at the ends of the last three scales.

    Raises UserError for an encoder of two scales.
    """
    strides, depth = encoder.facts.block_strides, encoder.facts.depth
    blocks = [max(round(depth * 2 / 3), 1) - 1, depth - 1]
    if len(set(strides)) > 1:
        ends = [k for k in range(depth) if k == depth - 1 or strides[k] != strides[k + 1]]
        blocks = ends[-NUM_MAPS:]
        if len(blocks) < NUM_MAPS:
            raise UserError(
                f"{encoder.facts.architecture['name']} has {len(blocks)} scales, and a light "
                "detector reads three; choose another student."
            )
    return {"blocks": blocks, "width": options.width or WIDTH, "norm": options.norm}


build = LightDetector


def rebuild(architecture: dict[str, Any], origin: dict[str, Any] | None = None) -> LightDetector:
    """From ``facts.architecture``; see ``rebuild_detector``."""
    name = str(architecture.get("name"))[:64]
    parts: LightParts = fit(architecture["kwargs"], LightParts, f"The architecture of {name}")
    return LightDetector(build_encoder(parts["backbone"], origin), parts, origin or {})
