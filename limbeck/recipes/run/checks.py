"""Checks of a config that need neither torch nor an image: the answer comes in a second."""

import importlib.util
import os
from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path
from typing import Any

from limbeck.config import has_own_module
from limbeck.data.options import DataOptions, MixOptions, TargetsOptions
from limbeck.engine.options import OptimOptions, TrainOptions
from limbeck.errors import UserError, did_you_mean, require_extra
from limbeck.methods import METHODS, TASK_METHODS, PerMethodOptions, PerTaskMethodOptions
from limbeck.methods.options import MethodOptions
from limbeck.models.budgets import is_budget, read_budget
from limbeck.models.options import HEAD_DIM, POOLS, SHAPE, HeadKind, StudentOptions, TeacherOptions
from limbeck.models.origins.names import check_source
from limbeck.models.shape_names import is_shape
from limbeck.models.shapes import SHORT_NAMES, check_model_name, check_stated, known_model_names
from limbeck.papers import of_paper
from limbeck.recipes.run.options import DistillConfig


def check_pretraining(config: DistillConfig) -> None:
    """All of a pre-training but its chain and whether it needs a teacher; raises UserError."""
    check_data(config.data)
    check_all_labels(config.data)
    check_student(config.student)
    chosen = getattr(config, config.method.replace("-", "_")) if config.method in METHODS else None
    is_any_model = chosen is None or chosen.trains_classifier
    check_teacher(config.teacher, any_model=is_any_model)
    check_train(config.train, config.optim)
    check_optimizer(config.optim, DistillConfig().optim)
    check_unused(config, PerMethodOptions, config.method, "--method")
    check_method(config.method, config.method_options, METHODS)


def check_has_teacher(config: DistillConfig) -> None:
    """A pre-training has a teacher if, and only if, its method has one; of one's own it is not
    known yet."""
    if config.method in METHODS:
        chosen = getattr(config, config.method.replace("-", "_"))
        check_needs_teacher(config.method, chosen, config.teacher, config.targets)


def check_one_process(does: str, remedy: str = "") -> None:
    """Raise UserError where torchrun has started several; ``does`` is the verb and what it does."""
    if os.environ.get("WORLD_SIZE", "1").strip() not in ("", "1"):
        raise UserError(f"limbeck {does}; start it without torchrun{remedy}.")


def check_choice(word: str, choices: Iterable[str], what: str) -> None:
    """Raise UserError with the nearest of the choices unless the word is one of them."""
    names = list(choices)
    if word not in names:
        raise UserError(
            f"There is no {what} '{word}'.{did_you_mean(word, names)} "
            f"Choose one of {', '.join(names)}."
        )


def check_path(path: str, option: str) -> None:
    """Raise UserError with the nearest sibling's name unless the path exists."""
    if os.path.exists(os.path.expanduser(path)):
        return
    missing = Path(path).expanduser()
    while not missing.parent.is_dir():
        missing = missing.parent
    siblings = sorted(entry.name for entry in missing.parent.iterdir())
    raise UserError(f"{option}: {missing} does not exist.{did_you_mean(missing.name, siblings)}")


def check_data(data: DataOptions) -> None:
    """The data roots are named and, where local, exist."""
    if not data.root:
        raise UserError(
            "No images are named; pass --data FOLDER (or a .parquet file, .tar shards, hf:NAME)."
        )
    for option, root in (("--data", data.root), ("--data.eval-root", data.eval_root)):
        is_one = "://" not in root and not root.startswith("hf:") and not set(root) & set("{*?[")
        if root and is_one:
            check_path(root, option)
    if data.eval_root:
        check_unset(data, ["max_holdout"], "with --data.eval-root", "data.")
    elif data.eval_split != type(data)().eval_split:
        raise UserError(
            "data.eval_split is for --data.eval-root; pass the same place as --data there to score "
            "on another split of it, or leave it out."
        )
    if data.label_fraction == 1:
        check_unset(data, ["label_seed"], "with data.label_fraction 1", "data.")


def check_all_labels(data: DataOptions) -> None:
    """Nobody is left to wonder whether images without their labels would be used."""
    if data.label_fraction < 1:
        raise UserError(
            "data.label_fraction is for what learns from labels (limbeck finetune, evaluate), and "
            "this does not, or has --label-fractions for it; leave it out."
        )


