"""Teacher, student and method of a run, fitted to each other."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from limbeck.config import from_plain, import_own, read_values
from limbeck.data.target_store.reader import TargetReader
from limbeck.documents import as_read, read_json
from limbeck.engine.options import TrainOptions
from limbeck.errors import UserError
from limbeck.methods import BOX_METHODS, MAP_METHODS, METHODS, TASK_METHODS
from limbeck.methods.distiller import Answering
from limbeck.methods.method import Method
from limbeck.methods.options import ClassifierOptions, MethodOptions
from limbeck.methods.targets import StoredTeacher
from limbeck.methods.teacher import DTYPES, Teacher
from limbeck.models.attention import choose_attention, choose_attention_of
from limbeck.models.build import (
    build_student,
    has_sincos_positions,
    keep_dropping_paths,
    ramp_drop_path,
    set_drop_path,
)
from limbeck.models.dense.headed import Headed
from limbeck.models.encoder import Encoder, EncoderFacts, check_taps
from limbeck.models.finished import RECORD_FILE, is_finished_student, save_student, weight_hash
from limbeck.models.heads import with_classifier
from limbeck.models.options import StudentOptions, TeacherOptions
from limbeck.models.origins.decoder import load_autoencoder, load_keepsakes
from limbeck.models.origins.load import load_encoder
from limbeck.models.tensor_files import NotFiniteWeights
from limbeck.models.timm_encoder import TimmEncoder
from limbeck.recipes.run.checks import check_needs_teacher, is_bare_name
from limbeck.records import HEAD_KINDS, LOGIT_KINDS, Tap

if TYPE_CHECKING:
    from limbeck.recipes.run.options import DistillConfig, FinetuneConfig

log = logging.getLogger("limbeck")

BEFORE_DROP_PATH = (*HEAD_KINDS, "block_input", "attention_input", "attention_output")
"""The kinds of tap that a block's own drop path does not touch."""
OWNERS = ("student", "encoder")
"""What the module of a run calls its student: a distiller, and a task."""
CLASSIFIER_INIT_STD = 0.02  # TinyViT's; the tiny ones of fine-tuning are for a trained encoder


@dataclass(frozen=True)
class Networks:
    """What ``Distiller`` is made of; the student is still on the CPU."""

    student: TimmEncoder
    teacher: Answering | None
    method: Method
    method_options: MethodOptions
    reader: TargetReader | None = None
    """Of the store that the teacher's answers come from, if they do."""

    @property
    def live_teacher(self) -> Teacher | None:
        """The teacher where it is a network, not a store."""
        return self.teacher if isinstance(self.teacher, Teacher) else None


def build_networks(
    config: DistillConfig,
    device: torch.device,
    load: Callable[..., Encoder] | None = None,
    reader: TargetReader | None = None,
) -> Networks:
    """Build all three; raises UserError where they do not fit each other.

    ``load`` makes the teacher from its source, for a teacher that is not on the disk yet;
    ``reader`` is of the store that stands in its place.
    """
    kind = method_class(config.method)
    options = method_options(config, kind)
    check_needs_teacher(config.method, options, config.teacher, config.targets)
    student = start_student(config.student, options.drop_path_rate, config.seed)
    load = load or loader_of(options)
    teacher: Answering | None
    if reader is None:
        # Of a classifier the logits alone are wanted, which are best at its own image size.
        grid_of = None if options.trains_classifier else student.facts
        teacher = load_teacher(config.teacher, grid_of, device, load)
    else:
        teacher = StoredTeacher(reader.manifest, reader.weights(), device)
    if options.trains_classifier and teacher is not None and teacher.facts.num_classes:
        student = _with_classes_of(teacher.facts, student, options, config)
    choose_attention(student, device, DTYPES[config.train.precision])
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(config.seed)  # a method's own weights, if it has any
        method = kind(options, student.facts, teacher and teacher.facts)
    start = config.student.weights
    method.recall({} if start is None else load_keepsakes(start))
    rows, columns = student.facts.grid
    choose_attention_of(method, rows * columns, device, DTYPES[config.train.precision])
    train = config.train
    if method.compares_samples and (train.accumulate_steps > 1 or train.fit_memory):
        name = "fit_memory" if train.fit_memory else "accumulate_steps"
        raise UserError(
            f"The method {config.method} compares the images of a micro-batch with each other, so "
            f"train.{name} would change what it learns; leave it out."
        )
    if reader is not None and teacher is not None:
        teacher.check(
            method
        )  # that the store is of another kind says more than that heads do not fit
    fit_heads(student, method)
    _check_drop_path(options, student.facts, method.student_taps, "student")
    if teacher is not None:
        _check_drop_path(config.teacher, teacher.facts, method.teacher_taps, "teacher")
    return Networks(student, teacher, method, options, reader)


def loader_of(options: MethodOptions) -> Callable[..., Encoder]:
    """What makes the teacher of a method with these options from its source."""
    return load_autoencoder if options.reads_decoder else load_encoder


