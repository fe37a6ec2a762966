"""``limbeck evaluate``: is the student any good, and did the distillation help?

Student, teacher and the same student undistilled answer the same probes on the same images.
"""

from __future__ import annotations

import logging
import tempfile
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from typing_extensions import TypedDict

from limbeck.config import to_plain
from limbeck.data.options import DataOptions
from limbeck.documents import fit, read_json, write_json
from limbeck.errors import RunError, UserError
from limbeck.files import disk_errors, write_text
from limbeck.recipes.look import robustness
from limbeck.recipes.look.claims import (
    are_imagenet,
    claims_of,
    class_notes,
    other_crop,
    seen_images,
    untrained,
)
from limbeck.recipes.look.options import EvaluateConfig
from limbeck.recipes.run import checks

if TYPE_CHECKING:
    from limbeck.evaluation.class_scores import ClassResult
    from limbeck.evaluation.scores import Claims, Score, Verdict
    from limbeck.recipes.look.evaluate_maps import DenseEvaluation

log = logging.getLogger("limbeck")

SCORES_FILE = "scores.json"
SPEED_BATCH = 32
DENSE = {
    "segmenter": "limbeck.recipes.look.evaluate_maps:evaluate_maps",
    "detector": "limbeck.recipes.look.evaluate_boxes:evaluate_boxes",
}
"""What scores networks of a kind that has scores of its own."""


class _OwnData(TypedDict, total=False):
    root: str
    eval_root: str
    holdout_ratio: float
    max_holdout: int


class _Record(TypedDict, total=False):
    config: dict[str, Any]


@dataclass(frozen=True)
class Row:
    """One line of the table: a role, its runs' scores by probe, all of them in one, its cost.

    ``by_class``: of labelled images, its runs' answers together; ``features``: numbers of its
    features that need no labels, means over the runs.
    """

    role: str
    runs: list[dict[str, Score]]
    scores: dict[str, Score]
    cost: dict[str, float]
    features: dict[str, float]
    by_class: ClassResult | None


@dataclass(frozen=True)
class Evaluation:
    """What ``evaluate`` found: rows, a verdict by probe, the probe that decides, notes.

    ``paired``: what that probe's test images say, image by image, in a sentence. ``corrupted``:
    answers under corruptions (``robustness.summarize``), where asked for.
    """

    rows: list[Row]
    verdicts: dict[str, Verdict]
    deciding: str
    paired: str
    notes: list[str]
    corrupted: dict[str, Any] | None = None

    def plain(self) -> dict[str, Any]:
        """JSON-ready data."""
        return {
            "rows": [
                {
                    "role": row.role,
                    "cost": row.cost,
                    "features": row.features,
                    "by_class": row.by_class and row.by_class.plain(),
                    "scores": {name: score.plain() for name, score in row.scores.items()},
                    "runs": [{name: run[name].mean for name in run} for run in row.runs],
                }
                for row in self.rows
            ],
            "verdicts": {name: vars(verdict) for name, verdict in self.verdicts.items()},
            "deciding": self.deciding,
            "paired": self.paired,
            "notes": self.notes,
            "corrupted": self.corrupted,
        }


def check(config: EvaluateConfig) -> None:
    """All that can be wrong without opening an image or a weights file; raises UserError."""
    checks.check_data(config.data)
    checks.check_one_process("evaluate is one process, and asks one network after the other")
    checks.check_choice(config.device, ("auto", "cpu", "cuda"), "device")
    if not config.student:
        raise UserError("No student is named; pass --student RUN_FOLDER (one or more).")
    for source in (*config.student, *config.baseline, *filter(None, [config.teacher])):
        checks.check_source(source)


