"""Which class a network takes each image for, and how often two of them agree."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from limbeck.engine.machine import Precision
from limbeck.errors import NotFiniteError, RunError, UserError
from limbeck.evaluation.embed import show
from limbeck.evaluation.scores import Score, is_in_top, score_of
from limbeck.models.encoder import Encoder
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


def predict(
    encoder: Encoder, batches: Iterable[Batch], precision: Precision = "fp32"
) -> Predictions:
    """Show all images to an encoder with a classifier, resized to its own size.

    ``precision`` is that to which a teacher's matrices were cast. Raises UserError where there is
    no image, NotFiniteError for logits that are not.
    """
    classes, labels, keys = [], [], []
    for batch, logits in _said(encoder, batches, precision):
        classes.append(logits.argmax(dim=1).cpu())
        if batch.labels is not None:
            labels.append(batch.labels.cpu())
        keys += batch.keys
    if not keys:
        raise UserError("There are no images to predict; check the data folder and its split.")
    known = torch.cat(labels) if len(labels) == len(classes) else None
    return Predictions(torch.cat(classes), known, tuple(keys))


def top_scores(
    encoder: Encoder, batches: Iterable[Batch], columns: Sequence[int]
) -> dict[str, Score]:
    """ "top1" of a classifier, image by image, and "top5" where it has more than five classes.

    ``columns``: the output that answers for each label. All images must be labelled. Raises as
    ``predict`` does.
    """
    depths = {"top1": 1} | ({"top5": 5} if encoder.facts.num_classes > 5 else {})
    hits: dict[str, list[Tensor]] = {name: [] for name in depths}
    for batch, logits in _said(encoder, batches, "fp32"):
        assert batch.labels is not None
        labels, logits = batch.labels.to(logits.device), logits[:, columns]
        for name, k in depths.items():
            hits[name].append(is_in_top(logits, labels, k).cpu())
    if not hits["top1"]:
        raise UserError("There are no images to predict; check the data folder and its split.")
    return {
        name: score_of(torch.cat(each), f"top-{depths[name]} of the network's own classifier")
        for name, each in hits.items()
    }


def _said(
    encoder: Encoder, batches: Iterable[Batch], precision: Precision
) -> Iterator[tuple[Batch, Tensor]]:
    for batch in batches:
        logits = show(encoder, batch.images, (LOGITS,), precision).taps[LOGITS]
        if not logits.isfinite().all():
            raise NotFiniteError("The classifier's logits are not finite; lower the base_lr.")
        yield batch, logits
