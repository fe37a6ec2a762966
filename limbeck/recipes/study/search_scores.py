"""What a candidate of a search is worth: one number from held-out images."""

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

import torch

from limbeck.data.skipped import SkippedLog
from limbeck.data.target_store.located import LocatedTargets
from limbeck.data.view_batches import view_batches
from limbeck.errors import UserError
from limbeck.evaluation.predictions import LOGITS, predict
from limbeck.methods.targets import StoredTeacher
from limbeck.models.encoder import Encoder
from limbeck.models.finished import load_student
from limbeck.recipes.run.images import Images
from limbeck.recipes.run.lineage import scores_of
from limbeck.recipes.run.networks import Networks
from limbeck.recipes.run.probes import centre_crops
from limbeck.recipes.study.options import SearchConfig, training
from limbeck.recipes.targets.reading import check_coverage, the_view
from limbeck.records import Batch

STORED_VIEW = 0  # any will do, and every store has it


class Scorer:
    """Scores finished students on the held-out images, all by the same ``name``d score (0..1).

    Of students with a classifier "top1" where the images are labelled with its classes, else
    "agreement": how often its class is the teacher's, which a live teacher tells of centre crops
    and a store of a stored view. Of others what the run's probes tell at its end: "linear_top1", or
    "neighbours" of unlabelled images. Raises UserError where nothing can be told.
    """

    def __init__(
        self, config: SearchConfig, images: Images, nets: Networks, device: torch.device
    ) -> None:
        self.config, self.images, self.nets, self.device = config, images, nets, device
        self.skipped = SkippedLog(None, images.num_images, config.data.max_bad_ratio)
        self.stored: LocatedTargets | None = None
        if not nets.student.facts.num_classes:
            if not images.is_labelled and nets.live_teacher is None:
                raise UserError(
                    f"{config.data.root} has no labels, and without a live teacher or a method "
                    "that gives the student a classifier no candidate can be scored; pass "
                    "--teacher, or class sub-folders."
                )
            self.name = "linear_top1" if images.is_labelled else "neighbours"
        else:
            self.name = "top1" if self._has_labels_of_teacher() else "agreement"
            if self.name == "agreement" and nets.reader is not None:
                if config.data.eval_root:
                    # Its images may have the names of others, for whom the store's answers are.
                    raise UserError(
                        f"The store has no targets of the images of {config.data.eval_root}, so "
                        "candidates can't be scored on them; leave --data.eval-root out, or name "
                        "images that are labelled with the teacher's classes."
                    )
                seed = nets.reader.manifest.recipe["seed"]
                self.stored = LocatedTargets(nets.reader, images.holdout, seed)
                check_coverage(self.stored, images.holdout)

    def score(self, folder: Path) -> float:
        """The score of the finished student in a run's folder."""
        if self.name not in ("top1", "agreement"):
            return scores_of(folder)[self.name]
        student = load_student(folder).to(self.device)
        if self.name == "top1":
            return predict(student, self._centre_crops(student)).top1()
        images = self._centre_crops if self.stored is None else self._stored_view
        return predict(student, images(student)).agreement(self._teacher_says)

    def _has_labels_of_teacher(self) -> bool:
        classes, teacher = self.images.train.classes, self.nets.teacher
        named = teacher and teacher.facts.origin.get("classes")
        is_other = bool(named) and not set(named or ()) & set(classes)
        same_number = len(classes) == self.nets.student.facts.num_classes
        return self.images.is_labelled and same_number and not is_other

    @cached_property
    def _teacher_says(self) -> dict[str, int]:
        """The class that the teacher takes each held-out image for, by key."""
        live, teacher, stored = self.nets.live_teacher, self.nets.teacher, self.stored
        if live is not None:
            return predict(live.encoder, self._centre_crops(live.encoder), live.precision).by_key()
        assert isinstance(teacher, StoredTeacher) and stored is not None
        found: dict[str, int] = {}
        for indices in self._chunks():
            arrays = stored.read(indices, STORED_VIEW)
            said = teacher.targets.decode(
                {name: array.to(self.device) for name, array in arrays.items()}, (LOGITS,)
            )
            labels = said.soft_labels
            classes = labels.classes[:, 0] if labels else said.taps[LOGITS].argmax(dim=1)
            keys = (self.images.holdout.key(index) for index in indices)
            found |= dict(zip(keys, classes.tolist(), strict=True))
        return found

    def _chunks(self) -> Iterator[list[int]]:
        count, size = len(self.images.holdout), self.config.probes.batch_size
        return (list(range(at, min(at + size, count))) for at in range(0, count, size))

    def _stored_view(self, encoder: Encoder) -> Iterator[Batch]:
        """The view of each image that the stored answers are to."""
        assert self.stored is not None
        mean, std = self.stored.noise or (encoder.facts.mean, encoder.facts.std)
        batches = view_batches(
            self.images.holdout,
            ((range(STORED_VIEW, STORED_VIEW + 1), chunk) for chunk in self._chunks()),
            data=self.config.data, views=the_view(training(self.config), self.nets),
            img_size=encoder.facts.img_size[0], seed=self.stored.seed, world_size=1,
            device=self.device, erase_mean=mean, erase_std=std,
        )  # fmt: skip
        for batch, skipped in batches:
            self.skipped.add(skipped)
            yield batch

    def _centre_crops(self, encoder: Encoder) -> Iterator[Batch]:
        config, holdout = self.config, self.images.holdout
        return centre_crops(encoder, holdout, config.probes, config.data, self.device, self.skipped)
