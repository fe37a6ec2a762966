"""Sparse soft labels against dense ones: the loss's time and memory, a record's bytes and fidelity.

    python -m benchmarks soft_labels [--data FOLDER] [--repeats 5]

Loss: forward and backward at batch 256, 21,841 classes, K = 100, float32, against a target as wide
as there are classes and timm's SoftTargetCrossEntropy (``dense``), which includes building it. At
the peak that holds four arrays as large as the logits: target, its negative, log-softmax and
product; the sparse one holds the gradient, and a few of K columns.
Records: against the published ones (arXiv 2207.10666), whose probabilities are float16 and whose
remainder is what these leave, at least 1e-7; the extra KL from the dense label, over that of
cutting at K; of peaked labels at three sharpness levels, and of what a real classifier
(EfficientNet-Lite0, see ``experiments/cifar10_tinyvit/efficientnet_lite0.py``) says of the photos,
if it is installed. Bytes: ours with 8 of the key's hash, the published without its key text.
"""

import importlib.util
import io
import statistics
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from PIL import Image
from timm.loss import SoftTargetCrossEntropy
from torch import Tensor

from benchmarks.timing import DEVICE, Run, measure_peak_bytes, median_ratio, take_turns
from limbeck.data.source import Source
from limbeck.data.views import eval_view
from limbeck.ops.label_codes import LabelCodec
from limbeck.ops.soft_labels import sparse_cross_entropies, top_k
from limbeck.records import SoftLabels, Tap

BATCH_SIZE, NUM_CLASSES, K = 256, 21_841, 100
KEY_BYTES = 8
LEVELS = {
    (21_841, 100): {"A": (20.0, 6), "B": (15.0, 8), "C": (11.5, 10)},
    (1000, 10): {"A": (18.5, 4), "B": (13.5, 8), "C": (10.5, 8)},
}
"""(classes, K) -> level -> height and decay of the cluster: of the most certain class the mean
probability is about 0.9, 0.75 and 0.55 (0.65 of 1,000)."""
NUM_LABELS = 200
REAL = "efficientnet_lite_pytorch"


def peaked_logits(num_images: int, num_classes: int, height: float, decay: float) -> Tensor:
    """A Gaussian background, and a decaying cluster of 50 related classes, (num_images, C)."""
    cluster = torch.rand(num_images, num_classes).argsort(dim=1)[:, :50]
    bump = height * torch.exp(-torch.arange(50) / decay) + torch.randn(num_images, 50)
    return torch.randn(num_images, num_classes).scatter_add_(1, cluster, bump)


def dense_target(labels: SoftLabels) -> Tensor:
    """(B, C): the stated probabilities, and the rest spread evenly."""
    num_others = labels.num_classes - labels.classes.shape[1]
    other = labels.rest.clamp(min=0) / max(1, num_others)
    target = other[:, None].repeat(1, labels.num_classes)
    return target.scatter_(1, labels.classes, labels.probs)


def published(labels: SoftLabels) -> SoftLabels:
    """What comes back of a published record."""
    probs = labels.probs.half().float()
    return replace(labels, probs=probs, rest=(1 - probs.sum(dim=1)).clamp(min=1e-7))


def mean_divergence(target: Tensor, labels: SoftLabels) -> float:
    """Mean KL(target || labels) in float64; recovered probabilities count as at least 1e-12."""
    exact = replace(labels, probs=labels.probs.double(), rest=labels.rest.double())
    recovered = dense_target(exact).clamp(min=1e-12)
    return float(torch.special.xlogy(target, target / recovered).sum(dim=1).mean())


def build_losses() -> dict[str, Run]:
    """By kind: forward and backward of the loss."""
    logits = torch.randn(BATCH_SIZE, NUM_CLASSES, device=DEVICE, requires_grad=True)
    labels = top_k(3 * torch.randn(BATCH_SIZE, NUM_CLASSES, device=DEVICE), K)
    cross_entropy = SoftTargetCrossEntropy()

    def dense() -> None:
        target = dense_target(labels)  # as in a plain loop: alive until the gradient is there
        cross_entropy(logits, target).backward()
        logits.grad = None

    def sparse() -> None:
        sparse_cross_entropies(logits, labels).mean().backward()
        logits.grad = None

    return {"dense": dense, "sparse": sparse}


def real_logits(source: Source) -> Tensor:
    """EfficientNet-Lite0's of the photos' centres, (photos, 1000)."""
    from experiments.cifar10_tinyvit.efficientnet_lite0 import build

    teacher, tap = build().eval(), Tap("logits")
    logits = []
    for index in range(len(source)):
        photo = Image.open(io.BytesIO(source.read(index).data)).convert("RGB")
        images = eval_view(np.array(photo), teacher.facts.img_size[0])[None].float() / 255
        with torch.no_grad():
            logits.append(teacher(images, None, (tap,)).taps[tap])
    return torch.cat(logits)


def cases(source: Source) -> Iterator[tuple[str, Tensor, int]]:
    """(what, logits, K): peaked ones by level, and real ones if there are."""
    for (num_classes, k), levels in LEVELS.items():
        for level, shape in levels.items():
            yield level, peaked_logits(NUM_LABELS, num_classes, *shape), k
    if importlib.util.find_spec(REAL) is not None:
        logits = real_logits(source)
        yield "real", logits, 10
        yield "real", logits, 100


def main(source: Source, repeats: int) -> None:
    """Print two Markdown tables; the targets are half the time and a quarter of the memory (but
    for the arrays of K columns), and records of at most 356 bytes (K = 100) and 44 (K = 10) no
    further from the dense label."""
    runs = build_losses()
    seconds = take_turns(runs, repeats)
    peak = {name: measure_peak_bytes(run) / 2**20 for name, run in runs.items()}
    median = {name: 1e3 * statistics.median(values) for name, values in seconds.items()}
    print("| loss | ms | peak, MiB |\n|---|---|---|")
    for name in runs:
        print(f"| {name} | {median[name]:.1f} | {peak[name]:.1f} |")
    ratio = median_ratio(seconds["dense"], seconds["sparse"])
    print(f"| dense / sparse | {ratio:.2f} | {peak['dense'] / peak['sparse']:.2f} |\n")
    print("| labels | classes | K | bytes, ours | published | extra KL, ours | published |")
    print("|---|---|---|---|---|---|---|")
    torch.manual_seed(0)
    for what, logits, k in cases(source):
        labels, target = top_k(logits, k), logits.double().softmax(dim=1)
        codec = LabelCodec(k, labels.num_classes)
        cut = mean_divergence(target, labels)
        ours = mean_divergence(target, codec.decode(codec.encode(labels))) - cut
        theirs = mean_divergence(target, published(labels)) - cut
        print(
            f"| {what} | {labels.num_classes:,} | {k} | {codec.num_bytes + KEY_BYTES} | "
            f"{4 + 4 * k} | {ours:.1e} | {theirs:.1e} |"
        )
