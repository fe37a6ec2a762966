"""Runs before they begin: what they are made of is built once, shown two images, and thrown away.

So that nothing that could be known at the start is found out after days.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from limbeck.errors import UserError
from limbeck.recipes.run.options import DistillConfig, FinetuneConfig

if TYPE_CHECKING:
    from limbeck.engine.distributed import Ranks
    from limbeck.models.encoder import Encoder
    from limbeck.recipes.run.images import Images
    from limbeck.recipes.run.options import DistillConfig, FinetuneConfig
    from limbeck.recipes.run.train import Plan


def try_distillation(config: DistillConfig, images: Images, ranks: Ranks) -> Plan:
    """The plan of a pre-training that has seen two images. Raises as building it does."""
    from limbeck.recipes.run.train import rehearse
    from limbeck.recipes.targets.reading import open_networks
    from limbeck.recipes.train.pretraining import plan_pretraining

    plan = plan_pretraining(config, open_networks(config, ranks.device), images, ranks)
    rehearse(plan, ranks)
    return plan


def try_tuning(
    config: FinetuneConfig, images: Images, ranks: Ranks, **load: Callable[..., Encoder]
) -> Plan:
    """Likewise of a fine-tuning; ``load`` as for ``plan_tuning``."""
    from limbeck.recipes.run.train import rehearse
    from limbeck.recipes.train.tuning import plan_tuning

    plan = plan_tuning(config, images, ranks, **load)
    rehearse(plan, ranks)
    return plan


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