def check_student(student: StudentOptions) -> None:
    """The student's name is one that timm knows, or a budget; its width divides by its heads."""
    if is_budget(student.name):
        read_budget(student.name)
        chosen = [name for name in (*SHAPE, "weights") if name not in ("img_size", "patch_size")]
        check_unset(
            student, chosen, f"with the budget {student.name}, which chooses it", "student."
        )
        return
    check_model_name(student.name)
    stated = [option for option in SHAPE if getattr(student, option) is not None]
    check_stated(student.name, [option for option in stated if option != "q_pool"])
    if student.embed_dim and student.num_heads and student.embed_dim % student.num_heads:
        raise UserError(
            f"student.embed_dim {student.embed_dim} does not divide by student.num_heads "
            f"{student.num_heads}."
        )
    if student.img_size and student.patch_size and student.img_size % student.patch_size:
        raise UserError(
            f"student.img_size {student.img_size} does not divide by student.patch_size "
            f"{student.patch_size}."
        )
    if student.embed_dims is not None:
        head_dim = student.head_dim or HEAD_DIM
        if odd := [dim for dim in student.embed_dims if dim % head_dim]:
            raise UserError(
                f"student.embed_dims {odd[0]} does not divide by student.head_dim {head_dim}."
            )
    if student.weights is not None:
        check_source(student.weights)
        kept = ("img_size", "patch_size", "num_heads")  # what weights may leave open
        for name in ("name", *(option for option in SHAPE if option not in kept)):
            if getattr(student, name) != getattr(StudentOptions(), name):
                raise UserError(
                    f"student.{name} has no effect with student.weights, which bring their own "
                    "shape; leave one of the two out."
                )


def check_unset(section: Any, names: Iterable[str], why: str, prefix: str = "") -> None:
    """Raise UserError for an option of those that was set, though it has no effect ``why``.

    ``prefix``: the section's name and a dot; with "--" before it the option is told as a flag.
    """
    defaults = {field.name: field.default for field in fields(section)}
    for name in names:
        if getattr(section, name) != defaults[name]:
            told = name.replace("_", "-") if prefix.startswith("--") else name
            raise UserError(f"{prefix}{told} has no effect {why}; leave it out.")


def check_unused(sections: Any, kind: type, chosen: str, option: str) -> None:
    """Raise UserError for a changed section of ``kind`` that is not the chosen one."""
    for field in fields(kind):
        name = field.name.replace("_", "-")
        if name != chosen and getattr(sections, field.name) != field.default:
            raise UserError(f"Options of --{name} have no effect with {option} {chosen}.")


def check_teacher(teacher: TeacherOptions, *, any_model: bool = False) -> None:
    """The teacher's source is one that can be resolved; without one its options mean nothing.

    ``any_model``: nothing but its logits is wanted.
    """
    if teacher.source is not None:
        check_source(teacher.source, any_model=any_model)
        if teacher.model_name is None:
            return
        if not os.path.isfile(os.path.expanduser(teacher.source)):
            raise UserError(
                f"teacher.model_name is for a weights file, and {teacher.source} is none; leave it "
                "out."
            )
        check_model_name(teacher.model_name, any_model=any_model)
    elif teacher != TeacherOptions():
        raise UserError("Options of --teacher have no effect without --teacher SOURCE.")


def check_needs_teacher(
    method: str, options: MethodOptions, teacher: TeacherOptions, targets: TargetsOptions
) -> None:
    """A teacher, or a store of its answers, is named if, and only if, the method has one."""
    if targets.source is not None and teacher.source is not None:
        raise UserError(
            "--targets are a teacher's stored answers, so --teacher has no effect; leave one of "
            "the two out."
        )
    if targets.source is not None and not options.needs_teacher:
        raise UserError(f"The method {method} has no teacher; leave --targets out.")
    if options.needs_teacher and teacher.source is None and targets.source is None:
        example = (
            "regnety_160.deit_in1k" if options.trains_classifier else "vit_base_patch16_224.mae"
        )
        raise UserError(
            f"The method {method} needs a teacher; name one, such as --teacher timm:{example} or "
            "--teacher path/to/weights.safetensors; limbeck distill and search also take stored "
            "answers, --targets STORE."
        )
    if not options.needs_teacher and teacher.source is not None:
        raise UserError(f"The method {method} has no teacher; leave --teacher out.")


def check_method(method: str, method_options: tuple[str, ...], methods: Iterable[str]) -> None:
    """The method is one of those, or of the user's own module; only the latter has free options."""
    if ":" in method:
        if not has_own_module(method):
            raise UserError(
                f"method '{method}': there is no module '{method.partition(':')[0]}' here or "
                "installed."
            )
        return
    if (paper := of_paper(method)) and method not in methods:
        raise UserError(f"There is no method '{method}'.{paper}")
    check_choice(method, methods, "method")
    if method_options:
        raise UserError(
            "--method-options are for your own method (module:Class); the options of "
            f"{method} are --{method}.NAME."
        )


def check_dense(config: Any, methods: Iterable[str], sections: type) -> None:
    """What segmentation and detection have in common: their data, loop, teacher and method."""
    check_data(config.data)
    check_train(config.train, config.optim)
    check_optimizer(config.optim, type(config)().optim)
    check_teacher(config.teacher)
    check_method(config.method, config.method_options, methods)
    if config.teacher.source is None:
        names = ["method", "method_options", *(each.name for each in fields(sections))]
        check_unset(config, names, "without --teacher SOURCE")
    check_unused(config, sections, config.method, "--method")


