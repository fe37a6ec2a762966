"""Probes during a run: quick, honest signs of progress on a held-out slice."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Literal

import pydantic

from limbeck.config import options

if TYPE_CHECKING:
    import torch
    from torch import nn

    from limbeck.data.options import DataOptions
    from limbeck.data.source import Source
    from limbeck.methods.distiller import Teacher
    from limbeck.models.encoder import Encoder
    from limbeck.recipes.images import Images

PositiveInt = Annotated[int, pydantic.Field(gt=0)]


@options
class ProbeOptions:
    """What is measured during the run."""

    is_on: bool = True
    num_train: PositiveInt = 2000
    """Training images that the probes learn from (labelled data)."""
    num_test: PositiveInt = 2000
    """Held-out images that are scored."""
    pool: Literal["mean", "cls"] = "mean"
    """What stands for an image: the mean of its final patch tokens, or its CLS token."""
    batch_size: PositiveInt = 64


def build_probe(
    probes: ProbeOptions,
    images: Images,
    student: Encoder,
    teacher: Teacher | None,
    data: DataOptions,
    device: torch.device,
) -> Callable[[nn.Module, int], dict[str, float]] | None:
    """A function for the loop; None where nothing can be measured (no labels and no teacher).

    Labelled data: kNN and linear accuracy of the student's frozen features. Unlabelled: how far
    the student's nearest neighbours among the held-out images are the teacher's.
    """
    from limbeck.data.source import Subset
    from limbeck.evaluation.neighbours import neighbour_agreement
    from limbeck.evaluation.linear import quick_probe

    if not probes.is_on or len(images.holdout) < 2 or not (images.is_labelled or teacher):
        return None
    test = spread_slice(images.holdout, probes.num_test)
    if images.is_labelled:
        train = spread_slice(images.train, probes.num_train)

        def probe(module: nn.Module, step: int) -> dict[str, float]:
            del module, step
            return quick_probe(
                embed_source(student, train, probes, data, device),
                embed_source(student, test, probes, data, device),
            )

        return probe
    assert teacher is not None
    target = embed_source(teacher.encoder, test, probes, data, device)

    def agree(module: nn.Module, step: int) -> dict[str, float]:
        del module, step
        own = embed_source(student, test, probes, data, device)
        return {"neighbour_agreement": neighbour_agreement(own.features, target.features).agreement}

    return agree


def spread_slice(source: Source, count: int) -> Source:
    """At most ``count`` samples, evenly spread over the source (folders are sorted by class)."""
    from limbeck.data.source import Subset

    if len(source) <= count:
        return source
    return Subset(source, [index * len(source) // count for index in range(count)])


def embed_source(encoder, source, probes, data, device):
    """Embeddings of all images of a source, centre-cropped."""
