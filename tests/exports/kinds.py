"""Small networks of every kind that is exported, and what a file of one answers."""

import torch

from limbeck.exports.formats import FORMATS, module_of
from limbeck.exports.gate import TOLERANCES, Comparison
from limbeck.exports.graph import Graph
from limbeck.models.dense.build import build_segmenter
from limbeck.models.dense.build_detector import build_detector
from limbeck.models.options import DetectorOptions, SegmenterOptions
from tests.models.families import small_encoder, small_images

BACKBONES = (
    *("augreg", "mae", "mean-pooled", "deit-distilled", "distilled-last", "cls-distilled"),
    *("tinymim-star", "tinymim-star-rel-pos", "beit-qkv-bias", "eva02-fused-qkv", "dinov3"),
    *("hiera", "hiera-pooled", "swin", "tiny-vit", "tiny-vit-padded"),
)
SEGMENTERS = (
    *("augreg+light", "augreg+upernet", "augreg+semantic-fpn", "tinymim-star+light"),
    *("hiera-pooled+light", "swin+upernet", "tiny-vit+light"),
)
DETECTORS = ("mae+boxes", "hiera+boxes", "tiny-vit+boxes")
KINDS = (*BACKBONES, *SEGMENTERS, *DETECTORS)
NOT_OF_TIMM = {
    *("distilled-last", "cls-distilled", "tinymim-star", "tinymim-star-rel-pos", "beit-qkv-bias"),
    *SEGMENTERS, *DETECTORS,
}  # fmt: skip


def small(kind):
    family, _, head = kind.partition("+")
    encoder = small_encoder(family)
    if not head:
        return encoder
    if head == "boxes":  # three scales need images twice as large
        return build_detector(encoder, 4, DetectorOptions(width=16), 0, (64, 64)).eval()
    return build_segmenter(encoder, 4, SegmenterOptions(head=head), 0).eval()


def compared(encoder, to, precision, folder, **ends):
    """The comparison of a file, as it is loaded, with PyTorch, and what its JSON would say."""
    kind = FORMATS[to].inputs[-1 if to == "timm" else 1]
    graph = Graph(encoder, kind, **ends)
    file = folder / f"network{FORMATS[to].suffix}"
    said = module_of(to).write(graph, file, precision)
    run = module_of(to).load(file, said, 1)
    found = Comparison()
    for size in graph.sizes:
        images = torch.nn.functional.interpolate(small_images(3), size).mul(255).round() / 255
        expected = Graph(encoder, **ends).answer(images)
        found.add([f"{number} {size}" for number in range(3)], expected, run(graph.feed(images)))
    assert found.failures(TOLERANCES[precision]) == []
    return found, said
