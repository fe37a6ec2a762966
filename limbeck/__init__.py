"""Limbeck: small vision Transformers by distillation during pre-training.

The names below are the public surface. They are imported on first use, so that ``import limbeck``
and the command line's checks do not wait for torch.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_PUBLIC = {
    # verbs
    "distill": "limbeck.recipes.distill",
    "store_targets": "limbeck.recipes.store_targets",
    "convert_targets": "limbeck.recipes.convert_targets",
    "finetune": "limbeck.recipes.finetune",
    "evaluate": "limbeck.recipes.evaluate",
    "analyze": "limbeck.recipes.analyze",
    "compare": "limbeck.recipes.compare",
    "two_stage": "limbeck.recipes.two_stage",
    "search": "limbeck.recipes.search",
    "doctor": "limbeck.recipes.doctor",
    "inspect": "limbeck.recipes.inspect",
    "convert": "limbeck.recipes.convert",
    "demo": "limbeck.recipes.demo",
    # their options
    "DistillConfig": "limbeck.recipes.distill",
    "StoreTargetsConfig": "limbeck.recipes.store_targets",
    "ConvertTargetsConfig": "limbeck.recipes.convert_targets",
    "FinetuneConfig": "limbeck.recipes.finetune",
    "EvaluateConfig": "limbeck.recipes.evaluate",
    "AnalyzeConfig": "limbeck.recipes.analyze",
    "CompareConfig": "limbeck.recipes.compare",
    "TwoStageConfig": "limbeck.recipes.two_stage",
    "SearchConfig": "limbeck.recipes.search",
    "DoctorConfig": "limbeck.recipes.doctor",
    "InspectConfig": "limbeck.recipes.inspect",
    "ConvertConfig": "limbeck.recipes.convert",
    "DemoConfig": "limbeck.recipes.demo",
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
    "Features": "limbeck.records",
    "Losses": "limbeck.records",
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
