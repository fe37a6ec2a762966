"""What the CIFAR-10 experiments share: a teacher, a student, and arms under one budget.

An arm is what a student is pre-trained with before it is fine-tuned with labels (a distillation
method with its options, masked pixels alone, or nothing), and whether the fine-tuned teacher helps
with that. All arms and seeds of an experiment have
the same student, crops, steps and fine-tuning. Every run is an ordinary run folder: a stopped
experiment is continued by the same command.
"""

import argparse
import logging
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

import limbeck
from limbeck.data.options import CorruptionOptions, DataOptions, MixOptions, ViewOptions
from limbeck.documents import read_json
from limbeck.engine.options import OptimOptions, TrainOptions
from limbeck.evaluation.report import table
from limbeck.methods.options import MethodOptions
from limbeck.models.build import build_student
from limbeck.models.finished import save_student
from limbeck.models.options import GlobalPool, HeadKind, StudentOptions, TeacherOptions
from limbeck.recipes.look.robustness import corrupted_scores
from limbeck.recipes.run.images import open_images
from limbeck.recipes.run.networks import method_class
from limbeck.recipes.run.options import CropEvalOptions, EmbedOptions, ProbeOptions
from limbeck.recipes.study.results import cell

NUM_IMAGES = 50_000
BATCH_SIZE = 64
TOP1 = "finetuned top-1"
AT_THE_END = 1_000_000  # probe_every: once, with the last step
STUDENT = StudentOptions(
    name="vit_tiny_patch16_224", img_size=32, patch_size=4, embed_dim=96, depth=4, num_heads=3
)


@dataclass(frozen=True)
class Arm:
    """``method`` None: fine-tuned from scratch, ``more`` times as long as the others.

    ``head``, ``global_pool``: of the fine-tuning. Where ``is_taught``, its teacher is the
    classifier of ``--classifier``.
    """

    method: str | None
    options: MethodOptions | None = None
    teacher: Mapping[str, float] = field(default_factory=dict)
    more: int = 1
    head: HeadKind | None = None
    global_pool: GlobalPool | None = None
    is_taught: bool = False


@dataclass(frozen=True)
class Budget:
    """Images seen in pre-training and in fine-tuning (with repetition)."""

    pretrain: int
    finetune: int


def run(
    description: str,
    arms: Mapping[str, Arm],
    default: Budget,
    seeds: int,
    notes: Mapping[str, Mapping[str, Any]] | None = None,
    student: StudentOptions = STUDENT,
    fractions: Sequence[float] = (1.0,),
    corruptions: CorruptionOptions | None = None,
) -> None:
    """The command line of an experiment: run all arms, then print the table.

    ``notes``: further cells for the rows of arms. ``fractions``: parts of the labels that each
    student is fine-tuned with, for as many steps each. ``corruptions``: the test images under
    which each fine-tuned student is asked again. Where arms are taught, the classifier that does it
    has a row of its own.
    """
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=description, formatter_class=formatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with cifar10_*.parquet")
    parser.add_argument("--teacher", type=Path, required=True, help="a run of teacher.toml")
    if any(arm.is_taught for arm in arms.values()):
        parser.add_argument("--classifier", type=Path, required=True, help="the same, fine-tuned")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=seeds)
    parser.add_argument("--pretrain", type=int, default=default.pretrain)
    parser.add_argument("--finetune", type=int, default=default.finetune)
    parser.add_argument("--arms", nargs="+", default=list(arms), choices=list(arms), metavar="ARM")
    parser.add_argument("--processes", type=int, default=2, help="runs at a time, one thread each")
    arguments = parser.parse_args()
    budget = Budget(arguments.pretrain, arguments.finetune)
    # Seed by seed: an experiment that is cut short has whole rows of the first seeds.
    jobs = [(name, seed) for seed in range(arguments.seeds) for name in arguments.arms]
    context = get_context("spawn")
    with ProcessPoolExecutor(arguments.processes, context, torch.set_num_threads, (1,)) as pool:
        pending = {
            job: pool.submit(run_arm, *job, arms[job[0]], budget, student, fractions, arguments)
            for job in jobs
        }
        results = {job: pending[job].result() for job in jobs}
    rows = {
        name: [results[name, seed] for seed in range(arguments.seeds)] for name in arguments.arms
    }
    classifier = getattr(arguments, "classifier", None)
    folders = {job: _folder(arguments.out, *job) / "finetune" for job in jobs}
    if classifier is not None:
        results["teacher", 0] = {TOP1: _score_of(classifier)}
        rows["teacher"] = [results["teacher", 0]]
        folders["teacher", 0] = classifier
        for scores in results.values():
            scores["of the teacher's top-1"] = scores[TOP1] / results["teacher", 0][TOP1]
    if corruptions is not None:
        found = _corrupted(folders, corruptions, arguments)
        for job, scores in results.items():
            scores["corrupted top-1"] = found[job]
    notes = notes or {}
    print(table([{"arm": name, **_cells(rows[name]), **notes.get(name, {})} for name in rows]))


