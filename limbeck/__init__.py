"""Limbeck: small vision Transformers by distillation during pre-training.

The names below are the public surface. They are imported on first use, so that ``import limbeck``
and the command line's checks do not wait for torch.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_PUBLIC = {
    # verbs
    "distill": "limbeck.recipes.train.distill",
    "store_targets": "limbeck.recipes.targets.store_targets",
    "convert_targets": "limbeck.recipes.targets.convert_targets",
    "finetune": "limbeck.recipes.train.finetune",
    "segment": "limbeck.recipes.train.segment",
    "detect": "limbeck.recipes.train.detect",
    "predict": "limbeck.recipes.ship.predict",
    "embed": "limbeck.recipes.ship.embed",
    "evaluate": "limbeck.recipes.look.evaluate",
    "analyze": "limbeck.recipes.look.analyze",
    "compare": "limbeck.recipes.study.compare",
    "two_stage": "limbeck.recipes.study.two_stage",
    "search": "limbeck.recipes.study.search",
    "doctor": "limbeck.recipes.look.doctor",
    "cost": "limbeck.recipes.look.cost",
    "inspect": "limbeck.recipes.look.inspect",
    "write_report": "limbeck.recipes.look.write_report",
    "presets": "limbeck.recipes.look.presets",
    "export": "limbeck.recipes.ship.export",
    "convert": "limbeck.recipes.ship.convert",
    "push": "limbeck.recipes.ship.push",
    "serve": "limbeck.recipes.ship.serve",
    "demo": "limbeck.recipes.study.demo",
    # their options
    "DistillConfig": "limbeck.recipes.train.distill",
    "StoreTargetsConfig": "limbeck.recipes.targets.store_targets",
    "ConvertTargetsConfig": "limbeck.recipes.targets.convert_targets",
    "FinetuneConfig": "limbeck.recipes.train.finetune",
    "SegmentConfig": "limbeck.recipes.train.options",
    "DetectConfig": "limbeck.recipes.train.options",
    "PredictConfig": "limbeck.recipes.ship.predict",
    "EmbedConfig": "limbeck.recipes.ship.embed",
    "EvaluateConfig": "limbeck.recipes.look.evaluate",
    "AnalyzeConfig": "limbeck.recipes.look.analyze",
    "CompareConfig": "limbeck.recipes.study.compare",
    "TwoStageConfig": "limbeck.recipes.study.two_stage",
    "TwoStageSegmentConfig": "limbeck.recipes.study.two_stage",
    "SearchConfig": "limbeck.recipes.study.search",
    "DoctorConfig": "limbeck.recipes.look.doctor",
    "CostConfig": "limbeck.recipes.look.cost",
    "InspectConfig": "limbeck.recipes.look.inspect",
    "ReportConfig": "limbeck.recipes.look.write_report",
    "PresetsConfig": "limbeck.recipes.look.presets",
    "ExportConfig": "limbeck.recipes.ship.export",
    "ConvertConfig": "limbeck.recipes.ship.convert",
    "PushConfig": "limbeck.recipes.ship.push",
    "ServeConfig": "limbeck.recipes.ship.serve",
    "DemoConfig": "limbeck.recipes.study.demo",
    # networks
    "load": "limbeck.models.finished",
    "load_encoder": "limbeck.models.origins.load",
    "load_decoder": "limbeck.models.origins.decoder",
    "load_autoencoder": "limbeck.models.origins.decoder",
    # contracts
    "Encoder": "limbeck.models.encoder",
    "EncoderFacts": "limbeck.models.encoder",
    "Method": "limbeck.methods.method",
    "Source": "limbeck.data.source",
    "Task": "limbeck.tasks.task",
    # records
    "Batch": "limbeck.records",
    "Detections": "limbeck.records",
    "Features": "limbeck.records",
    "Losses": "limbeck.records",
    "Objects": "limbeck.records",
    "SoftLabels": "limbeck.records",
    "Tap": "limbeck.records",
    # errors
    "UserError": "limbeck.errors",
}

__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'limbeck' has no attribute '{name}'")
    return getattr(import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
