"""``limbeck finetune``: a student and labelled images, and a teacher if wanted, to a classifier.

Imports of torch are inside the functions: the config and its checks must answer without it.
"""

from __future__ import annotations

import logging
import shlex
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from limbeck.config import Depth, Few, NotNegative, Rate, Seed, Side, Width, options, to_plain
from limbeck.data.options import DataOptions, MixOptions, ViewOptions
from limbeck.engine.options import POSITIONS_AND_TOKENS, OptimOptions, TrainOptions
from limbeck.errors import UserError
from limbeck.methods import PerTaskMethodOptions
from limbeck.models.options import (
    GlobalPool,
    HeadKind,
    RelPos,
    StudentOptions,
    TeacherOptions,
    choose_pool,
)
from limbeck.recipes import checks
from limbeck.recipes.probes import CropEvalOptions

if TYPE_CHECKING:
    import torch

    from limbeck.data.skipped import SkippedLog
    from limbeck.data.source import Source
    from limbeck.engine.distributed import Ranks
    from limbeck.models.timm_encoder import TimmEncoder
    from limbeck.recipes.images import Images
    from limbeck.records import Batch
    from limbeck.tasks.classification import Classification

log = logging.getLogger("limbeck")


@options
class FinetuneConfig(PerTaskMethodOptions):
    """Fine-tune a student (or any encoder) to classify images, with a classification teacher if
    one is named.

    Defaults: TinyMIM's recipe for ViT-B, in smaller batches.
    """

    student: Annotated[str, tyro.conf.arg(aliases=["-s"])] = ""
    """A run's folder, a weights file, timm:NAME, hf:NAME, or a bare timm name (vit_tiny): from
    scratch."""
    out: Path = Path("runs/finetune")
    """Folder of the run: checkpoints, logs, and at the end the finished classifier."""
    seed: Seed = 0
    overwrite: bool = False
    """Start afresh where the folder holds another run."""
    img_size: Side | None = None
    """Image side in pixels; the student's own if not given (positions are interpolated)."""
    head: HeadKind | None = None
    """single: one classifier; distilled: DeiT's distillation token with a second one;
    distilled-last: G2SD's, last in the sequence, without a position; cls-distilled: MAE-Lite's, the
    class token has the second one; tinymim-star: TinyMIM*'s, wide features for both. The student's
    own kind if not given."""
    global_pool: GlobalPool | None = None
    """avg: mean of the patch tokens and a fresh norm; token: the CLS token. avg if not given, token
    with --head distilled or distilled-last, which have no other."""
    rel_pos: RelPos | None = None
    """MAE-Lite's variant of a plain ViT: biases of relative positions in every block. qkv-bias:
    with the ViT's biases of queries, keys and values (released in 2025); qv-bias: without the
    keys', and the others start at 0 (in 2023)."""
    layer_scale: NotNegative = 0.0
    """With rel_pos, scales of both branches in every block start at this: 0.1 in the release of
    2023; without scales if not given, as in 2025."""
    num_heads: Width | None = None
    """Head count of all blocks; the student's own, adapted last block included, if not given."""
    head_init_std: NotNegative = 2e-5
    """Standard deviation of a fresh classifier's weights (trunc-normal): 2e-5 in MAE's and
    TinyMIM's fine-tuning, 0.02 in MAE-Lite's."""
    dist_head_init_std: NotNegative | None = None
    """Likewise of a second head: 0.02 in G2SD's; head_init_std's if not given."""
    head_index: Path | None = None
    """Start the classifier from the student's own: a file with the old class (counted from 0) of
    each new one, a line each; -1 starts from the mean of those."""
    keep_head: bool = False
    """Go on with the student's own classifier, of the same classes: at a larger image size, say."""
    freeze_batch_norm: bool = False
    """Batch norm goes on with the statistics that it has; its weights and biases are trained."""
    keep_blocks: Few | None = None
    """Only the student's first blocks, so many, are kept; what comes after them starts afresh
    before the fine-tuning. All are kept if not given."""
    q_pool: Depth | None = None
    """How often a Hiera pools; 3 if not given, its pre-training mostly did it twice."""
    drop_path_rate: Rate = 0.2
    """Stochastic depth, rising linearly from 0 in the first block to this in the last."""
    method: str = "logit"
    """How a teacher helps: logit (DeiT), nkd (in place of the labels), or your own module:Class."""
    method_options: tuple[str, ...] = ()
    """Options of your own method, such as beta=2.0 (values as in TOML)."""

    teacher: TeacherOptions = TeacherOptions()

    data: DataOptions = DataOptions(holdout_ratio=0.2)
    views: ViewOptions = ViewOptions(
        scale=(0.08, 1.0), rand_augment="rand-m9-mstd0.5-inc1", erase_prob=0.25
    )
    mix: MixOptions = MixOptions(mixup_alpha=0.8, cutmix_alpha=1.0, label_smoothing=0.1)
    optim: OptimOptions = OptimOptions(
        base_lr=5e-4,
        min_lr=1e-6,
        betas=(0.9, 0.999),
        layer_decay=0.65,
        no_decay_names=(*POSITIONS_AND_TOKENS, "dist_token"),
    )
    train: TrainOptions = TrainOptions(epochs=100)
    evaluation: CropEvalOptions = CropEvalOptions()


