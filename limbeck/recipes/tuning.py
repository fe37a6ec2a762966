"""A fine-tuning that is a part of something larger: its options, and the run that they make."""

from dataclasses import fields, replace
from typing import Any

from limbeck.config import Rate, options
from limbeck.data.options import MixOptions, ViewOptions
from limbeck.engine.options import AT_THE_END, POSITIONS_AND_TOKENS, OptimOptions, TrainOptions
from limbeck.models.options import GlobalPool
from limbeck.recipes.finetune import FinetuneConfig


@options
class TuningOptions:
    """The fine-tuning at the end of every arm. Defaults: the light augmentation of MAE-Lite."""

    global_pool: GlobalPool | None = None
    """avg (if not given) or token."""
    drop_path_rate: Rate = 0.0
    views: ViewOptions = ViewOptions(scale=(0.08, 1.0))
    mix: MixOptions = MixOptions(mixup_alpha=0.2)
    optim: OptimOptions = OptimOptions(
        base_lr=1e-3,
        min_lr=1e-6,
        betas=(0.9, 0.999),
        layer_decay=0.85,
        no_decay_names=POSITIONS_AND_TOKENS,
    )
    """layer_decay is for pre-trained weights: an arm from scratch has none."""
    train: TrainOptions = TrainOptions(epochs=100, probe_every=AT_THE_END)


def tuning_run(section: Any, **run: Any) -> FinetuneConfig:
    """The run of ``limbeck finetune`` that a section of options describes.

    ``run``: what no section says (student, out, seed, data, ...), and what is to differ from it.
    """
    own = {field.name: getattr(section, field.name) for field in fields(section)}
    return FinetuneConfig(**own | run)


def without_layer_decay(optim: OptimOptions) -> OptimOptions:
    """Layer decay spares what was learnt before; a fresh student has learnt nothing."""
    return replace(optim, layer_decay=1.0, layer_decay_count="layers", head_lr_scale=1.0)
