"""The images of a run: what is trained on, what is held out, and what identifies them."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from limbeck.data.classes import match_classes
from limbeck.data.loader import train_batches
from limbeck.data.open import data_fingerprint, keep_labels, open_source, split_holdout
from limbeck.data.options import DataOptions, ReleasedViews, ViewOptions
from limbeck.data.skipped import SkippedLog
from limbeck.data.source import Source
from limbeck.data.target_store.located import LocatedTargets
from limbeck.engine.distributed import Ranks
from limbeck.errors import UserError
from limbeck.models.encoder import EncoderFacts
from limbeck.recipes.run.options import TrainingOptions
from limbeck.records import Batch

log = logging.getLogger("limbeck")

FEW_IMAGES = 500  # a guess at where pre-training stops to make sense; it is said, not refused

FEW_TEST_IMAGES = 100  # below it the 95 % interval of a score may be 10 points to each side


@dataclass(frozen=True)
class Images:
    """``whole`` is all of the root; ``train`` and ``holdout`` share no image.

    ``fingerprint`` is a hash of the keys and labels, of the held-out root too where it is another,
    and of ``train`` where that is only a part (``label_fraction``).
    """

    whole: Source
    train: Source
    holdout: Source
    fingerprint: str
    lineage: dict[str, Any]

    @property
    def num_images(self) -> int:
        """Training and held-out images together."""
        return len(self.train) + len(self.holdout)

    @property
    def is_labelled(self) -> bool:
        """Whether probes may use labels."""
        return bool(self.train.classes) and bool(self.holdout.classes)


def open_images(data: DataOptions) -> Images:
    """Open the sources named by the options; raises UserError where there are no images."""
    whole = open_source(data.root, data, data.split)
    if data.eval_root:
        train, holdout = whole, open_source(data.eval_root, data, data.eval_split)
        if holdout.classes and whole.classes:
            holdout = match_classes(holdout, whole.classes, data.eval_root, data.root)
    else:
        train, holdout = split_holdout(whole, data)
    if data.label_fraction < 1:
        train = keep_labels(train, data.label_fraction, data.label_seed)
    if len(train) < 2:
        raise UserError(
            f"{data.root} has {len(train)} image to train on; that can't teach anything. Name a "
            "folder with hundreds or more."
        )
    classes = f"{len(whole.classes)} classes" if whole.classes else "no labels"
    log.info("%s: %s images, %s; %s held out.", data.root, len(whole), classes, len(holdout))
    if data.label_fraction < 1:
        log.info(
            "%s of them, %g %% of each class (seed %d), are trained on.",
            len(train), 100 * data.label_fraction, data.label_seed,
        )  # fmt: skip
    if len(train) < FEW_IMAGES:
        log.warning(
            "%d training images are few; expect less than from thousands of them.", len(train)
        )
    fingerprint = data_fingerprint(whole)
    if data.eval_root:
        fingerprint += data_fingerprint(holdout)
    part: dict[str, Any] = {}
    if data.label_fraction < 1:
        part = {
            "label_fraction": data.label_fraction,
            "label_seed": data.label_seed,
            "train_fingerprint": data_fingerprint(train),
        }
    return Images(
        whole=whole,
        train=train,
        holdout=holdout,
        fingerprint=fingerprint + part.get("train_fingerprint", ""),
        lineage={
            "root": data.root,
            "num_images": len(whole),
            "num_train": len(train),
            "num_holdout": len(holdout),
            "classes": list(whole.classes),
            "fingerprint": fingerprint,
            **part,
        },
    )


def stream(
    images: Images,
    views: ViewOptions | ReleasedViews,
    facts: EncoderFacts,
    ranks: Ranks,
    config: TrainingOptions,
    skipped: SkippedLog,
    start_step: int,
    total_steps: int,
    *,
    other_views: Sequence[ViewOptions] = (),
    local_views: Sequence[tuple[ViewOptions, int]] = (),
    targets: LocatedTargets | None = None,
) -> Iterator[Batch]:
    """This rank's micro-batches of training images, in the student's size, from a step on."""
    # Stored views have the noise that the teacher saw, however this student normalises.
    mean, std = (targets and targets.noise) or (facts.mean, facts.std)
    train = config.train
    return train_batches(
        images.train, data=config.data, views=views, other_views=other_views,
        local_views=local_views, img_size=facts.img_size[0], run_seed=config.seed,
        global_batch_size=train.global_batch_size, accumulate_steps=train.accumulate_steps,
        rank=ranks.rank, world_size=ranks.world_size, start_step=start_step,
        total_steps=total_steps, device=ranks.device, erase_mean=mean, erase_std=std,
        skipped=skipped, targets=targets,
    )  # fmt: skip


def few_images(num_test: int) -> str:
    """A sentence to append (with a leading space) where few images were scored, or ''."""
    if num_test >= FEW_TEST_IMAGES:
        return ""
    images = f"{num_test} held-out image{'s' if num_test > 1 else ''}"
    return f" {images} can't tell much: each is {100 / max(1, num_test):.3g} points."


def check_holdout(images: Images) -> None:
    """Raise UserError where no image is left to score on."""
    if not len(images.holdout):
        raise UserError(
            f"No image of {images.lineage['root']} is held out to score on; raise "
            "--data.holdout-ratio, or name other images with --data.eval-root."
        )


def check_labelled(
    images: Images, data: DataOptions, needs: str = "; fine-tuning needs", more: str = ""
) -> None:
    """Raise UserError where the images have no labels to learn from or to be scored by."""
    if not images.is_labelled:
        root = data.eval_root if images.train.classes else data.root
        raise UserError(
            f"{root} has no labels{needs} class sub-folders (data/cat/1.jpg) or a label column."
            + more
        )
