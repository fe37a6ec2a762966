"""Segmenters at 512 px, 150 classes: training, inference, and memory for a photo of 4,000 px.

    python -m benchmarks segment [--repeats 5]

Generated images and random weights. Training is one micro-batch of two crops: forward, loss,
backward, AdamW. Inference is one image in fp32, to the logits before they are resized. The
reference (``reference.py``) is UPerNet on the published ViT with our weights and explicit
attention; DeepLabV3 on MobileNetV3-Large is torchvision's. Each peak of memory is that of a process
of its own.
"""

import resource
import statistics
import sys
from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.queues import Queue

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.segmentation import deeplabv3_mobilenet_v3_large

from benchmarks.networks import LR, Step, step_of
from benchmarks.reference import plain_segmenter
from benchmarks.timing import DEVICE, measure_seconds, median_ratio, take_turns
from limbeck.engine.machine import choose
from limbeck.engine.optim import build_optimizer, set_lr
from limbeck.engine.options import OptimOptions
from limbeck.evaluation.options import MapOptions
from limbeck.evaluation.sliding import predict_map
from limbeck.methods.teacher import DTYPES, Precision, autocast
from limbeck.models.attention import choose_attention
from limbeck.models.build import build_student
from limbeck.models.dense.build import build_segmenter
from limbeck.models.dense.segmenter import Segmenter
from limbeck.models.options import SegmenterOptions, StudentOptions
from limbeck.records import IGNORE, Batch
from limbeck.tasks.segmentation import AUX_WEIGHT, LOGITS, Segmentation

IMG_SIZE, BATCH_SIZE, NUM_CLASSES = 512, 2, 150
LARGE = (3000, 4000)
PLAIN, STAGED = StudentOptions(name="vit_tiny"), StudentOptions(name="tiny_vit_5m")
UPERNET = SegmenterOptions(head="upernet")
BARE = SegmenterOptions(head="upernet", rel_pos=False)
FPN = SegmenterOptions(head="semantic-fpn", rel_pos=False)
LIGHT = SegmenterOptions()

NETWORKS: dict[str, tuple[StudentOptions, SegmenterOptions]] = {
    "ViT-Tiny, UPerNet as published": (PLAIN, UPERNET),
    "ViT-Tiny, UPerNet": (PLAIN, BARE),
    "ViT-Tiny, Semantic FPN": (PLAIN, FPN),
    "ViT-Tiny, light": (PLAIN, LIGHT),
    "TinyViT-5M, UPerNet": (STAGED, BARE),
    "TinyViT-5M, Semantic FPN": (STAGED, FPN),
    "TinyViT-5M, light": (STAGED, LIGHT),
}
"""As published the ViT has relative positions and layer scale; the others have what the light head
reads."""
TRAINED = ("ViT-Tiny, UPerNet as published", "ViT-Tiny, light")
REFERENCE = "reference: ViT-Tiny, UPerNet as published"
DEEPLAB = "torchvision's DeepLabV3, MobileNetV3-Large"
TARGET = 3.0

SHOWN = {
    "fitted into 512 by 2048 (default)": MapOptions(),
    "windows of its own size": MapOptions(resize="none"),
    "whole": MapOptions(resize="none", mode="whole"),
}
MEASURED = "TinyViT-5M, light"


def build(name: str) -> Segmenter:
    """One of ``NETWORKS``, with the same weights at every call."""
    student, options = NETWORKS[name]
    backbone = build_student(student, seed=0)
    size = (IMG_SIZE, IMG_SIZE)
    return build_segmenter(backbone, NUM_CLASSES, options, 0, size).to(DEVICE)


def build_deeplab() -> nn.Module:
    return deeplabv3_mobilenet_v3_large(
        weights=None, weights_backbone=None, num_classes=NUM_CLASSES
    ).to(DEVICE)


def draw_batch() -> Batch:
    """Random crops and label maps, of which a tenth is ignored."""
    generator = torch.Generator().manual_seed(0)
    shape = (BATCH_SIZE, IMG_SIZE, IMG_SIZE)
    labels = torch.randint(NUM_CLASSES, shape, generator=generator)
    labels[torch.rand(shape, generator=generator) < 0.1] = IGNORE
    images = torch.rand(BATCH_SIZE, 3, IMG_SIZE, IMG_SIZE, generator=generator).to(DEVICE)
    keys, seeds = tuple(map(str, range(BATCH_SIZE))), torch.arange(BATCH_SIZE)
    return Batch(images, images, labels.to(DEVICE), keys, seeds)


def plain_pass(network: Segmenter, images: Tensor) -> tuple[Tensor, Tensor]:
    """The reference's logits and its auxiliary head's."""
    backbone = network.backbone
    return plain_segmenter(network, (images - backbone.mean) / backbone.std)


def plain_loss(logits: Tensor, labels: Tensor) -> Tensor:
    wide = F.interpolate(logits.float(), labels.shape[-2:], mode="bilinear", align_corners=False)
    return F.cross_entropy(wide, labels, ignore_index=IGNORE)


