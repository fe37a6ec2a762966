"""One step with stored targets against one with the live teacher: 224 px, batch 8.

    python -m benchmarks stored_step [--data FOLDER] [--repeats 5]

Stored tokens: method relation with its defaults, ViT-B to ViT-S. Stored probabilities: method
sparse-logit, a ViT-L with 1,000 classes to TinyViT-5M. Both sides are the same distiller but for
its teacher, on the same photos; loading them is in each step, and so is the reading of the store,
from the disk's cache to the decoded answer. The weights are random: only time is measured.
"""

import statistics
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.networks import LR, Step, our_batches, step_of
from benchmarks.timing import DEVICE, measure_seconds, median_ratio, runs_well, take_turns
from limbeck.data.options import DataOptions, StoreOptions, ViewOptions
from limbeck.data.skipped import SkippedLog
from limbeck.data.source import Source
from limbeck.data.target_store import Manifest, TargetReader, open_writer
from limbeck.data.target_store.located import LocatedTargets
from limbeck.engine.distributed import Ranks
from limbeck.engine.optim import build_optimizer, set_lr
from limbeck.engine.options import OptimOptions
from limbeck.methods.distiller import Answering, Distiller
from limbeck.methods.method import Method
from limbeck.methods.options import RelationOptions, SparseLogitOptions
from limbeck.methods.relation import Relation
from limbeck.methods.sparse_logit import SparseLogit
from limbeck.methods.targets import StoredTeacher, plan_targets
from limbeck.methods.teacher import DTYPES, Precision, Teacher, autocast
from limbeck.models.attention import choose_attention
from limbeck.models.build import build_student
from limbeck.models.options import StudentOptions
from limbeck.models.timm_encoder import TimmEncoder
from limbeck.recipes.run.networks import fit_heads, set_constant_drop_path
from limbeck.recipes.targets.reading import view_recipe
from limbeck.recipes.targets.storing import Job

IMG_SIZE, BATCH_SIZE = 224, 8
PAIRS = {
    "relation": (StudentOptions(name="vit_base"), StudentOptions(name="vit_small")),
    "sparse-logit": (StudentOptions(name="vit_large"), StudentOptions(name="tiny_vit_5m")),
}
"""Teacher and student of each method."""
ROWS: tuple[tuple[str, Precision, Precision, StoreOptions, str], ...] = (
    ("relation", "bf16", "bf16", StoreOptions(token_dtype="int8"), "1.7"),
    ("relation", "bf16", "bf16", StoreOptions(token_dtype="bf16"), "1.7"),
    ("relation", "fp32", "bf16", StoreOptions(token_dtype="int8"), ""),
    ("relation", "fp32", "fp32", StoreOptions(token_dtype="int8"), "1.7"),
    ("sparse-logit", "bf16", "bf16", StoreOptions(top_k=10), ""),
    ("sparse-logit", "fp32", "fp32", StoreOptions(top_k=10), ""),
)
"""Method, precision of the student and of the teacher, what is stored, target."""


@dataclass
class Pair:
    """A method between fresh networks, the same at every call."""

    student: TimmEncoder
    teacher: Teacher
    method: Method
    views: ViewOptions


def build_pair(name: str, precision: Precision, teacher_precision: Precision) -> Pair:
    """Student in training mode, with the method's own views and drop path, and live teacher."""
    num_classes = 1000 if name == "sparse-logit" else 0
    teacher, student = (
        build_student(replace(each, img_size=IMG_SIZE), num_classes=num_classes, seed=seed)
        for seed, each in enumerate(PAIRS[name])
    )
    live = Teacher(teacher, DEVICE, teacher_precision)
    method: Method
    if name == "relation":
        relation = RelationOptions()
        method = Relation(relation, student.facts, teacher.facts)
        views = ViewOptions(color_jitter=relation.color_jitter)
        set_constant_drop_path(student, relation.drop_path_rate)
    else:
        method = SparseLogit(SparseLogitOptions(), student.facts, teacher.facts)
        views = ViewOptions()
    fit_heads(student, method)
    choose_attention(student, DEVICE, DTYPES[precision])
    return Pair(student, live, method, views)