def evaluate(config: EvaluateConfig) -> Evaluation | DenseEvaluation:
    """Probe all networks on the same images, or score segmenters or detectors on the same
    annotated ones; raises UserError for bad input.
    """
    check(config)
    config = replace(config, data=held_out_alike(config))
    if config.out is not None:
        claim_out(config, config.out)
    dense = DENSE.get(_kind_of(config.student[0]))
    if dense is not None:
        module, _, function = dense.partition(":")
        scored: DenseEvaluation = getattr(import_module(module), function)(config)
        if config.out is not None:
            write_json(config.out / SCORES_FILE, {"config": request_of(config), **scored.plain()})
            write_text(config.out / "table.md", report(scored) + "\n")
        return scored
    from limbeck.data.skipped import SkippedLog
    from limbeck.engine.distributed import ranks_session
    from limbeck.evaluation.cost import costs_of
    from limbeck.evaluation.paired import statement
    from limbeck.evaluation.robustness import summarize
    from limbeck.models.origins.load import load_encoder
    from limbeck.recipes.look.prober import Prober
    from limbeck.recipes.look.shifted import open_shifted
    from limbeck.recipes.run.images import check_holdout, open_images

    with ranks_session(config.device, to_plain(config)) as ranks:
        images = open_images(config.data)
        if not images.is_labelled and config.teacher is None:
            raise UserError(
                f"{config.data.root} has no labels, so students can only be compared with their "
                "teacher's neighbourhoods; pass --teacher, or class sub-folders."
            )
        check_holdout(images)
        robustness.check_images(images, config.corruptions)
        shifted = open_shifted(config, images)
        students = [load_encoder(source) for source in config.student]
        baselines = [load_encoder(source) for source in config.baseline]
        claims, notes = claims_of(students, bool(baselines))
        baselines = baselines or [untrained(student, seed) for seed, student in enumerate(students)]
        notes += seen_images(students, images) + other_crop(students, config.embed.crop_ratio)
        teachers = [load_encoder(config.teacher)] if config.teacher else []
        skipped = SkippedLog(None, images.num_images, config.data.max_bad_ratio)
        groups = {"student": students, "baseline": baselines, "teacher": teachers}
        groups = {role: encoders for role, encoders in groups.items() if encoders}
        notes += class_notes(groups, images.whole.classes)
        probe = Prober(config, images, ranks.device, skipped, shifted)
        if not images.is_labelled:
            probe.target = probe.embed(teachers[0], images.holdout)
            groups.pop("teacher")  # it agrees with itself
        scores = {role: [probe.scores(each) for each in group] for role, group in groups.items()}
        corrupted = None
        if config.corruptions.wanted:
            ask = partial(
                robustness.corrupted_scores, images=images, options=config.corruptions,
                device=ranks.device, data=config.data, embed=config.embed, skipped=skipped,
                keep=config.out,
            )  # fmt: skip
            answers = robustness.ask_roles(groups, probe.linear, ask)
            robustness.add_scores(scores, answers)
            corrupted = summarize(answers, is_imagenet=are_imagenet(images.whole.classes))
            notes += robustness.notes_of(groups, config.corruptions)
        speed_batch = SPEED_BATCH if config.measure_speed else None
        rows = [
            Row(
                role, each, joined(each), costs_of(groups[role][0], speed_batch),
                probe.features_of(groups[role]), probe.classes_of(groups[role]),
            )
            for role, each in scores.items()
        ]  # fmt: skip
    verdicts, deciding = verdicts_of(scores["student"], scores["baseline"], claims)
    notes = [*probe.notes, *notes]
    paired = statement(*([run[deciding] for run in scores[r]] for r in ("student", "baseline")))
    found = Evaluation(rows, verdicts, deciding, paired, notes, corrupted)
    if skipped.reasons:
        found.notes.append(skipped.summary())
    if config.out is not None:
        title = f"Frozen features on {config.data.root}, {len(images.holdout):,} test images"
        write(found, config, config.out, title)
    return found


def _kind_of(source: str) -> str:
    """The kind of a finished student; "" of any other source."""
    from limbeck.models.finished import is_finished_student, read_record

    folder = Path(source).expanduser()
    return read_record(folder)[1]["architecture"]["kind"] if is_finished_student(folder) else ""


def held_out_alike(config: EvaluateConfig) -> DataOptions:
    """The data, holding out what the students' own runs did of the same images.

    What one ratio holds out, every larger one does: of several students the smallest is taken.
    """
    data, default = config.data, EvaluateConfig().data
    if data.eval_root or (data.holdout_ratio, data.max_holdout) != (
        default.holdout_ratio,
        default.max_holdout,
    ):
        return data
    held_out = []
    for source in config.student:
        own = _data_of_run(Path(source).expanduser())
        if own is None or own["eval_root"]:
            continue
        places = {Path(root).expanduser().resolve() for root in (own["root"], data.root)}
        if len(places) == 1:
            held_out.append((own["holdout_ratio"], own["max_holdout"], source))
    ratio, most, source = min(held_out, default=(0.0, 0, ""))
    if not 0 < ratio < data.holdout_ratio or not most:
        return data
    log.info("Test images are those that %s has held out (--data.holdout-ratio %g).", source, ratio)
    return replace(data, holdout_ratio=ratio, max_holdout=min(most, data.max_holdout))


def _data_of_run(folder: Path) -> _OwnData | None:
    from limbeck.models.finished import RECORD_FILE, is_finished_student

    if not is_finished_student(folder):
        return None
    file = folder / RECORD_FILE
    data = read_json(file, _Record).get("config", {}).get("data", {})
    own: _OwnData = fit(data, _OwnData, str(file))
    return own if _OwnData.__annotations__.keys() <= own.keys() else None


def claim_out(config: EvaluateConfig, out: Path) -> None:
    """Refuse before the work an --out that can't be written or holds another request's scores."""
    check_writable(out)
    scores = out / SCORES_FILE
    is_other = scores.exists() and read_json(scores).get("config") != request_of(config)
    if is_other and not config.overwrite:
        raise UserError(
            f"{out} holds the scores of another evaluation; choose another --out, or replace them "
            "with --overwrite."
        )