def build_training(name: str, precision: Precision) -> Step:
    """One optimiser step of a network of ours, of the reference or of torchvision's."""
    batch = draw_batch()
    assert batch.labels is not None
    images, labels = batch.images, batch.labels
    network: nn.Module
    if name in NETWORKS:
        network = build(name)
        choose_attention(network.backbone, DEVICE, DTYPES[precision])
        task = Segmentation(network).train()
        optimizer = build_optimizer(task, OptimOptions())
        set_lr(optimizer, LR)

        def compute() -> Tensor:
            return task(batch).total
    else:
        if name == REFERENCE:
            network = build(TRAINED[0]).train()

            def compute() -> Tensor:
                logits, aux_logits = plain_pass(network, images)
                return plain_loss(logits, labels) + AUX_WEIGHT * plain_loss(aux_logits, labels)
        else:
            network = build_deeplab().train()

            def compute() -> Tensor:
                return plain_loss(network(images)["out"], labels)

        betas, weight_decay = OptimOptions().betas, OptimOptions().weight_decay
        optimizer = torch.optim.AdamW(network.parameters(), LR, betas, weight_decay=weight_decay)

    def loss() -> Tensor:
        with autocast(DEVICE, precision):
            return compute()

    return step_of(loss, optimizer, precision)


def build_inference(name: str) -> Callable[[], object]:
    """The logits of one image, without gradients."""
    images = draw_batch().images[:1]
    if name == DEEPLAB:
        deeplab = build_deeplab().eval()
        return torch.no_grad()(lambda: deeplab.classifier(deeplab.backbone(images)["out"]))
    network = build(TRAINED[0] if name == REFERENCE else name).eval()
    if name == REFERENCE:
        return torch.no_grad()(lambda: plain_pass(network, images)[0])
    return torch.no_grad()(lambda: network(images, None, (LOGITS,)))


def check_agreement() -> None:
    """Stop unless ours and the reference have one loss: float32, no dropout, to 1e-4."""
    network, batch = build(TRAINED[0]).eval(), draw_batch()
    assert batch.labels is not None
    with torch.no_grad():
        ours = Segmentation(network).eval()(batch).total.item()
        logits, aux_logits = plain_pass(network, batch.images)
        plain = plain_loss(logits, batch.labels) + AUX_WEIGHT * plain_loss(aux_logits, batch.labels)
    if not abs(ours / plain.item() - 1) < 1e-4:
        sys.exit(f"our loss is {ours} and the reference's {plain}: their times do not compare")


def measure_prediction(name: str, results: "Queue[tuple[float, float]]") -> None:
    """Put seconds and MiB of the prediction of one large photo, beyond what was held before."""
    network = build(MEASURED).eval()
    generator = torch.Generator().manual_seed(0)
    photo = torch.randint(256, (3, *LARGE), generator=generator, dtype=torch.uint8)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds = measure_seconds(lambda: predict_map(network, photo, SHOWN[name]))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    results.put((seconds, (peak - before) / 1024))


def main(repeats: int) -> None:
    """Print three Markdown tables."""
    check_agreement()
    print_inference(repeats)
    print_training(repeats)
    print_memory()


def print_memory() -> None:
    # A process that was spawned would begin with this one's peak.
    context = get_context("forkserver")
    whole = NUM_CLASSES * LARGE[0] * LARGE[1] * 4 / 2**20
    print(f"\n{LARGE[1]} x {LARGE[0]} px; all logits at that size would be {whole:.0f} MiB.\n")
    print(f"| {MEASURED}: shown | peak, MiB | s |")
    print("|---|---|---|")
    for name in SHOWN:
        results = context.Queue()
        process = context.Process(target=measure_prediction, args=(name, results))
        process.start()
        seconds, peak = results.get()
        process.join()
        print(f"| {name} | {peak:.0f} | {seconds:.1f} |", flush=True)


def print_inference(repeats: int) -> None:
    names = (REFERENCE, *NETWORKS, DEEPLAB)
    seconds = take_turns({name: build_inference(name) for name in names}, repeats)
    print("\n| inference, fp32 | images/s | times the reference | times UPerNet | target |")
    print("|---|---|---|---|---|")
    for name, values in seconds.items():
        backbone, _, head = name.partition(", ")
        uper = seconds.get(f"{backbone}, UPerNet", values)
        is_light = head == "light"
        print(
            f"| {name} | {1 / statistics.median(values):.2f} | "
            f"{median_ratio(seconds[REFERENCE], values):.2f} | "
            f"{f'{median_ratio(uper, values):.2f}' if uper is not values else ''} | "
            f"{TARGET if is_light else ''} |",
            flush=True,
        )


def print_training(repeats: int) -> None:
    """In what auto is; the reference in fp32 as well, as one writes it first."""
    precision = choose(DEVICE).precision
    rows = [(name, precision) for name in (REFERENCE, *TRAINED, DEEPLAB)]
    rows = list(dict.fromkeys([(REFERENCE, "fp32"), *rows]))
    seconds = take_turns({row: build_training(*row) for row in rows}, repeats)
    print("\n| training | precision | images/s | times the reference | times it in fp32 |")
    print("|---|---|---|---|---|")
    for (name, own), values in seconds.items():
        same, full = seconds[REFERENCE, precision], seconds[REFERENCE, "fp32"]
        print(
            f"| {name} | {own} | {BATCH_SIZE / statistics.median(values):.2f} | "
            f"{median_ratio(same, values):.2f} | {median_ratio(full, values):.2f} |"
        )
