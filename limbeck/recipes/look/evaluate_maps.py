"""``limbeck evaluate`` of segmenters: mIoU with its interval, by class, and against a baseline."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch

from limbeck.config import from_plain
from limbeck.data.options import DataOptions
from limbeck.data.scenes.open import with_classes
from limbeck.data.scenes.options import SceneOptions
from limbeck.data.scenes.scene import Scenes
from limbeck.data.skipped import SkippedLog
from limbeck.engine.distributed import ranks_session
from limbeck.errors import UserError
from limbeck.evaluation.cost import costs_of
from limbeck.evaluation.map_scores import MapResult, class_table, compare, result_of
from limbeck.evaluation.options import MapOptions
from limbeck.evaluation.report import TERMINAL, table
from limbeck.evaluation.scores import Verdict, better_than
from limbeck.models.dense.segmenter import Segmenter
from limbeck.models.origins.load import load_encoder
from limbeck.recipes.look.options import EvaluateConfig
from limbeck.recipes.run.checks import check_unset
from limbeck.recipes.run.maps import confusion_over
from limbeck.recipes.run.networks import check_classes
from limbeck.recipes.run.scenes import few_scenes, open_scene_images

WITHOUT_EFFECT = ("num_labels", "label_draws", "k", "max_train", "embed", "corruptions")
SPEED_BATCH = 8


@dataclass(frozen=True)
class MapEvaluation:
    """What was found: results and costs by role, the verdict on student and baseline where one was
    named, and notes."""

    results: dict[str, MapResult]
    costs: dict[str, dict[str, float]]
    verdict: Verdict | None
    notes: list[str]

    def plain(self) -> dict[str, Any]:
        """JSON-ready data."""
        return {
            "results": {role: each.plain() for role, each in self.results.items()},
            "costs": self.costs,
            "verdict": self.verdict and vars(self.verdict),
            "notes": self.notes,
        }


def evaluate_maps(config: EvaluateConfig) -> MapEvaluation:
    """Score segmenters on the same held-out scenes, which are read as the first student's run read
    its own; raises UserError where they do not fit each other."""
    check_unset(config, WITHOUT_EFFECT, "on a segmenter")
    groups = {"student": config.student, "baseline": config.baseline}
    groups["teacher"] = () if config.teacher is None else (config.teacher,)
    with ranks_session(config.device) as ranks:
        networks = {
            role: [_load(source) for source in sources]
            for role, sources in groups.items()
            if sources
        }
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
                _check_classes(network, scenes.classes, role)
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
    return MapEvaluation(results, costs, verdict, notes)


def report(found: MapEvaluation) -> str:
    """Tables of scores and classes, and the verdict, for people."""
    rows = []
    for role, each in found.results.items():
        cost = found.costs[role]
        rows.append({
            "network": role,
            "mIoU %": each.text,
            "M params": f"{cost['parameters'] / 1e6:.2f}",
            "G MACs": f"{cost['macs'] / 1e9:.3g}",
            "images/s": f"{cost['images_per_second']:.1f}" if "images_per_second" in cost else None,
            "runs": len(each.runs),
        })  # fmt: skip
    parts = [table(rows, width=TERMINAL), class_table(found.results)]
    parts += [found.verdict.why] if found.verdict else []
    return "\n\n".join([*parts, *found.notes])


def are_segmenters(sources: Sequence[str]) -> bool:
    """Whether the first of them is a finished segmenter."""
    from limbeck.models.dense.segmenter import KIND
    from limbeck.models.finished import is_finished_student, read_record

    folder = Path(sources[0]).expanduser()
    return is_finished_student(folder) and read_record(folder)[1]["architecture"]["kind"] == KIND


def _load(source: str) -> Segmenter:
    network = load_encoder(source)
    if not isinstance(network, Segmenter):
        raise UserError(
            f"{source} is no segmenter, as the student is; name a run of limbeck segment."
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


def _check_classes(network: Segmenter, classes: tuple[str, ...], role: str) -> None:
    if network.facts.num_classes != len(classes):
        raise UserError(
            f"The {role} knows {network.facts.num_classes} classes and the scenes have "
            f"{len(classes)}; choose scenes of the same classes."
        )
    check_classes(network.facts, classes, role)