def check_writable(out: Path) -> None:
    """Make the folder; raises UserError where it can't be written."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            pass
    except OSError as error:
        raise UserError(f"Can't write in {out}: {error.strerror}; choose another --out.") from error


def request_of(config: EvaluateConfig) -> dict[str, Any]:
    """What was asked for, as plain data: the config but for its leave to overwrite."""
    return to_plain(replace(config, overwrite=False))


def joined(scores: list[dict[str, Score]]) -> dict[str, Score]:
    """One score per probe that all have, for several runs of the same recipe."""
    import torch

    from limbeck.evaluation.scores import score_of

    if len(scores) == 1:
        return scores[0]
    return {
        name: score_of(torch.stack([run[name].per_image for run in scores]), first.how)
        for name, first in scores[0].items()
        if all(name in run for run in scores)
    }


def verdicts_of(
    student: list[dict[str, Score]], baseline: list[dict[str, Score]], claims: Claims
) -> tuple[dict[str, Verdict], str]:
    """A verdict on each probe that both have, and the probe that decides."""
    from limbeck.evaluation.scores import compare

    names = [name for name in student[0] if all(name in run for run in (*student, *baseline))]
    verdicts = {
        name: compare([run[name] for run in student], [run[name] for run in baseline], claims)
        for name in names
    }
    deciding = next(name for name in ("top1", "linear_top1", "neighbours") if name in verdicts)
    return verdicts, deciding


def report(found: Evaluation | DenseEvaluation) -> str:
    """The table and the verdict, for people."""
    if not isinstance(found, Evaluation):
        from limbeck.recipes.look import evaluate_maps

        return evaluate_maps.report(found)
    from limbeck.evaluation.class_scores import class_table
    from limbeck.evaluation.robustness import tables

    lines = [table_of(found), ""]
    verdict = found.verdicts[found.deciding]
    lines += [f"Verdict ({found.deciding}): {verdict.why}", f"  {found.paired}"]
    lines += [
        f"  {name}: {100 * each.difference:+.1f} points "
        f"(95 % interval {100 * each.low:+.1f} to {100 * each.high:+.1f})"
        for name, each in found.verdicts.items()
        if name != found.deciding and not name.endswith("top5")
    ]
    by_class = found.rows[0].by_class
    of_classes = [] if by_class is None else [class_table(by_class)]
    for text in [*of_classes, *tables(found.corrupted or {})]:
        lines += ["", text, ""]
    lines += [f"Note: {note}" for note in found.notes]
    return "\n".join(lines)


def table_of(found: Evaluation) -> str:
    """The rows as a Markdown table; percentages with their 95 % intervals."""
    from limbeck.evaluation.report import TERMINAL, table

    rows = []
    for row in found.rows:
        cells: dict[str, Any] = {
            "network": row.role + (f" ({len(row.runs)} runs)" if len(row.runs) > 1 else ""),
            "M params": f"{row.cost['parameters'] / 1e6:.2f}",
            "G MACs": f"{row.cost['macs'] / 1e9:.3g}",
        }
        if "images_per_second" in row.cost:
            cells["images/s"] = f"{row.cost['images_per_second']:.0f}"
        for name, score in row.scores.items():
            cells[name] = f"{100 * score.mean:.1f} [{100 * score.low:.1f}, {100 * score.high:.1f}]"
        if row.by_class is None:  # without labels there is little else to tell
            cells |= {name: f"{value:.3g}" for name, value in row.features.items()}
        else:
            cells["calibration error %"] = f"{100 * row.by_class.calibration:.1f}"
        rows.append(cells)
    columns = dict.fromkeys(column for cells in rows for column in cells)
    return table(rows, sorted(columns, key=lambda column: column.endswith("top5")), TERMINAL)


def write(found: Evaluation, config: EvaluateConfig, out: Path, title: str) -> None:
    """scores.json, table.md and, where matplotlib is installed, pictures as PNG and SVG."""
    from limbeck.evaluation.pictures import draw_confusion, draw_corruptions
    from limbeck.evaluation.report import save_bars

    probes = [name for name in found.rows[0].scores if not name.endswith("top5")]
    bars = {
        row.role: {
            name: [run[name].mean for run in row.runs] for name in probes if name in row.scores
        }
        for row in found.rows
    }
    scores = {"config": request_of(config), **found.plain()}
    try:
        write_json(out / SCORES_FILE, scores)
        write_text(out / "table.md", report(found) + "\n")
        with disk_errors(out):
            save_bars(out / "probes.png", bars, title=title)
            if by_class := found.rows[0].by_class:
                draw_confusion(out / "confusion.png", by_class.confusion.numpy(), by_class.classes)
            if found.corrupted:
                draw_corruptions(out / "corruptions.png", found.corrupted)
    except RunError:
        log.info("%s", report(found))  # or the work would be lost
        raise
    except UserError as error:
        log.info("No picture: %s", error)
