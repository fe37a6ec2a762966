"""Which class a network takes each image for, and how often two of them agree."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from limbeck.errors import NotFiniteError, RunError, UserError
from limbeck.evaluation.embed import evaluating
from limbeck.methods.teacher import DTYPES
from limbeck.models.encoder import Encoder
from limbeck.ops.resize import resize_images
from limbeck.records import Batch, Tap

LOGITS = Tap("logits")


@dataclass(frozen=True)
class Predictions:
    """The likeliest ``classes`` (n,) int64 of n images, their ``labels`` (n,) where all are known,
    and their ``keys``.
    """

    classes: Tensor
    labels: Tensor | None
    keys: tuple[str, ...]

    def top1(self) -> float:
        """The part (0..1) of the images whose label was predicted; there must be labels."""
        assert self.labels is not None
        return float((self.classes == self.labels).float().mean())

    def by_key(self) -> dict[str, int]:
        """The class of each image by its key."""
        return dict(zip(self.keys, self.classes.tolist(), strict=True))

    def agreement(self, other: Mapping[str, int]) -> float:
        """The part (0..1) of the images for which ``other``, by key, has the same class.

        Raises RunError for an image that it does not have.
        """
        if missing := [key for key in self.keys if key not in other]:
            raise RunError(
                f"The teacher could not be shown {missing[0]}: it became readable only later; "
                "check that the images stay in place."
            )
        same = [other[key] == own for key, own in self.by_key().items()]
        return sum(same) / len(same)


@torch.no_grad()
def predict(
    encoder: Encoder,
    batches: Iterable[Batch],
    precision: Literal["fp32", "bf16", "fp16"] = "fp32",
) -> Predictions:
    """Show all images to an encoder with a classifier, resized to its own size.

    ``precision`` is that to which a teacher's matrices were cast. Raises UserError where there is
    no image, NotFiniteError for logits that are not.
    """
    device = next(encoder.parameters()).device
    lower = precision != "fp32"
    classes, labels, keys = [], [], []
    with evaluating(encoder), torch.autocast(device.type, DTYPES[precision], enabled=lower):
        for batch in batches:
            images = resize_images(batch.images.to(device), encoder.facts.img_size)
            logits = encoder(images, None, (LOGITS,)).taps[LOGITS]
            if not logits.isfinite().all():
                raise NotFiniteError("The classifier's logits are not finite; lower the base_lr.")
            classes.append(logits.argmax(dim=1).cpu())
            if batch.labels is not None:
                labels.append(batch.labels.cpu())
            keys += batch.keys
    if not keys:
        raise UserError("There are no images to predict; check the data folder and its split.")
    known = torch.cat(labels) if len(labels) == len(classes) else None
    return Predictions(torch.cat(classes), known, tuple(keys))
