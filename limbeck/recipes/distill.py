"""``limbeck distill``: from unlabelled images and a teacher to a small encoder.

Imports of torch are inside the functions: the config and its checks must answer without it.
"""

from __future__ import annotations

import logging
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from limbeck.config import options, to_plain
from limbeck.data.options import CropOptions, DataOptions, ViewOptions
from limbeck.engine.options import OptimOptions, TrainOptions
from limbeck.errors import UserError
from limbeck.methods import METHOD_OPTIONS
from limbeck.methods.options import MaskedPixelOptions, MethodOptions, RelationOptions
from limbeck.models.options import StudentOptions, TeacherOptions
from limbeck.recipes import checks
from limbeck.recipes.probes import ProbeOptions

if TYPE_CHECKING:
    from limbeck.engine.distributed import Ranks
    from limbeck.methods.distiller import Teacher
    from limbeck.methods.method import Method
    from limbeck.models.encoder import Encoder, EncoderFacts

log = logging.getLogger("limbeck")


@options
class DistillConfig:
    """Distil a teacher into a student on unlabelled images (or pre-train without a teacher)."""

    out: Path = Path("runs/distill")
    """Folder of the run: checkpoints, logs, and at the end the finished student."""
    method: str = "relation"
    """relation (TinyMIM), masked-pixel (MAE, no teacher), or your own as module:Class."""
    seed: int = 0
    overwrite: bool = False
    """Start afresh where the folder holds another run."""
    untrained_tail: Literal["keep", "reinit", "zero"] = "keep"
    """What the method leaves untrained in the student: keep its start values, draw them afresh, or
    zero the block's outputs so that it passes its input through."""
    method_options: tuple[str, ...] = ()
    """Options of your own method, such as beta=2.0 (values as in TOML)."""

    student: StudentOptions = StudentOptions()
    teacher: TeacherOptions = TeacherOptions()
    relation: RelationOptions = RelationOptions()
    masked_pixel: MaskedPixelOptions = MaskedPixelOptions()
    data: DataOptions = DataOptions()
    crop: CropOptions = CropOptions()
    optim: OptimOptions = OptimOptions()
    train: TrainOptions = TrainOptions()
    probes: ProbeOptions = ProbeOptions()


def check_distill(config: DistillConfig) -> None:
    """Everything that can be wrong without opening an image or a weight; raises UserError."""
    checks.check_data(config.data)
    checks.check_student(config.student)
    if ":" not in config.method:
        checks.check_choice(config.method, METHOD_OPTIONS, "method")
    if config.teacher.source is None:
        if config.teacher != TeacherOptions():
            raise UserError("Options of the teacher have no effect without --teacher.")
    else:
        checks.check_source(config.teacher.source)
    for name, kind in METHOD_OPTIONS.items():
        field = name.replace("-", "_")
        if name != config.method and getattr(config, field) != kind():
            raise UserError(f"Options of '{field}' have no effect with --method {config.method}.")
    if config.method_options and config.method in METHOD_OPTIONS:
        raise UserError(
            "method_options are for your own method (module:Class); "
            f"the options of {config.method} are --{config.method}.NAME."
        )
    if config.method == "relation" and config.teacher.source is None:
        raise UserError(
            "Relation distillation needs a teacher; name one, such as "
            "--teacher timm:vit_base_patch16_224.mae or --teacher path/to/weights.safetensors."
        )
    if config.method == "masked-pixel" and config.teacher.source is not None:
        raise UserError("Masked-pixel pre-training has no teacher; leave --teacher out.")


def distill(config: DistillConfig) -> Path:
    """Run the distillation, or continue it; returns the run's folder.

    Raises UserError for bad input, RunError where a run under way can't go on, Interrupted when
    asked to stop (after saving).
    """
    check_distill(config)
    from limbeck.data.loader import SkippedLog, train_batches
    from limbeck.engine.checkpoint import open_run
    from limbeck.engine.distributed import freeze_untrained, ranks_session
    from limbeck.engine.log import Log
    from limbeck.engine.loop import fit
    from limbeck.methods.distiller import Distiller
    from limbeck.models.finished import save_student
    from limbeck.models.vit import reinit_tail
    from limbeck.recipes import lineage
    from limbeck.recipes.probes import build_probe

    with ranks_session(config.train.device) as ranks:
        images = open_images(config.data)
        steps_per_epoch, total_steps = plan_steps(len(images.train), config.train)
        teacher, student, method_options, method = build_networks(config, ranks)
        resolved = resolve(config, steps_per_epoch, total_steps, len(images.train), method_options)
        run = open_run(
            config.out,
            {"verb": "distill", **to_plain(config), "resolved": resolved},
            {"data": images.fingerprint, "teacher": teacher and teacher.facts.origin},
            overwrite=config.overwrite,
        )
        if run.is_finished:
            log.info("%s is finished; nothing to do. Its student: %s", run.dir, run.dir)
            return run.dir
        distiller = Distiller(student, method, teacher).to(ranks.device)
        skipped = SkippedLog(
            run.dir / "skipped.jsonl", len(images.train), config.data.max_bad_ratio
        )

        def batches(start_step: int, last_step: int = total_steps) -> Any:
            return train_batches(
                images.train,
                data=config.data,
                views=ViewOptions(**asdict(config.crop), color_jitter=method_options.color_jitter),
                img_size=student.facts.img_size[0],
                run_seed=config.seed,
                global_batch_size=config.train.global_batch_size,
                accumulate_steps=config.train.accumulate_steps,
                rank=ranks.rank,
                world_size=ranks.world_size,
                start_step=start_step,
                total_steps=last_step,
                device=ranks.device,
                erase_mean=student.facts.mean,
                erase_std=student.facts.std,
                skipped=skipped,
            )

        untrained = freeze_untrained(distiller, next(iter(batches(0, 1))))
        names = [name.removeprefix("student.model.") for name in untrained]
        tail = reinit_tail(student, names, config.untrained_tail, config.seed)
        with Log(run, config.train, ranks, stage="distill", total_steps=total_steps) as report:
            report.note(f"resolved: {resolved}")
            report.note(
                f"{len(names)} tensors of the student are not trained by this method: "
                f"untrained_tail = {config.untrained_tail}"
            )
            result = fit(
                distiller,
                batches,
                total_steps=total_steps,
                steps_per_epoch=steps_per_epoch,
                optim=config.optim,
                train=config.train,
                run=run,
                ranks=ranks,
                log=report,
                layer_id=layer_id_of(student),
                num_layers=student.facts.depth,
                seed=config.seed,
                probes=build_probe(config.probes, images, student, teacher, config.data, ranks),
            )
            if ranks.rank == 0:
                record = lineage.record(
                    verb="distill",
                    method=config.method,
                    teacher=teacher and teacher.facts,
                    data=images.lineage,
                    config=to_plain(config),
                    extra={"untrained": tail, "steps": total_steps, **result.summary},
                )
                save_student(student, run.dir, record)
                report.note(skipped.summary())
                run.finish()
    return run.dir
