"""Embeddings: one vector per image from a frozen encoder, the raw material of every probe."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from limbeck.engine.machine import DTYPES, Precision
from limbeck.errors import NotFiniteError, UserError
from limbeck.models.encoder import Encoder
from limbeck.ops.resize import resize_images
from limbeck.records import Batch, Features, Tap


@dataclass(frozen=True)
class Embeddings:
    """What an encoder says of ``n`` images.

    ``features`` (n, D) float32. ``labels`` (n,) int64 class indices; None unless all are known.
    ``keys`` the samples' names. ``logits`` (n, C) float32 of the encoder's own classifier, None
    where it has none.
    """

    features: Tensor
    labels: Tensor | None
    keys: tuple[str, ...]
    logits: Tensor | None = None

    def __len__(self) -> int:
        return len(self.features)

    def to(self, device: torch.device | str) -> "Embeddings":
        """The same with its tensors on another device."""
        return replace(
            self,
            features=self.features.to(device),
            labels=None if self.labels is None else self.labels.to(device),
            logits=None if self.logits is None else self.logits.to(device),
        )


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode inside the block; each submodule's own mode is restored after it."""
    was_training = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, mode in was_training:
            part.training = mode


@torch.no_grad()
def show(
    encoder: Encoder, images: Tensor, taps: tuple[Tap, ...], precision: Precision = "fp32"
) -> Features:
    """What the encoder says of images, resized to its own size; gradients and dropout are off.

    An encoder whose matrices were cast (a frozen teacher) needs the ``precision`` that it was cast
    to.
    """
    device, lower = next(encoder.parameters()).device, precision != "fp32"
    with evaluating(encoder), torch.autocast(device.type, DTYPES[precision], enabled=lower):
        return encoder(resize_images(images.to(device), encoder.facts.img_size), None, taps)


def embed(
    encoder: Encoder,
    batches: Iterable[Batch],
    *,
    pool: Literal["mean", "cls"] = "mean",
    precision: Precision = "fp32",
) -> Embeddings:
    """Embed the images of all batches (see ``show``); results are on the CPU.

    ``pool``: the mean of the final patch tokens (prefix tokens left out) or the CLS token. Raises
    UserError for "cls" without a CLS token and for no images, NotFiniteError for features that are
    not.
    """
    facts = encoder.facts
    if pool == "cls" and not facts.has_cls_token:
        raise UserError("This encoder has no CLS token; pool its patches with pool='mean'.")
    taps: tuple[Tap, ...] = (Tap("output"),)
    if facts.num_classes and "logits" in encoder.offered_taps():
        taps += (Tap("logits"),)
    features: list[Tensor] = []
    logits: list[Tensor] = []
    labels: list[Tensor] = []
    keys: list[str] = []
    for batch in batches:
        said = show(encoder, batch.images, taps, precision)
        tokens = said.taps[Tap("output")].float()
        pooled = tokens[:, 0] if pool == "cls" else tokens[:, said.num_prefix_tokens :].mean(1)
        features.append(pooled.cpu())
        if len(taps) > 1:
            logits.append(said.taps[Tap("logits")].float().cpu())
        if batch.labels is not None:
            labels.append(batch.labels.cpu())
        keys += batch.keys
    if not keys:
        raise UserError("There are no images to embed; check the data folder and its split.")
    together = torch.cat(features)
    if not together.isfinite().all():
        raise NotFiniteError(
            f"The encoder's features are not finite in {precision}; "
            "check its weights, or evaluate it in fp32."
        )
    return Embeddings(
        features=together,
        labels=torch.cat(labels) if len(labels) == len(features) else None,
        keys=tuple(keys),
        logits=torch.cat(logits) if logits else None,
    )
