"""Stage two for classification: fine-tuned, judged by the images that a classifier gets right."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import pydantic

from limbeck.methods import PerTaskMethodOptions
from limbeck.models.options import choose_pool
from limbeck.recipes.look.claims import class_notes, columns_of
from limbeck.recipes.look.robustness import check_images, corrupted_scores, notes_of
from limbeck.recipes.run.options import EmbedOptions, FinetuneConfig
from limbeck.recipes.study.options import SpecificOptions, TuningOptions, TwoStageConfig
from limbeck.recipes.study.results import Column, Result, percent
from limbeck.recipes.study.stage_two.contract import Bench, StageTwo, later, recall
from limbeck.recipes.study.stages import Way
from limbeck.recipes.train import finetune as finetuning

if TYPE_CHECKING:
    from limbeck.models.encoder import Encoder
    from limbeck.recipes.run.images import Images

log = logging.getLogger("limbeck")

DIST_HEAD_INIT_STD = 0.02  # of the head that the teacher has to itself: G2SD, as released
SPEED_BATCH = 32
Hits = dict[str, Annotated[str, pydantic.Field(pattern="^[01]+$")]]
"""By score a digit for each image: 1 where it is right."""


def _of_arm(specific: SpecificOptions, arm: Way) -> dict[str, Any]:
    if not arm.is_taught:
        # There is nothing for a second head to learn: the first one stays as it is.
        pool = choose_pool(specific.head, specific.global_pool)
        return {"head": "single", "global_pool": pool, "head_init_std": specific.head_init_std}
    has_own_start = specific.head == "single" or specific.dist_head_init_std is not None
    return {} if has_own_start else {"dist_head_init_std": DIST_HEAD_INIT_STD}


def _open(config: TwoStageConfig) -> Images:
    from limbeck.recipes.run.images import check_holdout, check_labelled, open_images

    images = open_images(config.data)
    check_labelled(
        images, config.data, ", and stage two needs them:",
        " Images for stage one alone are --unlabelled; stage one alone is limbeck distill.",
    )  # fmt: skip
    check_holdout(images)
    check_images(images, config.corruptions)
    return images


def _measure(bench: Bench, network: Encoder, source: str, file: Path) -> Result:
    import torch

    from limbeck.evaluation.predictions import top_scores
    from limbeck.evaluation.scores import score_of
    from limbeck.recipes.run.probes import centre_crops

    config, images = bench.config, bench.images
    classes = images.train.classes
    columns = columns_of(network, classes)
    bench.notes.extend(class_notes({f"network {source}": [network]}, classes))
    asked: dict[str, Any] = {"evaluation": {"crop_ratio": config.evaluation.crop_ratio}}
    if columns != list(range(len(classes))):
        asked["columns"] = columns

    def answer() -> Hits:
        shown = centre_crops(
            network, images.holdout, config.evaluation, config.data, bench.device, bench.skipped
        )
        scores = {} if columns is None else top_scores(network, shown, columns)
        return {k: "".join(str(int(hit)) for hit in v.per_image) for k, v in scores.items()}

    hits, cost = recall(file, bench, network, source, asked, answer, Hits, SPEED_BATCH)
    scores = {
        name: score_of(torch.tensor([digit == "1" for digit in text]), name)
        for name, text in hits.items()
    }
    corrupted = {}
    if config.corruptions.wanted and columns is not None:
        if "output" in network.offered_taps():
            corrupted = corrupted_scores(
                {source: network}, images, config.corruptions, bench.device, data=config.data,
                embed=EmbedOptions(**asdict(config.evaluation)), skipped=bench.skipped,
                keep=file.parent,
            )[source]  # fmt: skip
        else:
            log.warning("%s says its logits alone, so it is not shown corrupted images.", source)
    scores |= {name: each.score for name, each in corrupted.items()}
    return Result(scores, cost, corrupted)


def _notes(bench: Bench, start: Encoder) -> list[str]:
    from limbeck.recipes.run.images import few_images

    options, few = bench.config.corruptions, few_images(len(bench.images.holdout))
    of_corruptions = notes_of({"": [start]}, options) if options.wanted else []
    return of_corruptions + ([few.strip()] if few else [])


def _summary(runs: Mapping[str, Sequence[Result]]) -> dict[str, Any]:
    """Answers under corruptions; empty where they were not asked."""
    from limbeck.evaluation.robustness import summarize

    return summarize({name: [run.corrupted for run in each] for name, each in runs.items()})


def _tables(runs: Mapping[str, Sequence[Result]]) -> list[str]:
    from limbeck.evaluation.robustness import tables

    return tables(_summary(runs))


CLASSIFY = StageTwo(
    network="classifier",
    images="LABELLED_IMAGES",
    has_maps=False,
    run=FinetuneConfig,
    untaught=TuningOptions,
    taught=(
        *(field.name for field in fields(PerTaskMethodOptions)),
        *("method", "method_options", "dist_head_init_std"),
    ),
    of_arm=_of_arm,
    of_teacher=lambda config: {"img_size": config.teacher.img_size, "head": "single"},
    check=finetuning.check,
    plan=later("limbeck.recipes.train.tuning:plan_tuning"),
    train=finetuning.finetune,
    open=_open,
    score="top1",
    columns=(
        Column("top1", "top-1 %", percent),
        Column("top5", "top-5 %", percent),
        Column("corrupted_top1", "corrupted %", percent),
    ),
    measure=_measure,
    compare=later("limbeck.evaluation.scores:compare"),
    notes=_notes,
    more=lambda runs: {"corrupted": _summary(runs)},
    tables=_tables,
)
