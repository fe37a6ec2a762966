"""``limbeck store-targets``: run a teacher once, keep what it says of every view of every image.

Fast pre-training distillation: TinyViT, arXiv 2207.10666.
"""

from __future__ import annotations

import logging
import shlex
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from limbeck.config import PositiveFloat, PositiveInt, Seed, options, to_plain
from limbeck.data.options import CropOptions, DataOptions, StoreOptions
from limbeck.engine.options import TrainOptions
from limbeck.errors import UserError
from limbeck.methods import PerMethodOptions
from limbeck.models.options import StudentOptions, TeacherOptions
from limbeck.models.shapes import check_model_name
from limbeck.recipes.run import checks
from limbeck.recipes.run.options import DistillConfig

if TYPE_CHECKING:
    from limbeck.data.target_store import Manifest
    from limbeck.engine.distributed import Ranks
    from limbeck.methods.teacher import Teacher
    from limbeck.recipes.run.images import Images
    from limbeck.recipes.run.networks import Networks
    from limbeck.recipes.targets.checking import Checked

log = logging.getLogger("limbeck")


@options
class StoreTargetsConfig(PerMethodOptions):
    """Run a teacher over views of all images and store what it says, for limbeck distill --targets.

    The options of views, method and student are those of the trainings to come.
    """

    out: Annotated[str, tyro.conf.arg(aliases=["-o"])] = "targets"
    """The store: a folder, or an address such as s3://bucket/store."""
    method: str = "sparse-logit"
    """What is to be trained from it. sparse-logit: class probabilities are stored; a method that
    compares inner tensors: the tokens that enter its teacher block."""
    seed: Seed = 0
    """Seed of the views, which trainings then share."""
    resume: bool = False
    """Fill in what a store lacks: images that were added after it was begun."""
    check: bool = False
    """Write nothing; compare what is there with the images, their views and the teacher's answers.
    The other options are those of the store. Exits with 1 where it finds problems."""
    num_checked: PositiveInt = 256
    """Views that the teacher answers again for --check."""
    max_distance: PositiveFloat | None = None
    """--check fails where more than one in a hundred answers are further from the stored ones: half
    of sum |p - q| of class probabilities (0.005 if not given; 0.08 of a bf16 teacher, 0.02 of
    fp16), the relative error of tokens (0.01; 0.03, 0.015)."""
    method_options: tuple[str, ...] = ()
    """Options of your own method, such as beta=2.0 (values as in TOML)."""
    device: Literal["auto", "cpu", "cuda"] = "auto"

    store: StoreOptions = StoreOptions()
    student: StudentOptions = StudentOptions()
    teacher: TeacherOptions = TeacherOptions()
    data: DataOptions = DataOptions()
    crop: CropOptions = CropOptions()


@dataclass(frozen=True)
class Stored:
    """What a call of ``store_targets`` left behind."""

    address: str
    method: str
    num_images: int
    num_new: int
    skipped: dict[str, str]
    problems: tuple[str, ...] = ()
    """None: what fails is raised. (A ``Checked`` has some.)"""


def as_distill(config: StoreTargetsConfig) -> DistillConfig:
    """The training, with a live teacher, for whose like the targets are stored."""
    names = {each.name for each in fields(DistillConfig)}
    own = {each.name: getattr(config, each.name) for each in fields(config)}
    same = {name: value for name, value in own.items() if name in names - {"out"}}
    # The student is not run here; its precision is of no account.
    return DistillConfig(**same, train=TrainOptions(precision=config.teacher.precision))


def check(config: StoreTargetsConfig) -> None:
    """All that can be wrong without opening an image or a weights file; raises UserError."""
    if config.check:
        checks.check_unset(config, ["resume"], "with --check, which writes nothing", "--")
    else:
        checks.check_unset(config, ["num_checked", "max_distance"], "without --check")
    training = as_distill(config)
    check_model_name(config.student.name)  # no budget: the views of the store hang on its size
    checks.check_pretraining(training)
    checks.check_has_teacher(training)


def store_targets(config: StoreTargetsConfig) -> Stored | Checked:
    """Write the store, or what is left of it; or check it.

    Raises UserError for bad input and for a store that was begun otherwise, RunError where writing
    fails, and Interrupted when asked to stop (at once); what is finished is kept.
    """
    check(config)
    from limbeck.data.workers import lost_workers_explained
    from limbeck.engine.distributed import ranks_session
    from limbeck.recipes.run.images import open_images
    from limbeck.recipes.run.networks import build_networks
    from limbeck.recipes.run.precision import settle
    from limbeck.recipes.targets.storing import stop_explained

    with (
        ranks_session(config.device, to_plain(config)) as ranks,
        stop_explained(),
        lost_workers_explained(),
    ):
        config = settle(config, ranks, recall=partial(precision_of, config.out))
        images = open_images(config.data)
        return _store(config, images, build_networks(as_distill(config), ranks.device), ranks)


def precision_of(address: str) -> str | None:
    """The precision of the teacher whose answers a store has; None where there is no store."""
    from limbeck.data.target_store.manifest import MANIFEST, read_manifest
    from limbeck.data.target_store.place import open_place

    place = open_place(address)
    if MANIFEST not in place.sizes():
        return None
    teacher = read_manifest(place.read_all([MANIFEST])[0], place.address).teacher
    return teacher.get("precision")


