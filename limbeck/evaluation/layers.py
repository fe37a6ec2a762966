"""One forward pass for all that is measured of a network's layers.

Similarity, attention and probes ask for different inner tensors of the same images: each is an
``Observer`` that names its taps, and the network runs once for all of them, over as many images at
a time as fit into a bounded memory.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from limbeck.errors import NotFiniteError, UserError
from limbeck.evaluation.embed import evaluating
from limbeck.models.encoder import Encoder, EncoderFacts
from limbeck.ops.resize import resize_images
from limbeck.records import HEAD_KINDS, Batch, Features, Tap

# Bytes of taps at a time; one block's scores of 1,025 tokens and 12 heads are 48 MiB.
BUDGET = 2**29


class Observer(ABC):
    """What is measured of one encoder: the taps it needs, and what it makes of them."""

    taps: tuple[Tap, ...]

    @abstractmethod
    def see(self, features: Features) -> None:
        """Take what is needed from the taps of some images: all taps, or the first ones first."""


@torch.no_grad()
def watch(encoder: Encoder, images: Tensor, observers: Sequence[Observer]) -> None:
    """Show images (B, 3, H, W) in 0..1, resized to the encoder's own size, to all observers."""
    if not observers:
        return
    taps = tuple(dict.fromkeys(tap for observer in observers for tap in observer.taps))
    device = next(encoder.parameters()).device
    images = resize_images(images.to(device), encoder.facts.img_size)
    with evaluating(encoder):
        for group in _groups(encoder.facts, taps):
            num_bytes = sum(_tap_bytes(encoder.facts, tap) for tap in group)
            for part in images.split(max(1, BUDGET // num_bytes)):
                features = encoder(part, None, group)
                for observer in observers:
                    observer.see(features)


def without_pixels(batch: Batch) -> Batch:
    """Labels and keys of a batch."""
    empty = batch.images[:, :, :0, :0]
    return Batch(empty, empty, batch.labels, batch.keys, batch.view_seeds)


def check_offered(encoder: Encoder, taps: Sequence[Tap], purpose: str) -> None:
    """Raise UserError, in one sentence, where the encoder lacks what ``purpose`` needs."""
    if not encoder.facts.depth:
        raise UserError(f"{purpose} needs a network of blocks, and this one has none.")
    offered = encoder.offered_taps()
    for kind in dict.fromkeys(tap.kind for tap in taps):
        if kind not in offered:
            raise UserError(
                f"{purpose} needs the encoder's '{kind}', and it offers only {', '.join(offered)}."
            )


def check_finite(value: Tensor, what: str) -> None:
    """Raise NotFiniteError where a measured tensor holds infinity or NaN."""
    if not value.isfinite().all():
        raise NotFiniteError(f"The {what} is not finite; check the encoder's weights.")


def _groups(facts: EncoderFacts, taps: tuple[Tap, ...]) -> Iterator[tuple[Tap, ...]]:
    """The taps in passes that stay, for a single image, within the budget (or have one tap)."""
    group: list[Tap] = []
    total = 0
    for tap in taps:
        size = _tap_bytes(facts, tap)
        if group and total + size > BUDGET:
            yield tuple(group)
            group, total = [], 0
        group.append(tap)
        total += size
    if group:
        yield tuple(group)


def _tap_bytes(facts: EncoderFacts, tap: Tap) -> int:
    """Bytes of a tap of one image in float32."""
    if tap.kind in HEAD_KINDS:
        strides = facts.block_strides[tap.block], facts.input_strides[tap.block]
        rows, columns = (
            facts.num_prefix_tokens + math.prod(facts.grid_of(stride)) for stride in strides
        )
        return 4 * facts.num_heads[tap.block] * rows * columns
    num_patches = math.prod(facts.grid_of(facts.tap_stride(tap)))
    return 4 * (facts.num_prefix_tokens + num_patches) * facts.tap_dim(tap)