def write_store(folder: Path, source: Source, pair: Pair, options: StoreOptions) -> Job:
    """Store one view of each photo; the job can say what that costs."""
    targets = plan_targets(options, pair.method, pair.teacher)
    facts = pair.teacher.facts
    manifest = Manifest(
        kind=targets.kind,
        params=targets.params,
        arrays=targets.arrays,
        teacher={"facts": asdict(facts), "precision": pair.teacher.precision},
        recipe=view_recipe(pair.views, pair.student.facts, 0),
        num_views=1,
        num_parts=1,
        data={},
        versions={},
    )
    job = Job(
        source=source,
        data=DataOptions(num_workers=0),
        batch_size=BATCH_SIZE,
        views=pair.views,
        student=pair.student.facts,
        method=pair.method,
        teacher=pair.teacher,
        targets=targets,
        writer=open_writer(str(folder), manifest, targets.weights),
        ranks=Ranks(device=DEVICE),
        skipped=SkippedLog(None, len(source), max_bad_ratio=0.0),
    )
    job.write(job.left())
    return job


def build_step(
    source: Source, pair: Pair, precision: Precision, store: TargetReader | None
) -> tuple[Step, Callable[[], object]]:
    """One optimiser step, and the teacher's answer to a batch alone; stored where there is one."""
    teacher: Answering = pair.teacher
    located = None
    if store is not None:
        teacher = StoredTeacher(store.manifest, store.weights(), DEVICE)
        located = LocatedTargets(store, source, 0)
    batches = our_batches(source, BATCH_SIZE, IMG_SIZE, pair.views, located)
    distiller = Distiller(pair.student, pair.method, teacher).to(DEVICE).train()
    optimizer = build_optimizer(distiller, OptimOptions())
    set_lr(optimizer, LR)
    prepared = pair.method.prepare(next(batches))

    def loss() -> Tensor:
        batch = next(batches)
        with autocast(DEVICE, precision):
            return distiller(batch).total

    step = step_of(loss, optimizer, precision)
    return step, lambda: teacher.answer(prepared, pair.method.teacher_taps)


def main(source: Source, repeats: int) -> None:
    """Print a Markdown table, one row per combination."""
    print("| method | student | teacher | stored | live, s/step | stored, s/step | ratio | target "
          "| answer, ms | KiB per view | pays back after |")  # fmt: skip
    print("|---|---|---|---|---|---|---|---|---|---|---|")
    for name, precision, teacher_precision, options, target in ROWS:
        if not runs_well((precision, teacher_precision)):
            continue
        with tempfile.TemporaryDirectory() as folder:
            torch.manual_seed(0)
            pair = build_pair(name, precision, teacher_precision)
            job = write_store(Path(folder), source, pair, options)
            everything = {0: torch.arange(len(source)).numpy()}
            epochs = job.forecast(everything).epochs
            live, _ = build_step(source, pair, precision, None)
            store = TargetReader(folder)
            stored, answer = build_step(source, pair, precision, store)
            seconds = take_turns({"live": live, "stored": stored}, repeats)
            median = {each: statistics.median(values) for each, values in seconds.items()}
            answered = statistics.median(measure_seconds(answer) for _ in range(repeats))
            what = options.token_dtype if store.manifest.kind == "tokens" else "probabilities"
            print(
                f"| {name} | {precision} | {teacher_precision} | {what} | {median['live']:.3f} | "
                f"{median['stored']:.3f} | {median_ratio(seconds['live'], seconds['stored']):.2f} "
                f"| {target} | {1e3 * answered:.1f} | {store.manifest.bytes_per_record / 1024:.2f} "
                f"| {epochs:.2f} epochs |",
                flush=True,
            )