def _with_classes_of(
    teacher: EncoderFacts, student: TimmEncoder, options: ClassifierOptions, config: DistillConfig
) -> TimmEncoder:
    """The student with a fresh classifier of the teacher's classes, and its drop path."""
    log.info("The student gets a fresh classifier of %d classes.", teacher.num_classes)
    classifier = with_classifier(
        student,
        teacher.num_classes,
        options.global_pool,
        config.seed,
        head_init_std=CLASSIFIER_INIT_STD,
        q_pool=config.student.q_pool,
    )
    ramp_drop_path(classifier, options.drop_path_rate)
    return classifier.train()


def check_labels(nets: Networks, classes: Sequence[str]) -> None:
    """Raise UserError where the method learns from labels and the images' are not the teacher's.

    ``classes``: the names of the images' classes; empty without labels.
    """
    if not nets.method.needs_labels or nets.teacher is None:
        return
    facts = nets.teacher.facts
    if len(classes) != facts.num_classes:
        raise UserError(
            f"The method is to learn from labels too, and the images have "
            f"{f'{len(classes)} classes' if classes else 'none'} where the teacher knows "
            f"{facts.num_classes}; name images of its classes, or set the labels' weight to 0."
        )
    check_classes(facts, classes, "teacher")


def check_pairs(method: Method, train: TrainOptions, world_size: int) -> None:
    """Raise UserError where a method mixes pairs of images and a micro-batch cuts one in two."""
    shares = world_size * train.accumulate_steps
    if method.pairs_samples and train.global_batch_size // shares % 2:
        raise UserError(
            f"{type(method).__name__} mixes pairs of images, and the {shares} micro-batches of a "
            f"step have {train.global_batch_size // shares} each; set --train.global-batch-size "
            f"to a multiple of {2 * shares}."
        )


def method_class(name: str) -> type[Method]:
    """The class of a method: of the table, or a user's own as "module:Class"."""
    named = METHODS | TASK_METHODS | MAP_METHODS | BOX_METHODS
    kind = import_own(named.get(name, name), "method")
    if not (isinstance(kind, type) and issubclass(kind, Method)):
        raise UserError(f"method '{name}': that is no limbeck.Method; see docs/adding.md.")
    return kind


def method_options(config: DistillConfig | FinetuneConfig, kind: type[Method]) -> Any:
    """The options of the chosen method: its section, or the lines given for a user's class."""
    if ":" not in config.method:
        return getattr(config, config.method.replace("-", "_"))
    values = read_values(config.method_options, "--method-options")
    return from_plain(kind.Options, values, "method_options")


def start_student(options: StudentOptions, drop_path_rate: float, seed: int) -> TimmEncoder:
    """The student at its start: freshly initialised, or from ``options.weights``."""
    if options.weights is None:
        student = build_student(options, seed=seed)
    else:
        names = ("patch_size", "num_heads")
        overrides = {name: getattr(options, name) for name in names if getattr(options, name)}
        student = load_vit(options.weights, num_classes=0, **overrides).train()
        is_fixed = has_sincos_positions(student)
        side = options.img_size
        if side is not None and (side, side) != student.facts.img_size:
            overrides["img_size"] = side
            student = load_vit(options.weights, num_classes=0, **overrides).train()
        if is_fixed:  # no file says so, and pre-training leaves such a table alone
            student.model.pos_embed.requires_grad_(False)
    set_constant_drop_path(student, drop_path_rate)
    return student


def save_start(options: StudentOptions, seed: int, folder: Path) -> None:
    """Keep the student's start in a folder, unless it is there; another one's is replaced."""
    start = start_student(options, 0.0, seed)
    own = {"architecture": start.facts.architecture}
    own = as_read(own | {"weight_hash": weight_hash(start.model.state_dict())})
    known = read_json(folder / RECORD_FILE) if is_finished_student(folder) else {}
    if any(known.get(name) != value for name, value in own.items()):
        save_student(start, folder, {})


def set_constant_drop_path(encoder: TimmEncoder, rate: float) -> None:
    """One rate, and none in the last block: TinyMIM's pre-training."""
    set_drop_path(encoder, [rate] * (encoder.facts.depth - 1) + [0.0])


def _check_drop_path(
    options: MethodOptions | TeacherOptions, facts: EncoderFacts, taps: tuple[Tap, ...], role: str
) -> None:
    """Refuse a rate that was set where no tap comes after a block that could drop its branches."""
    rate = options.drop_path_rate
    (default,) = (f.default for f in fields(options) if f.name == "drop_path_rate")
    has_effect = facts.depth > 1 and any(
        tap.block % facts.depth > 0 or tap.kind not in BEFORE_DROP_PATH for tap in taps
    )
    if rate not in (0, default) and not has_effect:
        raise UserError(
            f"The {role}'s drop_path_rate {rate:g} has no effect: the method reads nothing of the "
            f"{role} after a block that could be dropped (never the last one); leave it out."
        )


def load_vit(source: str, **overrides: Any) -> TimmEncoder:
    """A student's start: any source but a class of one's own, whose parts are not known."""
    encoder = load_encoder(source, **overrides)
    if isinstance(encoder, Headed):
        raise UserError(
            f"'{source}' is a {encoder.facts.architecture['kind']}, its heads trained; name the "
            "encoder that it was made of."
        )
    if not isinstance(encoder, TimmEncoder):
        raise UserError(
            f"'{source}' can be a teacher, not a student: it is no Transformer of timm."
        )
    return encoder


