"""One arm of a comparison with one seed: pre-training, probes, fine-tuning, and what they cost."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from limbeck.config import read_json, to_plain
from limbeck.recipes.arms import SCRATCH, UNTRAINED, Arm, run_dir, tuned_dir
from limbeck.recipes.comparison import finetuned
from limbeck.recipes.distill import DistillConfig, distill
from limbeck.recipes.evaluate import EvaluateConfig, Prober
from limbeck.recipes.finetune import FinetuneConfig, finetune, with_labels
from limbeck.recipes.probes import CropEvalOptions

if TYPE_CHECKING:
    import torch

    from limbeck.recipes.compare import CompareConfig
    from limbeck.recipes.comparison import Result
    from limbeck.recipes.images import Images

COST_FILE, PROBES_FILE = "cost.json", "probes.json"


class Trials:
    """Runs arms, and takes from their folders what has been done already."""

    def __init__(self, config: CompareConfig, images: Images, device: torch.device) -> None:
        from limbeck.data.skipped import SkippedLog
        from limbeck.models.heads import with_classifier
        from limbeck.models.origins.load import load_encoder
        from limbeck.recipes.networks import start_student

        self.config, self.images, self.device = config, images, device
        skipped = SkippedLog(None, images.num_images, config.data.max_bad_ratio)
        probing = EvaluateConfig(data=config.data, embed=config.embed, num_labels=(5,))
        self.prober = Prober(probing, images, device, skipped)
        if not images.is_labelled:
            assert config.teacher.source is not None
            teacher = load_encoder(config.teacher.source)
            self.prober.target = self.prober.embed(teacher, images.holdout)
        start = start_student(config.student, 0.0, 0)
        # A head count that a method needed in its last block is taken back for the fine-tuning.
        heads = set(start.facts.num_heads)
        self.num_heads = min(heads) if len(heads) == 1 else None
        if config.fine_tune and images.is_labelled:
            # A student that can't be fine-tuned so is told before any arm has trained.
            num_classes = len(images.train.classes)
            with_classifier(start, num_classes, config.tune.global_pool, 0)

    def run(self, arm: Arm, seed: int, own: DistillConfig | None, result: Result) -> None:
        """Do what is left of an arm; fills ``result`` as far as it comes. Raises as runs do."""
        config = self.config
        folder = run_dir(config.out, arm, seed)
        if own is None:
            self._save_start(seed, folder)
        else:
            result.cost |= self._measured(folder, lambda: distill(own))
        if arm.name != SCRATCH:
            result.scores |= self._probe(folder)
        if config.fine_tune and self.images.is_labelled and arm.name != UNTRAINED:
            for fraction in config.label_fractions:
                tuning = replace(
                    tuning_config(config, arm, seed, fraction),
                    student=str(folder),
                    num_heads=self.num_heads,
                )
                cost = self._measured(tuning.out, partial(finetune, tuning))
                name = finetuned(fraction)
                result.cost |= {f"{name}_{key}": value for key, value in cost.items()}
                scores = read_json(tuning.out / "student.json")["scores"]
                result.scores |= {f"{name}_{key}": value for key, value in scores.items()}

    def _save_start(self, seed: int, folder: Path) -> None:
        from limbeck.models.finished import is_finished_student, save_student
        from limbeck.recipes.networks import start_student

        if not is_finished_student(folder):
            save_student(start_student(self.config.student, 0.0, seed), folder, {})

    def _probe(self, folder: Path) -> dict[str, float]:
        """The scores of a frozen student, from its folder where the same were measured before."""
        from limbeck.engine.checkpoint import write_json
        from limbeck.models.origins.load import load_encoder

        encoder = load_encoder(str(folder))
        asked = {
            "weights": encoder.facts.origin.get("weight_hash"),
            "data": self.images.fingerprint,
            "embed": to_plain(self.config.embed),
        }
        file = folder / PROBES_FILE
        known = read_json(file) if file.exists() else {}
        if known.get("asked") != asked:
            scores = self.prober.scores(encoder)
            known = {"asked": asked, "scores": {name: each.mean for name, each in scores.items()}}
            write_json(file, known)
        return dict(known["scores"])

    def _measured(self, folder: Path, work: Callable[[], Any]) -> dict[str, float]:
        """Do the work of a run and add what it costs to what earlier attempts did."""
        from limbeck.engine.checkpoint import write_json
        from limbeck.evaluation.cost import peak_memory_mib, reset_peak_memory

        file = folder / COST_FILE
        was_finished = (folder / "finished.json").exists()
        before = read_json(file) if file.exists() else {}
        started = time.monotonic()
        reset_peak_memory(self.device)
        try:
            work()
        finally:
            is_new = not (was_finished and file.exists())  # a run that is replaced loses its file
            if is_new and folder.is_dir():
                earlier = before if file.exists() else {}
                peak = peak_memory_mib(self.device)
                cost = {"seconds": earlier.get("seconds", 0.0) + time.monotonic() - started}
                if peak is not None:
                    cost["memory_mib"] = max(peak, earlier.get("memory_mib", 0.0))
                write_json(file, cost)
        cost = read_json(file) if file.exists() else {}
        return cost | images_per_second(folder)


def tuning_config(config: CompareConfig, arm: Arm, seed: int, fraction: float) -> FinetuneConfig:
    """The fine-tuning of an arm with a part of the labels; its student is still to be named."""
    tune, embed = config.tune, asdict(config.embed)
    del embed["pool"]
    optim = tune.optim
    if arm.method is None:
        # Layer decay spares what was learnt before; a fresh student has learnt nothing.
        optim = replace(optim, layer_decay=1.0, layer_decay_count="layers", head_lr_scale=1.0)
    return FinetuneConfig(
        out=tuned_dir(config.out, arm, seed, fraction),
        seed=seed,
        overwrite=config.overwrite,
        global_pool=tune.global_pool,
        drop_path_rate=tune.drop_path_rate,
        data=with_labels(config.data, fraction, seed),
        views=tune.views,
        mix=tune.mix,
        optim=optim,
        train=tune.train,
        evaluation=CropEvalOptions(**embed),
    )


def images_per_second(folder: Path) -> dict[str, float]:
    """The speed of a run's steps, as its log has it: the harmonic mean of its records."""
    file = folder / "metrics.jsonl"
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    records = [json.loads(line) for line in lines]
    speeds = [each["images_per_second"] for each in records if each.get("images_per_second")]
    return {"images_per_second": len(speeds) / sum(1 / v for v in speeds)} if speeds else {}
