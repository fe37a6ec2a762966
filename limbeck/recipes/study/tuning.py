"""A fine-tuning that is a part of something larger: its options, and the run that they make."""

from dataclasses import fields, replace
from typing import Any

from limbeck.engine.options import OptimOptions
from limbeck.recipes.run.options import FinetuneConfig


def tuning_run(section: Any, **run: Any) -> FinetuneConfig:
    """The run of ``limbeck finetune`` that a section of options describes.

    ``run``: what no section says (student, out, seed, data, ...), and what is to differ from it.
    """
    own = {field.name: getattr(section, field.name) for field in fields(section)}
    return FinetuneConfig(**own | run)


def without_layer_decay(optim: OptimOptions) -> OptimOptions:
    """Layer decay spares what was learnt before; a fresh student has learnt nothing."""
    return replace(optim, layer_decay=1.0, layer_decay_count="layers", head_lr_scale=1.0)
