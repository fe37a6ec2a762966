"""A classifier that starts from the rows of an older one (TinyViT, arXiv 2207.10666).

From ImageNet-22k to 1k a file says for every new class which of the old ones it is.
"""

import re
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from limbeck.errors import UserError
from limbeck.files import MIB, read_file, reason_of

_ROW = re.compile(r"-1|[0-9]{1,9}")
NO_ROW = -1
"""Stands for a class without an old one: it starts from the mean of all rows that are taken."""


def read_head_index(file: Path) -> list[int]:
    """The old row of every new class, one number a line. Raises UserError for anything else."""
    try:
        lines = read_file(file, MIB).decode().split()
    except (OSError, UnicodeDecodeError) as error:
        why = reason_of(error) if isinstance(error, OSError) else "it is not UTF-8"
        raise UserError(f"Can't read {file} as text: {why}; name the file of indices.") from error
    wrong = [line[:40] for line in lines if not _ROW.fullmatch(line)]
    if wrong or not lines:
        raise UserError(
            f"{file} should have one row of the old classifier per line, counted from 0, or -1, "
            f"and has '{wrong[0] if wrong else ''}'; correct the file."
        )
    return [int(line) for line in lines]


@torch.no_grad()
def copy_rows(own: nn.Linear, old: nn.Linear, rows: Sequence[int]) -> None:
    """Fill a classifier with the ``rows`` of an old one: weights and biases.

    ``NO_ROW`` becomes the mean of all others. Raises UserError where the numbers do not fit.
    """
    taken = [row for row in rows if row != NO_ROW]
    if len(rows) != own.out_features:
        raise UserError(
            f"There are {len(rows)} rows to start the classifier from and {own.out_features} "
            "classes; each class needs one."
        )
    if not taken or max(taken) >= old.out_features:
        raise UserError(
            f"The old classifier has the rows 0 to {old.out_features - 1}, and asked for are "
            f"{f'up to {max(taken)}' if taken else 'none of them'}; is the index of another model?"
        )
    index = torch.tensor(rows, device=old.weight.device)
    for new, values in ((own.weight, old.weight), (own.bias, old.bias)):
        mean = values[torch.tensor(taken, device=values.device)].mean(0)
        new.copy_(values[index.clamp(min=0)])
        new[index.to(new.device) == NO_ROW] = mean.to(new)