def with_labels(data: DataOptions, fraction: float, seed: int) -> DataOptions:
    """The data with a part of the labels, drawn anew for each seed."""
    return replace(data, label_fraction=fraction, label_seed=seed if fraction < 1 else 0)


def check(config: FinetuneConfig) -> None:
    """All that can be wrong without opening an image or a weights file; raises UserError."""
    checks.check_data(config.data)
    checks.check_train(config.train, config.optim)
    checks.check_mixing(config.mix, config.train)
    checks.check_optimizer(config.optim, FinetuneConfig().optim)
    checks.check_teacher(config.teacher, any_model=True)
    checks.check_task_method(config, config.teacher)
    if config.head is not None:
        choose_pool(config.head, config.global_pool)
    _check_head(config)
    checks.check_second_head(config.head, config.student, config.dist_head_init_std)
    if config.layer_scale and config.rel_pos is None:
        raise UserError("layer_scale has no effect without --rel-pos; leave it out.")
    if config.rel_pos is not None and config.head not in (None, "single"):
        raise UserError(f"rel_pos is for a single head, not {config.head}; leave one of them out.")
    if not config.student:
        raise UserError(
            "No student is named; pass --student RUN_FOLDER, or a timm name such as vit_tiny to "
            "train from scratch."
        )
    if checks.is_bare_name(config.student):
        checks.check_bare_name(config.student)
        if config.keep_blocks is not None:
            raise UserError(
                f"keep_blocks has no effect with {config.student}, which starts from scratch; "
                "leave it out, or name weights."
            )
    else:
        checks.check_source(config.student)
    if config.mix.mixup_alpha == config.mix.cutmix_alpha == 0:
        default = MixOptions()
        if (config.mix.mix_prob, config.mix.switch_prob) != (default.mix_prob, default.switch_prob):
            raise UserError("mix.mix_prob and mix.switch_prob have no effect without mixing.")


def _check_head(config: FinetuneConfig) -> None:
    """At most one way for the classifier to start."""
    if config.head_index is None and not config.keep_head:
        return
    name = "keep_head" if config.keep_head else "head_index"
    if config.head_index is not None:
        if config.keep_head:
            raise UserError("keep_head and head_index exclude each other; leave one of them out.")
        checks.check_path(str(config.head_index), "--head-index")
    if config.keep_blocks is not None:
        raise UserError(
            f"{name} has no effect with keep_blocks, after which the classifier starts afresh, "
            "too; leave one of them out."
        )
    for option in ("head_init_std", "dist_head_init_std"):
        if getattr(config, option) != getattr(FinetuneConfig(), option):
            raise UserError(f"{option} has no effect with {name}; leave one of them out.")
    if config.student and checks.is_bare_name(config.student):
        raise UserError(
            f"{name} has no effect with {config.student}, which starts from scratch; leave it out, "
            "or name weights."
        )


