"""``limbeck evaluate`` of segmenters: mIoU with its interval, by class, and against a baseline."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from limbeck.config import from_plain
from limbeck.data.options import DataOptions
from limbeck.data.scenes.options import SceneOptions
from limbeck.data.skipped import SkippedLog
from limbeck.engine.distributed import ranks_session
from limbeck.errors import UserError
from limbeck.evaluation.cost import count_macs, measure_speed
from limbeck.evaluation.map_scores import MapResult, difference_of, result_of
from limbeck.evaluation.options import MapOptions
from limbeck.evaluation.report import TERMINAL, table
from limbeck.models.dense.segmenter import Segmenter
from limbeck.models.origins.load import load_encoder
from limbeck.recipes.look.options import EvaluateConfig
from limbeck.recipes.run.checks import check_unset
from limbeck.recipes.run.maps import confusion_over
from limbeck.recipes.run.scenes import few_scenes, open_scene_images

if TYPE_CHECKING:
    from limbeck.data.scenes.scene import Scenes

WITHOUT_EFFECT = ("num_labels", "label_draws", "k", "max_train", "embed", "corruptions")
SPEED_BATCH = 8


@dataclass(frozen=True)
class MapEvaluation:
    """What was found: results and costs by role, the difference to the baseline where one was
    named (mean, low, high), the classes, and notes."""

    results: dict[str, MapResult]
    costs: dict[str, dict[str, float]]
    difference: tuple[float, float, float] | None
    classes: tuple[str, ...]
    notes: list[str]

    def plain(self) -> dict[str, Any]:
        """JSON-ready data; a class that is nowhere has no IoU."""
        results = {role: asdict(each) for role, each in self.results.items()}
        for each in results.values():
            pairs = zip(self.classes, each["iou"], strict=True)
            each["iou"] = {name: value for name, value in pairs if value == value}
        return {
            "results": results,
            "costs": self.costs,
            "difference": self.difference,
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
            costs[role] = _cost(group[0], config.measure_speed)
    notes = [few.strip()] if (few := few_scenes(len(scenes))) else []
    notes += [skipped.summary()] if skipped.reasons else []
    baseline = counts.get("baseline")
    difference = None if baseline is None else difference_of(counts["student"], baseline)
    results = {role: result_of(each) for role, each in counts.items()}
    return MapEvaluation(results, costs, difference, scenes.classes, notes)


def report(found: MapEvaluation) -> str:
    """Tables of scores and classes, and the difference, for people."""
    rows, by_class = [], []
    for role, each in found.results.items():
        spread = "" if each.spread is None else f" ± {100 * each.spread:.1f}"
        cost = found.costs[role]
        interval = f" [{100 * each.low:.1f}, {100 * each.high:.1f}]"
        rows.append({
            "network": role,
            "mIoU %": f"{100 * each.miou:.1f}{spread}{interval}",
            "M params": f"{cost['parameters'] / 1e6:.2f}",
            "G MACs": f"{cost['macs'] / 1e9:.3g}",
            "images/s": f"{cost['images_per_second']:.1f}" if "images_per_second" in cost else None,
            "runs": len(each.runs),
        })  # fmt: skip
    for place, name in enumerate(found.classes):
        row: dict[str, Any] = {"class": name}
        for role, each in found.results.items():
            value = each.iou[place]
            row[f"{role}, IoU %"] = f"{100 * value:.1f}" if value == value else None
        by_class.append(row)
    parts = [table(rows, width=TERMINAL), table(by_class, width=TERMINAL)]
    if found.difference is not None:
        mean, low, high = (100 * value for value in found.difference)
        verdict = "better" if low > 0 else "worse" if high < 0 else "too close to tell from"
        parts.append(
            f"The student is {verdict}{' than' * (verdict != 'too close to tell from')} the "
            f"baseline: {mean:+.1f} points of mIoU (95 % interval {low:+.1f} to {high:+.1f}, for "
            "the choice of images)."
        )
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


def _cost(network: Segmenter, measure: bool) -> dict[str, float]:
    values = {
        "parameters": float(sum(each.numel() for each in network.parameters())),
        "macs": float(count_macs(network)),
    }
    if measure:
        values["images_per_second"] = measure_speed(network, SPEED_BATCH)
    return values
