"""Probes during a run: quick, honest signs of progress on images that it does not learn from."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from limbeck.errors import NotFiniteError, UserError
from limbeck.recipes.run.options import CropEvalOptions, EmbedOptions, ProbeOptions

if TYPE_CHECKING:
    import torch
    from torch import nn

    from limbeck.data.options import DataOptions
    from limbeck.data.skipped import SkippedLog
    from limbeck.data.source import Source
    from limbeck.evaluation.embed import Embeddings
    from limbeck.methods.teacher import Teacher
    from limbeck.models.encoder import Encoder
    from limbeck.recipes.run.images import Images
    from limbeck.records import Batch
    from limbeck.tasks.task import Task

log = logging.getLogger("limbeck")

Probe = Callable[["nn.Module", int], dict[str, float]]


def build_probe(
    probes: ProbeOptions,
    images: Images,
    student: Encoder,
    teacher: Teacher | None,
    data: DataOptions,
    device: torch.device,
    skipped: SkippedLog,
) -> Probe | None:
    """A function for the loop; None where nothing can be measured (no labels and no teacher).

    Labelled images: kNN and linear accuracy of the student's frozen features. Unlabelled: how far
    the student's nearest neighbours among the held-out images are the teacher's.
    """
    from limbeck.evaluation.probes import quick_agreement, quick_probe
    from limbeck.recipes.run.images import few_images

    if teacher is not None and "output" not in teacher.encoder.offered_taps():
        teacher = None  # a segmenter, which has no vector of an image
    fewest = 1 if images.is_labelled else 3  # neighbours need somebody to choose from
    if not (images.is_labelled or teacher):
        log.info("No probes: the images have no labels, and there is no teacher to compare with.")
        return None
    if len(images.holdout) < fewest:
        log.info(
            "No probes: %d images are held out; raise --data.holdout-ratio.", len(images.holdout)
        )
        return None
    test = spread_slice(images.holdout, probes.num_test)
    if few := few_images(len(test)):
        log.info("Of the probes during the run:%s", few)

    def embed_all(encoder: Encoder, source: Source, precision: str = "fp32") -> Embeddings:
        return embed_source(encoder, source, probes, data, device, skipped, precision)

    if images.is_labelled:
        train = spread_slice(images.train, probes.num_train)
        return lambda module, step: quick_probe(embed_all(student, train), embed_all(student, test))
    assert teacher is not None
    target = embed_all(teacher.encoder, test, teacher.precision)
    return lambda module, step: quick_agreement(embed_all(student, test), target)


def spread_slice(source: Source, count: int) -> Source:
    """At most ``count`` samples, evenly spread over the source (folders are sorted by class)."""
    from limbeck.data.source import Subset

    if len(source) <= count:
        return source
    return Subset(source, [index * len(source) // count for index in range(count)])


def centre_crops(
    encoder: Encoder,
    source: Source,
    shown: CropEvalOptions,
    data: DataOptions,
    device: torch.device,
    skipped: SkippedLog,
) -> Iterator[Batch]:
    """All readable images of a source, once and in its order, as an encoder wants to see them."""
    from limbeck.data.loader import eval_batches

    return eval_batches(
        source, data=data, img_size=encoder.facts.img_size[0], crop_ratio=shown.crop_ratio,
        batch_size=shown.batch_size, device=device, skipped=skipped,
    )  # fmt: skip


def task_probe(
    task: Task,
    source: Source,
    shown: CropEvalOptions,
    data: DataOptions,
    device: torch.device,
    skipped: SkippedLog,
) -> Probe:
    """The task's own score of what it predicts of labelled images.

    Raises UserError where there are none to score on; the probe, too, where none can be read, and
    NotFiniteError for predictions that are not.
    """
    if not (len(source) and source.classes):
        raise UserError(
            "There is no held-out image with a label to score on; raise --data.holdout-ratio, or "
            "name labelled images."
        )
    import torch

    from limbeck.evaluation.embed import evaluating

    @torch.no_grad()
    def probe(module: nn.Module, step: int) -> dict[str, float]:
        with evaluating(task.encoder):
            said = [
                (task.predict(batch.images).float().cpu(), batch.labels.cpu())
                for batch in centre_crops(task.encoder, source, shown, data, device, skipped)
                if batch.labels is not None
            ]
        if not said:
            raise UserError("No held-out image can be read; check the data folder and its split.")
        predictions, labels = map(torch.cat, zip(*said, strict=True))
        if not predictions.isfinite().all():
            raise NotFiniteError("What the network predicts of the held-out images is not finite.")
        return task.score(predictions, labels)

    return probe


def embed_source(
    encoder: Encoder,
    source: Source,
    options: EmbedOptions,
    data: DataOptions,
    device: torch.device,
    skipped: SkippedLog,
    precision: str = "fp32",
) -> Embeddings:
    """Embeddings of all readable images of a source, in its order."""
    from limbeck.evaluation.embed import embed

    shown = centre_crops(encoder, source, options, data, device, skipped)
    return embed(encoder, shown, pool=options.pool, precision=precision)