def finetune(config: FinetuneConfig) -> Path:
    """Run the fine-tuning, or continue it; returns the run's folder with the finished classifier.

    Raises UserError for bad input, RunError where a run under way can't go on, and Interrupted
    when asked to stop (after saving).
    """
    check(config)
    from limbeck.data.workers import lost_workers_explained
    from limbeck.engine.distributed import ranks_session
    from limbeck.recipes.images import check_holdout, open_images
    from limbeck.recipes.precision import settle
    from limbeck.recipes.steps import fit_batch

    with ranks_session(config.train.device, to_plain(config)) as ranks, lost_workers_explained():
        images = open_images(config.data)
        if not images.is_labelled:
            root = config.data.eval_root if images.train.classes else config.data.root
            raise UserError(
                f"{root} has no labels; fine-tuning needs class sub-folders (data/cat/1.jpg) or a "
                "label column."
            )
        check_holdout(images)
        train = fit_batch(config.train, len(images.train))
        checks.check_mixing(config.mix, train)
        return _finetune(settle(replace(config, train=train), ranks), images, ranks)


def _finetune(config: FinetuneConfig, images: Images, ranks: Ranks) -> Path:
    from limbeck.data.skipped import SkippedLog
    from limbeck.engine.checkpoint import open_run
    from limbeck.engine.log import Log
    from limbeck.engine.loop import fit
    from limbeck.models.finished import STUDENT_FILES, save_student
    from limbeck.recipes import lineage
    from limbeck.recipes.networks import layer_of
    from limbeck.recipes.precision import resolved_plain
    from limbeck.recipes.steps import Resolved
    from limbeck.recipes.tuning_networks import build_tuning, identify

    classes = list(images.train.classes)
    nets = build_tuning(config, classes, ranks.device)
    student, facts, task = nets.student, nets.student.facts, nets.task
    identity = identify(config, nets, images, ranks)
    resolved = Resolved(**identity[0]["resolved"])
    run = open_run(config.out, *identity, overwrite=config.overwrite, makes=STUDENT_FILES)
    if run.is_finished:
        log.info("%s is finished already; nothing to do.", run.dir)
        return run.dir
    skipped = SkippedLog(run.dir / "skipped.jsonl", images.num_images, config.data.max_bad_ratio)
    if facts.has_dist_head and not nets.taught:
        log.warning("No --teacher is named, so the labels teach the distillation head as well.")
    module = nets.module.to(ranks.device)
    with Log(
        run, config.train, ranks, stage="finetune", total_steps=resolved.total_steps
    ) as report:
        report.note(resolved.sentence())
        result = fit(
            module,
            partial(tuning_stream, config, images, student, ranks, skipped, resolved.total_steps),
            total_steps=resolved.total_steps,
            steps_per_epoch=resolved.steps_per_epoch,
            optim=config.optim,
            train=config.train,
            run=run,
            ranks=ranks,
            log=report,
            layer_id=partial(layer_of, student),
            num_layers=facts.depth,
            seed=config.seed,
            probes=partial(_score, config, images.holdout, task, ranks.device, skipped),
        )
        if ranks.is_main:
            record = lineage.record(
                verb="finetune",
                config=resolved_plain(config),
                teacher=nets.teacher,
                data=images.lineage,
                extra={
                    "classes": classes,
                    "student": facts.origin,
                    "steps": resolved.total_steps,
                    "scores": result.probes,
                },
            )
            save_student(student, run.dir, record, crop_ratio=config.evaluation.crop_ratio)
            run.finish()
            report.note(skipped.summary())
    return run.dir