def run_arm(
    name: str,
    seed: int,
    arm: Arm,
    budget: Budget,
    student: StudentOptions,
    fractions: Sequence[float],
    arguments: argparse.Namespace,
) -> dict[str, float]:
    """One student: its scores on the test images, frozen and fine-tuned, in 0..1."""
    logging.getLogger("limbeck").setLevel(logging.WARNING)
    out, data = _folder(arguments.out, name, seed), _data(arguments)
    scores: dict[str, float] = {}
    if arm.method is None:
        pretrained = out / "untrained"
        save_student(build_student(student, seed=seed), pretrained, {})
    else:
        pretrained = _pretrain(
            arm, student, data, seed, out / "pretrain", budget, arguments.teacher
        )
        frozen = read_json(pretrained / "student.json")["scores"]
        scores |= {"linear top-1": frozen["linear_top1"], "knn top-1": frozen["knn_top1"]}
    for fraction in fractions:
        scores[_finetuned(fraction)] = _finetune(
            arm, student, data, seed, fraction, pretrained, out, budget, arguments
        )
    return scores


def _folder(out: Path, name: str, seed: int) -> Path:
    return out / (re.sub(r"\W+", "_", name) + f"_{seed}")


def _data(arguments: argparse.Namespace) -> DataOptions:
    return DataOptions(
        root=str(arguments.data / "cifar10_train.parquet"),
        eval_root=str(arguments.data / "cifar10_test.parquet"),
        num_workers=0,
    )


def _finetune(
    arm: Arm,
    student: StudentOptions,
    data: DataOptions,
    seed: int,
    fraction: float,
    pretrained: Path,
    out: Path,
    budget: Budget,
    arguments: argparse.Namespace,
) -> float:
    """Top-1 (0..1) after fine-tuning with a part of the labels, another part with each seed."""
    if fraction < 1:
        data = replace(data, label_fraction=fraction, label_seed=seed)
    run_dir = limbeck.finetune(
        limbeck.FinetuneConfig(
            student=str(pretrained),
            out=out / ("finetune" if fraction == 1 else f"finetune_{fraction:g}"),
            seed=seed,
            head=arm.head,
            global_pool=arm.global_pool,
            teacher=TeacherOptions(source=str(arguments.classifier) if arm.is_taught else None),
            drop_path_rate=0.0,
            num_heads=student.num_heads,  # as TinyMIM did: an adapted block goes back
            data=data,
            views=ViewOptions(scale=(0.4, 1.0)),
            mix=MixOptions(),
            optim=OptimOptions(
                base_lr=4e-3,
                betas=(0.9, 0.999),
                layer_decay=0.75 if arm.method else 1.0,
                no_decay_names=("pos_embed", "cls_token"),
            ),
            train=_train(arm.more * budget.finetune, fraction),
            evaluation=CropEvalOptions(crop_ratio=1.0, batch_size=250),
        )
    )
    return _score_of(run_dir)


def _score_of(run_dir: Path) -> float:
    return float(read_json(run_dir / "student.json")["scores"]["top1"])


def _corrupted(
    folders: Mapping[tuple[str, int], Path],
    corruptions: CorruptionOptions,
    arguments: argparse.Namespace,
) -> dict[tuple[str, int], float]:
    """Mean top-1 (0..1) over all corruptions and severities; every network sees the same."""
    data = _data(arguments)
    named = {f"{name} {seed}": folder for (name, seed), folder in folders.items()}
    found = corrupted_scores(
        {name: limbeck.load(folder) for name, folder in named.items()},
        open_images(data),
        corruptions,
        torch.device("cpu"),
        data=data,
        embed=EmbedOptions(crop_ratio=1.0, batch_size=250),
        keep=arguments.out / "corrupted",
    )
    means = [each["corrupted_top1"].score.mean for each in found.values()]
    return dict(zip(folders, means, strict=True))


def _pretrain(
    arm: Arm,
    student: StudentOptions,
    data: DataOptions,
    seed: int,
    out: Path,
    budget: Budget,
    teacher: Path,
) -> Path:
    assert arm.method is not None
    section = {} if arm.options is None else {arm.method.replace("-", "_"): arm.options}
    has_teacher = method_class(arm.method).Options.needs_teacher
    return limbeck.distill(
        limbeck.DistillConfig(
            method=arm.method,
            out=out,
            seed=seed,
            student=student,
            teacher=TeacherOptions(source=str(teacher) if has_teacher else None, **arm.teacher),
            data=data,
            optim=OptimOptions(base_lr=4e-3),
            train=_train(budget.pretrain),
            probes=ProbeOptions(crop_ratio=1.0, num_train=2000, num_test=2000, batch_size=250),
            **section,
        )
    )


def _train(num_images: float, fraction: float = 1.0) -> TrainOptions:
    return TrainOptions(
        epochs=num_images / (fraction * NUM_IMAGES),
        global_batch_size=BATCH_SIZE,
        probe_every=AT_THE_END,
        save_every=200,
    )


def _finetuned(fraction: float) -> str:
    return TOP1 if fraction == 1 else f"finetuned, {100 * fraction:g} % of the labels top-1"


def _place(name: str) -> bool:
    return not name.startswith("finetuned")


def _cells(scores: Sequence[Mapping[str, float]]) -> dict[str, str]:
    cells = {}
    for name in dict.fromkeys(name for one in scores for name in sorted(one, key=_place)):
        if shown := cell([100 * one[name] for one in scores if name in one]):
            cells[f"{name} %"] = shown
    return cells