def _store(
    config: StoreTargetsConfig, images: Images, nets: Networks, ranks: Ranks
) -> Stored | Checked:
    from limbeck.data.skipped import SkippedLog
    from limbeck.data.target_store import Manifest
    from limbeck.data.target_store.parts import num_parts_for
    from limbeck.data.target_store.place import check_room
    from limbeck.data.target_store.writer import open_writer
    from limbeck.engine.distributed import check_ranks, gather
    from limbeck.methods.targets import plan_targets
    from limbeck.recipes.run.lineage import versions
    from limbeck.recipes.targets.reading import (
        check_before_writing,
        stored_facts,
        the_view,
        view_recipe,
    )
    from limbeck.recipes.targets.storing import Job

    teacher, student = nets.live_teacher, nets.student.facts
    if teacher is None:
        raise UserError(f"The method {config.method} has no teacher, so there is nothing to store.")
    views = the_view(as_distill(config), nets)
    targets = plan_targets(config.store, nets.method, teacher)
    manifest = Manifest(
        kind=targets.kind,
        params=targets.params,
        arrays=targets.arrays,
        teacher={
            "facts": stored_facts(teacher.facts),
            "precision": config.teacher.precision,
            "weights": _weights_of(teacher) or config.teacher.source,
        },
        recipe=view_recipe(views, student, config.seed),
        num_views=config.store.num_views,
        num_parts=1,
        data=images.lineage,
        versions=versions(),
    )
    manifest = replace(
        manifest,
        num_parts=num_parts_for(len(images.whole), manifest.num_views * manifest.bytes_per_record),
    )
    if config.check:
        return _check(config, images, nets, ranks, manifest)
    check_ranks({"images": images.fingerprint, "teacher": manifest.teacher["weights"]})
    writer = open_writer(config.out, manifest, targets.weights)
    if targets.weights:  # Of those that were written first, should the last bits differ.
        kind, weights = type(targets), writer.weights()
        targets = kind.from_store(targets.params, teacher.facts, weights).to(ranks.device)
    skipped = SkippedLog(None, len(images.whole), config.data.max_bad_ratio)
    job = Job(
        source=images.whole, data=config.data, batch_size=config.store.batch_size, views=views,
        student=student, method=nets.method.to(ranks.device).eval(), teacher=teacher,
        targets=targets, writer=writer, ranks=ranks, skipped=skipped,
    )  # fmt: skip
    left = job.left(tries_skipped=config.resume)
    num_left = sum(map(len, left.values()))
    begun_with = writer.manifest.data
    is_other = begun_with.get("fingerprint") != images.lineage["fingerprint"]
    if num_left and is_other and not config.resume:
        raise UserError(
            f"{num_left:,} of {len(images.whole):,} images have no targets in {config.out}, which "
            f"was begun with {begun_with.get('num_images', 0):,} images of "
            f"{begun_with.get('root')}; pass --resume to fill them in."
        )
    if num_left:
        check_before_writing(writer, images.whole, config.data, views, student.img_size[0])
        forecast = job.forecast(left)
        log.info(forecast.sentence())
        check_room(writer.place, forecast.num_bytes, "The targets", "choose another --out")
    gather(None)  # No rank writes while another still looks at what is there.
    if left:
        job.write(left)
    return Stored(config.out, config.method, len(images.whole), num_left, dict(skipped.reasons))


def _weights_of(teacher: Teacher) -> str | None:
    """The hash of a teacher's weights, also of one that does not state it; None without any."""
    from limbeck.models.finished import weight_hash

    tensors = teacher.encoder.state_dict()
    return teacher.facts.origin.get("weight_hash") or (weight_hash(tensors) if tensors else None)


def _check(
    config: StoreTargetsConfig, images: Images, nets: Networks, ranks: Ranks, manifest: Manifest
) -> Checked:
    from limbeck.recipes.targets.checking import Check
    from limbeck.recipes.targets.reading import the_view

    if ranks.world_size > 1:
        raise UserError("A store is checked by one process; run it without torchrun.")
    assert nets.live_teacher is not None
    return Check(
        address=config.out, source=images.whole, data=config.data,
        views=the_view(as_distill(config), nets), student=nets.student.facts,
        method=nets.method.to(ranks.device).eval(), teacher=nets.live_teacher, wanted=manifest,
        num_answers=config.num_checked, max_distance=config.max_distance,
        batch_size=config.store.batch_size,
    ).run()  # fmt: skip


def report(stored: Stored | Checked) -> str:
    """What to do with a finished store, or what a check found, for the command line."""
    if not isinstance(stored, Stored):
        from limbeck.recipes.targets.checking import report as report_check

        return report_check(stored)
    store = shlex.quote(stored.address)
    lines = [
        f"The targets of {stored.num_images:,} images are in {stored.address} "
        f"({stored.num_new:,} of them new).",
        f"Train from it:  limbeck distill --method {stored.method} --targets {store} --data IMAGES "
        "(and the same student, crop and method options)",
        f"Look into it:   limbeck inspect {store}",
    ]
    if stored.skipped:
        lines.insert(1, f"{len(stored.skipped)} images could not be read and have none.")
    return "\n".join(lines)
