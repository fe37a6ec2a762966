"""Stage two for segmentation: trained on scenes, judged by mIoU, which is counted by image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import pydantic

from limbeck.errors import UserError
from limbeck.methods import PerMapMethodOptions
from limbeck.recipes.study.options import TwoStageSegmentConfig
from limbeck.recipes.study.results import Column, Result, percent
from limbeck.recipes.study.stage_two.contract import Bench, StageTwo, later, recall
from limbeck.recipes.train import segment as segmenting
from limbeck.recipes.train.options import MapTuningOptions, SegmentConfig

if TYPE_CHECKING:
    from limbeck.models.encoder import Encoder
    from limbeck.recipes.run.images import Images

SPEED_BATCH = 8
Counts = list[list[list[Annotated[int, pydantic.Field(ge=0, lt=2**53)]]]]
"""What ``Confusion.of_images`` has."""


def _of_teacher(config: TwoStageSegmentConfig) -> dict[str, Any]:
    """Crops as large as those stated of the student, if not given."""
    sizes = (config.tune_teacher.img_size, config.specific.img_size, config.student.img_size)
    return {"img_size": next((each for each in sizes if each is not None), None)}


def _open(config: TwoStageSegmentConfig) -> Images:
    from limbeck.recipes.run.images import check_holdout
    from limbeck.recipes.run.scenes import open_scene_images

    images = open_scene_images(config.data)
    check_holdout(images)
    return images


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
    if {tuple(map(len, image)) for image in counts} != {(len(scenes.classes),) * 3}:
        raise UserError(f"{file} is damaged; delete it: what is in it is then measured anew.")
    result = result_of([torch.tensor(counts)], scenes.classes)
    hits, truth, _ = result.counts[0].sum(0).double()
    return Result({"miou": result, "aacc": float(hits.sum() / truth.sum())}, cost)


def _notes(bench: Bench, start: Encoder) -> list[str]:
    from limbeck.recipes.run.scenes import few_scenes

    few = few_scenes(len(bench.images.holdout))
    return [few.strip()] if few else []


def _tables(runs: Mapping[str, Sequence[Result]]) -> list[str]:
    from limbeck.evaluation.map_scores import class_table, joined

    return [class_table({who: joined([r.scores["miou"] for r in of]) for who, of in runs.items()})]


SEGMENT = StageTwo(
    network="segmenter",
    images="SCENES",
    has_maps=True,
    run=SegmentConfig,
    untaught=MapTuningOptions,
    taught=(*(field.name for field in fields(PerMapMethodOptions)), "method", "method_options"),
    of_arm=lambda specific, arm: {},
    of_teacher=_of_teacher,
    check=segmenting.check,
    plan=later("limbeck.recipes.train.segmentation:plan_segmentation"),
    train=segmenting.segment,
    open=_open,
    score="miou",
    columns=(Column("miou", "mIoU %", percent), Column("aacc", "pixels right %", percent)),
    measure=_measure,
    compare=later("limbeck.evaluation.map_scores:compare"),
    notes=_notes,
    tables=_tables,
    unread=("img_size",),
)
