"""``limbeck evaluate`` of detectors: average precision with its interval, by class and size, and
against a baseline."""

from dataclasses import fields, replace
from typing import Any

from limbeck.config import from_plain
from limbeck.data.options import DataOptions
from limbeck.data.scenes.objects.open import with_object_classes
from limbeck.data.scenes.objects.options import ObjectOptions
from limbeck.data.scenes.objects.source import ObjectSource
from limbeck.data.skipped import SkippedLog
from limbeck.engine.distributed import ranks_session
from limbeck.evaluation.average_precision import BoxScores
from limbeck.evaluation.box_scores import Answers, compare, result_of, tables
from limbeck.evaluation.cost import costs_of
from limbeck.evaluation.scores import better_than
from limbeck.models.dense.detector import Detector
from limbeck.recipes.look.evaluate_maps import (
    SPEED_BATCH,
    WITHOUT_EFFECT,
    DenseEvaluation,
    check_knows,
    load_roles,
)
from limbeck.recipes.look.options import EvaluateConfig
from limbeck.recipes.run.boxes import scores_over
from limbeck.recipes.run.checks import check_unset
from limbeck.recipes.run.objects import open_object_images
from limbeck.recipes.run.scenes import few_scenes


def evaluate_boxes(config: EvaluateConfig) -> DenseEvaluation:
    """Score detectors on the same held-out images, which are read as the first student's run read
    its own; raises UserError where they do not fit each other."""
    check_unset(config, WITHOUT_EFFECT, "on a detector")
    with ranks_session(config.device) as ranks:
        networks = load_roles(config, Detector)
        own = networks["student"][0].facts.origin.get("config", {})
        source = open_object_images(objects_of(config.data, own.get("data", {}))).holdout
        assert isinstance(source, ObjectSource)
        named = networks["student"][0].facts.origin.get("classes")
        if named is not None and set(source.classes) <= set(named):
            source = with_object_classes(source, tuple(named), config.data.root, config.student[0])
        skipped = SkippedLog(None, len(source), config.data.max_bad_ratio)
        found: dict[str, list[tuple[BoxScores, Answers]]] = {}
        costs = {}
        batch_size = own.get("evaluation", {}).get("batch_size", SPEED_BATCH)
        for role, group in networks.items():
            for network in group:
                check_knows(network, source.classes, role)
                kept = scores_over(
                    network.to(ranks.device), source, data=config.data, batch_size=batch_size,
                    skipped=skipped,
                )  # fmt: skip
                found.setdefault(role, []).append((kept.score(), kept.answers()))
            costs[role] = costs_of(group[0], SPEED_BATCH if config.measure_speed else None)
    notes = [few.strip()] if (few := few_scenes(len(source))) else []
    notes += [skipped.summary()] if skipped.reasons else []
    results = {role: result_of(each) for role, each in found.items()}
    verdict = None
    if "baseline" in results:
        verdict = compare(results["student"], results["baseline"], better_than("the baseline"))
    return DenseEvaluation(results, costs, verdict, notes, "AP50 %", tables(results))


def objects_of(data: DataOptions, own: dict[str, Any]) -> ObjectOptions:
    """The options of this evaluation, and how a run has read its boxes."""
    names = {field.name for field in fields(DataOptions)}
    asked = {name: getattr(data, name) for name in names}
    of_boxes = {name: value for name, value in own.items() if name not in names}
    if data.root != own.get("root"):  # others may lie otherwise
        of_boxes.pop("layout", None)
    read = from_plain(ObjectOptions, of_boxes, "the run's data")
    if data.eval_split == DataOptions().eval_split:
        asked["eval_split"] = read.eval_split
    return replace(read, **asked)
