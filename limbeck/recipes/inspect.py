"""``limbeck inspect``: what is in this weights file, run or Hugging Face folder?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import tyro

from limbeck.config import options
from limbeck.errors import UserError
from limbeck.recipes import checks

if TYPE_CHECKING:
    from limbeck.models.origins.inspection import Inspection


@options
class InspectConfig:
    """Say what a weights file is: layout, shapes, head count if known, keys that do not match."""

    file: Annotated[str, tyro.conf.Positional] = ""
    """A .safetensors or .pth file, a run's folder, or a Hugging Face model folder."""
    all_tensors: bool = False
    """List every tensor, not only the first of each kind."""


def inspect(config: InspectConfig) -> Inspection:
    """Describe a file without building a network; raises UserError where it can't be read."""
    if not config.file:
        raise UserError("No file is named; run: limbeck inspect FILE.")
    checks.check_path(config.file, "limbeck inspect")
    from limbeck.models.origins.inspection import inspect_file

    return inspect_file(config.file)
