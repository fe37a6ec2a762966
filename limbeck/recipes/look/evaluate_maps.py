"""``limbeck evaluate`` of segmenters: mIoU with its interval, by class, and against a baseline."""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

import torch

from limbeck.config import from_plain
from limbeck.data.options import DataOptions
from limbeck.data.scenes.open import with_classes
from limbeck.data.scenes.options import SceneOptions
from limbeck.data.scenes.scene import Scenes
from limbeck.data.skipped import SkippedLog
from limbeck.engine.distributed import ranks_session
from limbeck.errors import UserError
from limbeck.evaluation.box_scores import BoxResult
from limbeck.evaluation.cost import costs_of
from limbeck.evaluation.map_scores import MapResult, class_table, compare, result_of
from limbeck.evaluation.options import MapOptions
from limbeck.evaluation.report import TERMINAL, table
from limbeck.evaluation.scores import Verdict, better_than
from limbeck.models.dense.headed import Headed
from limbeck.models.dense.segmenter import Segmenter
from limbeck.models.origins.load import load_encoder
from limbeck.recipes.look.options import EvaluateConfig
from limbeck.recipes.run.checks import check_unset
from limbeck.recipes.run.maps import confusion_over
from limbeck.recipes.run.networks import check_classes
from limbeck.recipes.run.scenes import few_scenes, open_scene_images

WITHOUT_EFFECT = ("num_labels", "label_draws", "k", "max_train", "embed", "corruptions")
SPEED_BATCH = 8
Dense = TypeVar("Dense", bound=Headed)


@dataclass(frozen=True)
class DenseEvaluation:
    """What was found of segmenters or detectors: results and costs by role, the verdict on student
    and baseline where one was named, notes, the name of the ``measure``, and all scores as a table.
    """

    results: Mapping[str, MapResult | BoxResult]
    costs: dict[str, dict[str, float]]
    verdict: Verdict | None
    notes: list[str]
    measure: str
    scores: str

    def plain(self) -> dict[str, Any]:
        """JSON-ready data."""
        return {
            "results": {role: each.plain() for role, each in self.results.items()},
            "costs": self.costs,
            "verdict": self.verdict and vars(self.verdict),
            "notes": self.notes,
        }


def evaluate_maps(config: EvaluateConfig) -> DenseEvaluation:
    """Score segmenters on the same held-out scenes, which are read as the first student's run read
    its own; raises UserError where they do not fit each other."""
    check_unset(config, WITHOUT_EFFECT, "on a segmenter")
    with ranks_session(config.device) as ranks:
        networks = load_roles(config, Segmenter)
        own = networks["student"][0].facts.origin.get("config", {})
        images = open_scene_images(scenes_of(config.data, own.get("data", {})))
        scenes: Scenes = images.holdout  # type: ignore[assignment]
        named = networks["student"][0].facts.origin.get("classes")
        if named is not None and len(named) == len(scenes.classes):
            scenes = with_classes(scenes, tuple(named), config.data.root, config.student[0])
        shown = from_plain(MapOptions, own.get("evaluation", {}), "the run's evaluation")
        skipped = SkippedLog(None, len(scenes), config.data.max_bad_ratio)
        counts: dict[str, list[torch.Tensor]] = {}
        costs = {}
        for role, group in networks.items():
            for network in group:
                check_knows(network, scenes.classes, role)
                network.to(ranks.device)
                found = confusion_over(network, scenes, shown, config.data, skipped)
                counts.setdefault(role, []).append(torch.stack(found.of_images))
            speed_batch = SPEED_BATCH if config.measure_speed else None
            costs[role] = costs_of(group[0], speed_batch)
    notes = [few.strip()] if (few := few_scenes(len(scenes))) else []
    notes += [skipped.summary()] if skipped.reasons else []
    results = {role: result_of(each, scenes.classes) for role, each in counts.items()}
    verdict = None
    if "baseline" in results:
        claims = better_than("the baseline")
        verdict = compare([results["student"]], [results["baseline"]], claims)
    return DenseEvaluation(results, costs, verdict, notes, "mIoU %", class_table(results))


def report(found: DenseEvaluation) -> str:
    """Tables of scores and classes, and the verdict, for people."""
    rows = []
    for role, each in found.results.items():
        cost = found.costs[role]
        rows.append({
            "network": role,
            found.measure: each.text,
            "M params": f"{cost['parameters'] / 1e6:.2f}",
            "G MACs": f"{cost['macs'] / 1e9:.3g}",
            "images/s": f"{cost['images_per_second']:.1f}" if "images_per_second" in cost else None,
            "runs": len(each.runs),
        })  # fmt: skip
    parts = [table(rows, width=TERMINAL), found.scores]
    parts += [found.verdict.why] if found.verdict else []
    return "\n\n".join([*parts, *found.notes])


def load_roles(config: EvaluateConfig, kind: type[Dense]) -> dict[str, list[Dense]]:
    """The networks by role, all of a ``kind``, in evaluation mode. Raises UserError for others."""
    groups = {"student": config.student, "baseline": config.baseline}
    groups["teacher"] = () if config.teacher is None else (config.teacher,)
    return {role: [_load(each, kind) for each in some] for role, some in groups.items() if some}


def _load(source: str, kind: type[Dense]) -> Dense:
    network = load_encoder(source)
    if not isinstance(network, kind):
        name, verb = kind.__name__.lower(), {"Segmenter": "segment", "Detector": "detect"}
        raise UserError(
            f"{source} is no {name}, as the student is; name a run of limbeck "
            f"{verb[kind.__name__]}."
        )
    return network.eval()


def scenes_of(data: DataOptions, own: dict[str, Any]) -> SceneOptions:
    """The options of this evaluation, and how a run has read its masks."""
    names = {field.name for field in fields(DataOptions)}
    asked = {name: getattr(data, name) for name in names}
    of_masks = {name: value for name, value in own.items() if name not in names}
    if data.root != own.get("root"):  # of other scenes the masks lie elsewhere
        of_masks = {k: v for k, v in of_masks.items() if k not in ("masks", "layout")}
    read = from_plain(SceneOptions, of_masks, "the run's data")
    if data.eval_split == DataOptions().eval_split:
        asked["eval_split"] = read.eval_split
    return replace(read, **asked)


def check_knows(network: Headed, classes: tuple[str, ...], role: str) -> None:
    """Raise UserError where a network knows other classes than the images have."""
    if network.facts.num_classes != len(classes):
        raise UserError(
            f"The {role} knows {network.facts.num_classes} classes and the images have "
            f"{len(classes)}; choose images of the same classes."
        )
    check_classes(network.facts, classes, role)
