"""Runs before they begin: what they are made of is built once, shown two images, and thrown away.

So that nothing that could be known at the start is found out after days.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from limbeck.errors import UserError
from limbeck.recipes.run.options import DistillConfig, FinetuneConfig
from limbeck.recipes.train.distill import train_stream
from limbeck.recipes.train.finetune import tuning_stream

if TYPE_CHECKING:
    from limbeck.engine.distributed import Ranks
    from limbeck.models.encoder import Encoder
    from limbeck.models.timm_encoder import TimmEncoder
    from limbeck.recipes.run.images import Images
    from limbeck.recipes.run.networks import Networks
    from limbeck.recipes.train.finetune_networks import TuningNetworks

Config = TypeVar("Config", DistillConfig, FinetuneConfig)


def try_distillation(config: DistillConfig, images: Images, ranks: Ranks) -> Networks:
    """The networks of a pre-training, which have seen two images. Raises as building them does."""
    import torch

    from limbeck.data.skipped import SkippedLog
    from limbeck.methods.distiller import Distiller
    from limbeck.recipes.targets.reading import open_networks

    nets = open_networks(config, ranks.device)
    distiller = Distiller(nets.student, nets.method, nets.teacher).to(ranks.device)
    skipped = SkippedLog(None, images.num_images, config.data.max_bad_ratio)
    batch = next(train_stream(_of_two_images(config), images, nets, ranks, skipped, 0, 1))
    with torch.no_grad():
        distiller(batch)
    return nets


def try_tuning(
    config: FinetuneConfig,
    images: Images,
    ranks: Ranks,
    load_student: Callable[..., TimmEncoder] | None = None,
    load_teacher: Callable[..., Encoder] | None = None,
) -> TuningNetworks:
    """The networks of a fine-tuning, which have seen two images. Raises as building them does.

    The two callables make networks that are still to be trained.
    """
    import torch

    from limbeck.data.skipped import SkippedLog
    from limbeck.models.origins.load import load_encoder
    from limbeck.recipes.run.networks import load_vit
    from limbeck.recipes.train.finetune_networks import build_tuning

    nets = build_tuning(
        config,
        images.train.classes,
        ranks.device,
        load_student or load_vit,
        load_teacher or load_encoder,
    )
    module = nets.module.to(ranks.device)
    skipped = SkippedLog(None, images.num_images, config.data.max_bad_ratio)
    small = _of_two_images(config)
    batch = next(tuning_stream(small, images, nets.student, ranks, skipped, 1, 0))
    with torch.no_grad():
        module(batch)
    return nets


def _of_two_images(config: Config) -> Config:
    return replace(
        config,
        data=replace(config.data, num_workers=0),
        train=replace(config.train, global_batch_size=2, accumulate_steps=1),
    )


def open_existing(
    runs: Iterable[tuple[Path, bool, tuple[dict[str, Any], dict[str, Any]]]],
) -> None:
    """Raise UserError where a folder holds another run than its config and fingerprint say.

    ``runs``: folder, whether it may be overwritten, and the two. What may be is cleared at once.
    """
    from limbeck.engine.checkpoint import open_run

    for folder, overwrite, identity in runs:
        if folder.exists():
            open_run(folder, *identity, overwrite=overwrite)


@contextmanager
def in_section(section: str, kind: type) -> Iterator[None]:
    """What a UserError says of options is said of those of a section of the class ``kind``."""
    try:
        yield
    except UserError as error:
        text = str(error)
        for field in fields(kind):
            name, dashed = field.name, field.name.replace("_", "-")
            text = re.sub(rf"--{dashed}(?![\w-])", f"--{section.replace('_', '-')}.{dashed}", text)
            if is_dataclass(field.default):  # and not a file's name, such as train.parquet
                own = "|".join(each.name for each in fields(field.default))
                text = re.sub(rf"(?<![\w./-]){name}\.(?=({own})\b)", f"{section}.{name}.", text)
        raise type(error)(text) from error