def check_task_method(config: Any, teacher: TeacherOptions) -> None:
    """The method of a fine-tuning exists, and is chosen and set only with a teacher."""
    check_method(config.method, config.method_options, TASK_METHODS)
    check_unused(config, PerTaskMethodOptions, config.method, "--method")
    default = next(f.default for f in fields(config) if f.name == "method")
    if teacher.source is None and config.method != default:
        raise UserError(f"--method {config.method} has no effect without --teacher SOURCE.")
    for field in fields(PerTaskMethodOptions):
        if teacher.source is None and getattr(config, field.name) != field.default:
            name = field.name.replace("_", "-")
            raise UserError(f"Options of --{name} have no effect without --teacher SOURCE.")


def check_second_head(head: HeadKind | None, student: str, init_std: float | None) -> None:
    """A start is stated of a second head only where there may be one: a student's file may."""
    is_fresh = bool(student) and is_bare_name(student)
    if init_std is not None and (head == "single" or (head is None and is_fresh)):
        two = ", ".join(kind for kind in POOLS if kind != "single")
        raise UserError(
            "dist_head_init_std has no effect without a second head; leave it out, or choose one: "
            f"--head {two}."
        )


def check_train(train: TrainOptions, optim: OptimOptions) -> None:
    """The loop's options fit each other."""
    if train.fit_memory and train.accumulate_steps > 1:
        raise UserError(
            "train.fit_memory chooses the micro-batches, and train.accumulate_steps states them; "
            "leave one out."
        )
    if train.global_batch_size % train.accumulate_steps:
        raise UserError(
            f"train.global_batch_size {train.global_batch_size} does not divide by "
            f"train.accumulate_steps {train.accumulate_steps}."
        )
    if optim.warmup_epochs is not None and optim.warmup_epochs >= train.epochs:
        raise UserError(
            f"optim.warmup_epochs {optim.warmup_epochs:g} leaves nothing of train.epochs "
            f"{train.epochs:g}; lower the warm-up or train longer."
        )
    if train.wandb_project is not None and importlib.util.find_spec("wandb") is None:
        raise require_extra("wandb", "wandb", "Logging to Weights & Biases")


def check_mixing(mix: MixOptions, train: TrainOptions) -> None:
    """Images that are mixed with each other meet another one in their micro-batch."""
    num_processes = int(os.environ.get("WORLD_SIZE", "1"))
    size = train.global_batch_size // (train.accumulate_steps * num_processes)
    if mix.is_on and size < 2:
        raise UserError(
            f"Mixup and cutmix mix the images of a micro-batch with each other, and one of "
            f"train.global_batch_size {train.global_batch_size} / accumulate_steps "
            f"{train.accumulate_steps} / {num_processes} processes has {size}: nothing would be "
            "mixed; lower --train.accumulate-steps, raise --train.global-batch-size, or switch "
            "mixing off with --mix.mixup-alpha 0 --mix.cutmix-alpha 0."
        )


def check_optimizer(optim: OptimOptions, default: OptimOptions) -> None:
    """What only AdamW has is left at its default, the recipe's or the class's own, without it."""
    for name in ("betas", "eps"):
        usual = {getattr(default, name), getattr(OptimOptions(), name)}
        if optim.optimizer != "adamw" and getattr(optim, name) not in usual:
            raise UserError(
                f"optim.{name} has no effect with optim.optimizer {optim.optimizer}; leave it out."
            )


def check_start(source: str, is_needed: bool = True) -> None:
    """What a training for a task starts from is named if it is needed; a bare name is known, a path
    is there."""
    if not (source or is_needed):
        return
    if not source:
        raise UserError(
            "No student is named; pass --student RUN_FOLDER, or a timm name such as vit_tiny to "
            "train from scratch."
        )
    if is_bare_name(source):
        _check_bare_name(source)
    else:
        check_source(source)


def _check_bare_name(name: str) -> None:
    """A bare word is a timm name, with a shape or without, or else a folder that was mistyped."""
    if is_shape(name):
        check_student(StudentOptions(name=name))
        return
    try:
        check_model_name(name)
    except UserError as error:
        there = sorted(entry.name for entry in Path().iterdir())
        near = did_you_mean(name, there)
        # A model's name may be the nearer one.
        if not near or near != did_you_mean(name, [*there, *SHORT_NAMES, *known_model_names()]):
            raise
        raise UserError(
            f"There is no run or file {name} here, and no such model in timm.{near}"
        ) from error


def is_bare_name(source: str) -> bool:
    """Whether a source is a model's name (vit_tiny, or vit_tiny:depth=10): no scheme, no path."""
    has_scheme = ":" in source and not is_shape(source)
    return not (has_scheme or os.sep in source or os.path.exists(source))