def build_classifier(
    config: FinetuneConfig, num_classes: int, load: Callable[..., TimmEncoder] | None = None
) -> TimmEncoder:
    """The student with its classifier and its drop path; ``load`` makes it from its source."""
    from limbeck.models.batch_norm import fix_batch_norm
    from limbeck.models.build import build_student, keep_blocks, set_drop_path
    from limbeck.models.head_rows import read_head_index
    from limbeck.models.heads import with_classifier
    from limbeck.models.rel_pos import with_rel_pos
    from limbeck.recipes.networks import load_vit

    if checks.is_bare_name(config.student):
        options = StudentOptions(name=config.student, img_size=config.img_size)
        encoder = build_student(options, seed=config.seed)
    else:
        # A weights file of an unusual width can't be read without it.
        heads = {} if config.num_heads is None else {"num_heads": config.num_heads}
        encoder = (load or load_vit)(config.student, **heads)
        if config.keep_blocks is not None:
            keep_blocks(encoder, config.keep_blocks, config.seed)
    rows = list(range(encoder.facts.num_classes)) if config.keep_head else None
    if config.head_index is not None:
        rows = read_head_index(config.head_index)
    classifier = with_classifier(
        encoder,
        num_classes,
        config.global_pool,
        config.seed,
        head=config.head,
        num_heads=config.num_heads,
        img_size=config.img_size,
        head_init_std=config.head_init_std,
        dist_head_init_std=config.dist_head_init_std,
        q_pool=config.q_pool,
        head_rows=rows,
    )
    if config.freeze_batch_norm:
        fix_batch_norm(classifier)
    if config.rel_pos is not None:
        classifier = with_rel_pos(classifier, config.rel_pos, config.layer_scale)
    depth = classifier.facts.depth
    last = max(1, depth - 1)
    set_drop_path(classifier, [config.drop_path_rate * block / last for block in range(depth)])
    return classifier.train()


def tuning_stream(
    config: FinetuneConfig,
    images: Images,
    student: TimmEncoder,
    ranks: Ranks,
    skipped: SkippedLog,
    total_steps: int,
    start_step: int,
) -> Iterator[Batch]:
    """This rank's mixed micro-batches for the steps from ``start_step`` on."""
    from limbeck.data.mixing import mix
    from limbeck.recipes.images import stream

    facts = student.facts
    batches = stream(
        images,
        config.views,
        facts,
        data=config.data,
        train=config.train,
        seed=config.seed,
        ranks=ranks,
        skipped=skipped,
        start_step=start_step,
        total_steps=total_steps,
    )
    for batch in batches:
        # The first view's seed stands for the micro-batch: mixing, too, survives a resume.
        yield mix(batch, config.mix, facts.num_classes, seed=int(batch.view_seeds[0]))


def _score(
    config: FinetuneConfig,
    holdout: Source,
    task: Classification,
    device: torch.device,
    skipped: SkippedLog,
    module: object,
    step: int,
) -> dict[str, float]:
    """top1 and top5 on the held-out images."""
    del module, step
    from limbeck.recipes.probes import EmbedOptions, embed_source

    options = EmbedOptions(**asdict(config.evaluation))
    said = embed_source(task.encoder, holdout, options, config.data, device, skipped)
    assert said.logits is not None and said.labels is not None
    return task.score(said.logits, said.labels)


def report(run_dir: Path) -> str:
    """The scores of a finished run, for the command line."""
    from limbeck.models.finished import read_record
    from limbeck.recipes.images import few_images
    from limbeck.recipes.lineage import scores_of

    num_test = read_record(run_dir)[1]["data"]["num_holdout"]
    student = shlex.quote(str(run_dir))
    found = scores_of(run_dir).items()
    scores = ", ".join(f"{name} {100 * value:.1f} %" for name, value in found)
    return (
        f"Held-out images at the end: {scores}.{few_images(num_test)}\n"
        f"The classifier is in {run_dir} (student.safetensors, student.json).\n"
        f"Other images:  limbeck evaluate --student {student} --data LABELLED_IMAGES\n"
        f'In Python:     classifier = limbeck.load("{run_dir}")'
    )
