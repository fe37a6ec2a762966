"""Ordinary runs as parts of a study: their configs, what they cost, and their rehearsal."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from limbeck.engine.options import OptimOptions
from limbeck.recipes.run.options import DistillConfig, FinetuneConfig
from limbeck.recipes.study.engine import Run
from limbeck.recipes.train.rehearsal import try_distillation, try_tuning

if TYPE_CHECKING:
    from limbeck.engine.distributed import Ranks
    from limbeck.models.encoder import Encoder
    from limbeck.models.options import StudentOptions
    from limbeck.models.timm_encoder import TimmEncoder
    from limbeck.recipes.run.images import Images
    from limbeck.recipes.run.networks import Networks
    from limbeck.recipes.train.finetune_networks import TuningNetworks

Identity = tuple[Path, bool, tuple[dict[str, Any], dict[str, Any]]]
"""A run's folder, its leave to overwrite, and the config and fingerprint that are kept there."""


def tuning_run(section: Any, **run: Any) -> FinetuneConfig:
    """The run of ``limbeck finetune`` that a section of options describes.

    ``run``: what no section says (student, out, seed, data, ...), and what is to differ from it.
    """
    own = {field.name: getattr(section, field.name) for field in fields(section)}
    return FinetuneConfig(**own | run)


def without_layer_decay(optim: OptimOptions) -> OptimOptions:
    """Layer decay spares what was learnt before; a fresh student has learnt nothing."""
    return replace(optim, layer_decay=1.0, layer_decay_count="layers", head_lr_scale=1.0)


def start_run(student: StudentOptions, seed: int, out: Path) -> Run:
    """Without training: a seed's student as it starts is kept in a folder."""
    from limbeck.recipes.run.networks import save_start

    return Run(partial(save_start, student, seed, out), out)


def own_num_heads(start: Encoder) -> int | None:
    """The head count of an untrained student's blocks, None where they differ.

    A count that a method needed in the last block is taken back for the fine-tuning.
    """
    heads = set(start.facts.num_heads)
    return min(heads) if len(heads) == 1 else None


def rehearse_pretraining(
    configs: Sequence[DistillConfig], images: Images, ranks: Ranks
) -> tuple[Networks, list[Identity]]:
    """The networks of a pre-training, which have seen two images; the identity with each seed."""
    from limbeck.recipes.run.networks import identify_pretraining

    nets = try_distillation(configs[0], images, ranks)
    return nets, [
        (each.out, each.overwrite, identify_pretraining(each, nets, images, ranks))
        for each in configs
    ]


def rehearse_tuning(
    configs: Sequence[FinetuneConfig],
    images: Images,
    ranks: Ranks,
    load_student: Callable[..., TimmEncoder] | None = None,
    load_teacher: Callable[..., Encoder] | None = None,
) -> tuple[TuningNetworks, list[Identity]]:
    """Likewise of a fine-tuning; the callables make networks that are still to be trained."""
    from limbeck.recipes.train.finetune_networks import identify

    nets = try_tuning(configs[0], images, ranks, load_student, load_teacher)
    return nets, [
        (each.out, each.overwrite, identify(each, nets, images, ranks)) for each in configs
    ]