def load_backbone(
    student: str, num_heads: int | None, seed: int, load: Callable[..., TimmEncoder]
) -> TimmEncoder:
    """What a network for a dense task is put on, in training mode: ``load``ed from its source, or
    from scratch by a bare name."""
    if is_bare_name(student):
        backbone = build_student(StudentOptions(name=student), seed=seed)
    else:
        # A weights file of an unusual width can't be read without it.
        backbone = load(student, **({} if num_heads is None else {"num_heads": num_heads})).train()
    for block in range(0 if num_heads is None else backbone.facts.depth):
        backbone.set_num_heads(block, num_heads)
    return backbone


def load_teacher(
    options: TeacherOptions,
    student: EncoderFacts | None,
    device: torch.device,
    load: Callable[..., Encoder] = load_encoder,
) -> Teacher | None:
    """The teacher, at the image size that gives it the student's grid of patches; None without.

    Where nothing but its logits is wanted, ``student`` is None: it keeps its own image size.
    """
    if options.source is None:
        return None
    names = ("img_size", "num_heads", "patch_size", "model_name")
    overrides = {name: getattr(options, name) for name in names if getattr(options, name)}
    try:
        encoder = load(options.source, **overrides)
    except NotFiniteWeights as error:
        raise UserError(f"The teacher can't teach: {error}") from error
    has_patches = any(kind not in LOGIT_KINDS for kind in encoder.offered_taps())
    is_other_grid = has_patches and student is not None and encoder.facts.grid != student.grid
    has_stages = len(set(encoder.facts.block_strides)) > 1
    if is_other_grid and has_stages and encoder.facts.num_classes:
        # A Hiera pools once more for its classifier, of which nothing is wanted here.
        overrides["num_classes"] = 0
        encoder = load(options.source, **overrides)
        is_other_grid = student is not None and encoder.facts.grid != student.grid
    if student is not None and is_other_grid and options.img_size is None:
        img_size = student.grid[0] * encoder.facts.patch_size
        log.info(
            "The teacher gets images of %d px (its patches have %d px), so that its grid of "
            "patches is the student's, %d x %d.",
            img_size, encoder.facts.patch_size, *student.grid,
        )  # fmt: skip
        encoder = load(options.source, **overrides | {"img_size": img_size})
    assert options.precision != "auto", "settled before (limbeck.recipes.run.precision)"
    teacher = Teacher(encoder, device, options.precision)
    if options.drop_path_rate:
        if not isinstance(encoder, TimmEncoder):
            raise UserError(
                "teacher.drop_path_rate is for an encoder alone that is a Transformer of timm, and "
                f"'{options.source}' is none, or is read with its decoder; leave it out."
            )
        set_constant_drop_path(encoder, options.drop_path_rate)
        keep_dropping_paths(encoder)  # of a teacher, which is in evaluation mode for good
    return teacher


def check_classes(encoder: EncoderFacts, classes: Sequence[str], role: str) -> None:
    """Raise UserError where a network names its classes and they are others; warn if it doesn't."""
    named = encoder.origin.get("classes")
    if named is None or not set(named) & set(classes):
        log.warning(
            "The %s %s; they are taken to be the images' in their order: %s%s.",
            role, "names its classes otherwise" if named else "does not name its classes",
            ", ".join(classes[:3]), ", ..." if len(classes) > 3 else "",
        )  # fmt: skip
        return
    for place, (theirs, ours) in enumerate(zip(named, classes, strict=False)):
        if theirs != ours:
            raise UserError(
                f"Class {place} of the {role} is '{theirs}' and that of the images '{ours}'; "
                f"choose a {role} that was fine-tuned on the same classes, in the same order."
            )


def teacher_identity(source: str | None, teacher: EncoderFacts | None) -> dict[str, Any] | None:
    """What a run's fingerprint holds of its teacher, wherever the weights lie; None without one.

    Where their hash is not known (a class of one's own), ``source`` stands for them.
    """
    if teacher is None:
        return None
    return teacher.identity | {"weights": teacher.identity["weights"] or source}


def layer_of(student: Encoder, name: str) -> int:
    """The layer of a parameter of a run's module; what is not the student's comes after it."""
    owner, _, own_name = name.partition(".")
    is_own = owner in OWNERS
    return student.layer_id(own_name) if is_own else student.facts.depth + 1


def fit_heads(student: TimmEncoder, method: Method) -> None:
    """Give the student's blocks the head counts that the method's taps state."""
    asked = tuple(replace(tap, num_heads=None) for tap in method.student_taps)
    check_taps(student, asked, "student")
    for tap in method.student_taps:
        own = student.facts.num_heads[tap.block]
        if tap.num_heads not in (None, own):
            log.info(
                "The student's block %d gets %d heads instead of %d, as the method asks.",
                tap.block % student.facts.depth, tap.num_heads, own,
            )  # fmt: skip
            student.set_num_heads(tap.block, tap.num_heads)
