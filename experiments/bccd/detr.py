"""Heads of DETR's kind, transformers' RT-DETR-v2 and D-FINE, on the backbone of the light detector.

What the choice of the light head was measured against (rivals.py): as narrow as that head, three
layers of decoder, a hundred queries.
"""

from copy import deepcopy
from types import ModuleType, SimpleNamespace

import torch
from torch import Tensor, nn
from transformers.models.d_fine import configuration_d_fine, modeling_d_fine
from transformers.models.rt_detr_v2 import configuration_rt_detr_v2, modeling_rt_detr_v2

from experiments.bccd.run import KINDS, STUDENT
from limbeck.models.build import build_student
from limbeck.models.dense.build_detector import build_detector
from limbeck.models.options import DetectorOptions, StudentOptions
from limbeck.records import Batch, Detections

SIDE = KINDS["light"].side
HEADS = {
    "RT-DETR-v2 heads": (modeling_rt_detr_v2, configuration_rt_detr_v2, "RTDetrV2"),
    "D-FINE heads": (modeling_d_fine, configuration_d_fine, "DFine"),
}
NUM_QUERIES, WIDTH = 100, 96


class _Scales(nn.Module):
    """The backbone of the light detector as transformers wants one."""

    def __init__(self, seed: int, num_classes: int) -> None:
        super().__init__()
        student = build_student(StudentOptions(name=f"{STUDENT}:img_size={SIDE}"), seed=seed)
        self.detector = build_detector(student, num_classes, DetectorOptions(), seed, (SIDE, SIDE))
        facts = student.facts
        self.channels = [facts.tap_dim(tap) for tap in self.detector.reads]
        for name in ("pyramid", "many", "one"):
            delattr(self.detector, name)

    def forward(self, images: Tensor) -> SimpleNamespace:
        features = self.detector.backbone(images, None, self.detector.reads)
        return SimpleNamespace(feature_maps=self.detector.token_maps(features))


def build(name: str, classes: tuple[str, ...], seed: int) -> nn.Module:
    """A detector of so many classes for images (B, 3, SIDE, SIDE) in 0..1."""
    modeling, configuration, prefix = HEADS[name]
    torch.manual_seed(seed)
    scales = _Scales(seed, len(classes))
    drawn = deepcopy(scales.state_dict())
    config = getattr(configuration, f"{prefix}Config")(
        encoder_in_channels=scales.channels, encoder_hidden_dim=WIDTH, d_model=WIDTH,
        encoder_ffn_dim=256, decoder_ffn_dim=256, encoder_attention_heads=4,
        decoder_attention_heads=4, decoder_layers=3, decoder_in_channels=[WIDTH] * 3,
        num_queries=NUM_QUERIES, num_denoising=50, num_labels=len(classes),
        freeze_backbone_batch_norms=False,
    )  # fmt: skip
    network: nn.Module = _with_backbone(modeling, scales, f"{prefix}ForObjectDetection", config)
    scales.load_state_dict(drawn)  # transformers drew them anew
    return network.train()


def _with_backbone(modeling: ModuleType, scales: nn.Module, name: str, config: object) -> nn.Module:
    before = modeling.load_backbone
    modeling.load_backbone = lambda _: scales
    try:
        made: nn.Module = getattr(modeling, name)(config)
    finally:
        modeling.load_backbone = before
    return made


def loss_of(network: nn.Module, batch: Batch) -> Tensor:
    """Of one batch: their own losses, with denoising."""
    assert batch.objects is not None
    truth = []
    for each in batch.objects:
        low, high = each.boxes[:, :2] / SIDE, each.boxes[:, 2:] / SIDE
        boxes = torch.cat([(low + high) / 2, high - low], 1)
        truth.append({"boxes": boxes.float(), "class_labels": each.classes})
    loss: Tensor = network(pixel_values=batch.images, labels=truth).loss
    return loss


def answers_of(network: nn.Module, images: Tensor) -> list[Detections]:
    """The hundred best pairs of a query and a class, in pixels of the squares."""
    said = network(pixel_values=images)
    found = []
    for logits, boxes in zip(said.logits.sigmoid(), said.pred_boxes, strict=True):
        scores, places = logits.flatten().topk(NUM_QUERIES)
        own = boxes[places // logits.shape[1]] * SIDE
        corners = torch.cat([own[:, :2] - own[:, 2:] / 2, own[:, :2] + own[:, 2:] / 2], 1)
        found.append(Detections(corners, scores, places % logits.shape[1]))
    return found
