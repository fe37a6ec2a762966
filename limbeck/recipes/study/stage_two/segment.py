"""Stage two for segmentation: trained on scenes, judged by mIoU, which is counted by image.

Imports of torch are inside the functions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import pydantic

from limbeck.errors import UserError
from limbeck.methods import PerMapMethodOptions
from limbeck.recipes.study.options import TwoStageSegmentConfig
from limbeck.recipes.study.results import Column, Result, Row, percent
from limbeck.recipes.study.runs import tuning_run
from limbeck.recipes.study.stage_two.contract import Bench, StageTwo, recall
from limbeck.recipes.study.stages import Way, arm_run, teacher_run
from limbeck.recipes.train import segment as segmenting
from limbeck.recipes.train.options import MapTuningOptions, SegmentConfig

if TYPE_CHECKING:
    from limbeck.evaluation.map_scores import MapResult
    from limbeck.evaluation.scores import Verdict
    from limbeck.models.encoder import Encoder
    from limbeck.recipes.run.images import Images
    from limbeck.recipes.run.train import Plan

SPEED_BATCH = 8
Counts = list[list[list[Annotated[int, pydantic.Field(ge=0)]]]]
"""What ``Confusion.of_images`` has."""


def teacher_config(config: TwoStageSegmentConfig) -> SegmentConfig:
    """The segmentation that makes the teacher of stage two out of stage one's."""
    sizes = (config.tune_teacher.img_size, config.specific.img_size, config.student.img_size)
    size = next((each for each in sizes if each is not None), None)
    run = teacher_run(config) | {"img_size": size}
    return tuning_run(config.tune_teacher, SegmentConfig, **run)


def arm_config(
    config: TwoStageSegmentConfig, arm: Way, seed: int, task_teacher: str | None,
    num_heads: int | None,
) -> SegmentConfig:  # fmt: skip
    """The segmentation at the end of an arm, see ``arm_run``."""
    specific, run = config.specific, arm_run(config, arm, seed, task_teacher, num_heads)
    if arm.is_taught:
        return tuning_run(specific, SegmentConfig, **run)
    shared = {field.name: getattr(specific, field.name) for field in fields(MapTuningOptions)}
    return SegmentConfig(**shared | run)


def _open(config: TwoStageSegmentConfig) -> Images:
    from limbeck.recipes.run.images import check_holdout
    from limbeck.recipes.run.scenes import open_scene_images

    images = open_scene_images(config.data)
    check_holdout(images)
    return images


def _plan(*given: Any) -> Plan:
    from limbeck.recipes.train.segmentation import plan_segmentation

    return plan_segmentation(*given)


def _measure(bench: Bench, network: Encoder, source: str, file: Path) -> Result:
    import torch

    from limbeck.evaluation.map_scores import result_of
    from limbeck.models.dense.segmenter import Segmenter
    from limbeck.recipes.run.maps import confusion_over

    if not isinstance(network, Segmenter):
        raise UserError(f"{source} is no segmenter; name a run of limbeck segment.")
    config, scenes = bench.config, bench.images.holdout

    def answer() -> Counts:
        found = confusion_over(network, scenes, config.evaluation, config.data, bench.skipped)
        return [each.tolist() for each in found.of_images]

    asked = {"evaluation": asdict(config.evaluation)}
    counts, cost = recall(file, bench, network, source, asked, answer, Counts, SPEED_BATCH)
    result = result_of([torch.tensor(counts)], scenes.classes)
    hits, truth, _ = result.counts[0].sum(0).double()
    return Result({"miou": result, "aacc": float(hits.sum() / truth.sum())}, cost)


def _compare(*given: Any) -> Verdict:
    from limbeck.evaluation.map_scores import compare

    return compare(*given)


def _notes(bench: Bench, start: Encoder) -> list[str]:
    from limbeck.recipes.run.scenes import few_scenes

    few = few_scenes(len(bench.images.holdout))
    return [few.strip()] if few else []


def _joined(runs: Sequence[Result]) -> MapResult:
    """Several runs as one result."""
    from limbeck.evaluation.map_scores import result_of

    found = [run.scores["miou"] for run in runs]
    return result_of([counts for each in found for counts in each.counts], tuple(found[0].iou))


def _row(runs: Sequence[Result]) -> Row:
    joined = _joined(runs)
    return {"interval": [joined.low, joined.high]}


def _tables(runs: Mapping[str, Sequence[Result]]) -> list[str]:
    from limbeck.evaluation.map_scores import class_table

    return [class_table({who: _joined(each) for who, each in runs.items()})]


SEGMENT = StageTwo(
    network="segmenter",
    images="SCENES",
    has_maps=True,
    taught=(*(field.name for field in fields(PerMapMethodOptions)), "method", "method_options"),
    open=_open,
    teacher=teacher_config,
    arm=arm_config,
    check=segmenting.check,
    plan=_plan,
    train=segmenting.segment,
    score="miou",
    columns=(
        Column("miou", "mIoU %", percent),
        Column("interval", "95 %", lambda ends: " to ".join(f"{100 * x:.1f}" for x in ends)),
        Column("aacc", "pixels right %", percent),
    ),
    measure=_measure,
    compare=_compare,
    notes=_notes,
    row=_row,
    tables=_tables,
)
