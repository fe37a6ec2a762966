"""One arm of a comparison with one seed: pre-training, probes, fine-tuning, and what they cost."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from typing_extensions import TypedDict

from limbeck.config import to_plain
from limbeck.documents import Plain, as_read, fit
from limbeck.recipes.look.evaluate import Prober
from limbeck.recipes.look.options import EvaluateConfig
from limbeck.recipes.run.costs import measured, read_measured
from limbeck.recipes.run.options import CropEvalOptions, DistillConfig, FinetuneConfig
from limbeck.recipes.study.arms import Arm, run_dir, tuned_dir
from limbeck.recipes.study.comparison import finetuned
from limbeck.recipes.study.options import SCRATCH, UNTRAINED
from limbeck.recipes.study.tuning import tuning_run, without_layer_decay
from limbeck.recipes.train.distill import distill
from limbeck.recipes.train.finetune import finetune, with_labels

if TYPE_CHECKING:
    import torch

    from limbeck.models.encoder import Encoder
    from limbeck.recipes.run.images import Images
    from limbeck.recipes.study.comparison import Result
    from limbeck.recipes.study.options import CompareConfig

PROBES_FILE = "probes.json"


class _Probed(TypedDict):
    scores: dict[str, float]


class Trials:
    """Runs arms, and takes from their folders what has been done already."""

    def __init__(self, config: CompareConfig, images: Images, device: torch.device) -> None:
        from limbeck.data.skipped import SkippedLog
        from limbeck.models.heads import with_classifier
        from limbeck.models.origins.load import load_encoder
        from limbeck.recipes.run.networks import start_student

        self.config, self.images, self.device = config, images, device
        skipped = SkippedLog(None, images.num_images, config.data.max_bad_ratio)
        probing = EvaluateConfig(data=config.data, embed=config.embed, num_labels=(5,))
        self.prober = Prober(probing, images, device, skipped)
        if not images.is_labelled:
            assert config.teacher.source is not None
            teacher = load_encoder(config.teacher.source)
            self.prober.target = self.prober.embed(teacher, images.holdout)
        start = start_student(config.student, 0.0, 0)
        self.num_heads = own_num_heads(start)
        if config.fine_tune and images.is_labelled:
            # A student that can't be fine-tuned so is told before any arm has trained.
            num_classes = len(images.train.classes)
            with_classifier(start, num_classes, config.tune.global_pool, 0)

    def run(self, arm: Arm, seed: int, own: DistillConfig | None, result: Result) -> None:
        """Do what is left of an arm; fills ``result`` as far as it comes. Raises as runs do."""
        from limbeck.recipes.run.lineage import scores_of
        from limbeck.recipes.run.networks import save_start

        config = self.config
        folder = run_dir(config.out, arm, seed)
        if own is None:
            save_start(config.student, seed, folder)
        else:
            result.cost |= measured(folder, self.device, lambda: distill(own))
        if arm.name != SCRATCH:
            result.scores |= self._probe(folder)
        if config.fine_tune and self.images.is_labelled and arm.name != UNTRAINED:
            for fraction in config.label_fractions:
                tuning = replace(
                    tuning_config(config, arm, seed, fraction),
                    student=str(folder),
                    num_heads=self.num_heads,
                )
                cost = measured(tuning.out, self.device, partial(finetune, tuning))
                name = finetuned(fraction)
                result.cost |= {f"{name}_{key}": value for key, value in cost.items()}
                scores = scores_of(tuning.out)
                result.scores |= {f"{name}_{key}": value for key, value in scores.items()}

    def _probe(self, folder: Path) -> dict[str, float]:
        """The scores of a frozen student, from its folder where the same were measured before."""
        from limbeck.models.origins.load import load_encoder

        encoder = load_encoder(str(folder))
        asked = {
            "weights": encoder.facts.origin.get("weight_hash"),
            "architecture": encoder.facts.architecture,
            "data": self.images.fingerprint,
            "embed": to_plain(self.config.embed),
        }

        def probe() -> dict[str, Any]:
            scores = self.prober.scores(encoder)
            return {"scores": {name: each.mean for name, each in scores.items()}}

        file = folder / PROBES_FILE
        found: _Probed = fit(remembered(file, asked, probe), _Probed, str(file))
        return found["scores"]


def remembered(
    file: Path, asked: dict[str, Any], measure: Callable[[], dict[str, Any]]
) -> dict[str, Any]:
    """What ``measure`` finds, plain data: from the file where the same was asked before."""
    from limbeck.documents import write_json

    asked = as_read(asked)
    known = read_measured(file, Plain)
    if known.get("asked") != asked:
        known = {"asked": asked, **measure()}
        write_json(file, known)
    return known


def own_num_heads(start: Encoder) -> int | None:
    """The head count of an untrained student's blocks, None where they differ.

    A count that a method needed in the last block is taken back for the fine-tuning.
    """
    heads = set(start.facts.num_heads)
    return min(heads) if len(heads) == 1 else None


def tuning_config(config: CompareConfig, arm: Arm, seed: int, fraction: float) -> FinetuneConfig:
    """The fine-tuning of an arm with a part of the labels; its student is still to be named."""
    tune, embed = config.tune, asdict(config.embed)
    del embed["pool"]
    return tuning_run(
        tune,
        out=tuned_dir(config.out, arm, seed, fraction),
        seed=seed,
        overwrite=config.overwrite,
        data=with_labels(config.data, fraction, seed),
        optim=without_layer_decay(tune.optim) if arm.method is None else tune.optim,
        evaluation=CropEvalOptions(**embed),
    )
