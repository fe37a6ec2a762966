"""The layout in which TinyViT's released code stores soft labels (arXiv 2207.10666), for reading.

One folder per epoch, ``logits_top{K}_epoch{E}``, and in it for each process that wrote a pair:
``rank{r}-keys.txt``, one key per line, and ``rank{r}-values.bin``, whose record i belongs to line
i: the int32 seed of the view, K int16 class ids by falling probability, and their K float16
probabilities (no logits, despite the name): 4 + 4K bytes, little-endian. There is no header and no
checksum, so all that can be wrong is looked for, and told in one sentence.
"""

import logging
import os
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import torch

from limbeck.errors import UserError
from limbeck.files import MAX_FILE_BYTES, open_file, reason_of
from limbeck.records import SoftLabels

log = logging.getLogger("limbeck")

NUMBER = r"(0|[1-9][0-9]{0,8})"
FOLDER = re.compile(rf"logits_top{NUMBER}_epoch{NUMBER}")
FILE = re.compile(rf"rank{NUMBER}-(keys\.txt|values\.bin)")
MAX_KEYS_BYTES = 2**30  # of one process; 14 million file names have less
MAX_KEY_BYTES = 4096
NUM_NAMED = 5  # missing epochs that an error names
MAX_CLASSES = 2**15  # ids are int16
MAX_SUM = 1.01  # float16 moves the sum of probabilities by less than 0.001


class Records(NamedTuple):
    """The records of n samples in one epoch, as they are stored."""

    view_seeds: np.ndarray  # [n] int32
    classes: np.ndarray  # [n, K] int16
    probs: np.ndarray  # [n, K] float16, descending


@dataclass(frozen=True)
class Rank:
    """What one process wrote of one epoch; records are mapped from their file, unchecked."""

    keys_file: Path
    values_file: Path
    num_kept: int

    def keys(self) -> list[str]:
        """The keys, one per record. Raises UserError where the two files do not fit."""
        size, record_size = self.size(), 4 + 4 * self.num_kept
        # Before it is in memory: what is longer can't be the keys of so many records.
        longest = min(MAX_KEYS_BYTES, size // record_size * MAX_KEY_BYTES + MAX_KEY_BYTES)
        with _opened(self.keys_file, longest) as stream:
            begin = stream.read(MAX_KEY_BYTES)
            if b"\0" in begin:
                raise UserError(f"{self.keys_file} is no text; copy it again.")
            text = (begin + stream.read()).decode("utf-8", "surrogateescape")
        keys = text.removesuffix("\n").split("\n") if text else []
        if size != len(keys) * record_size:
            raise UserError(
                f"{self.values_file} has {size} bytes, but its {len(keys)} keys with top-"
                f"{self.num_kept} records of {record_size} bytes need {len(keys) * record_size}; "
                "one of the two files is cut short or the folder's name tells another K: copy "
                "them again."
            )
        if "" in keys:
            raise UserError(f"{self.keys_file} has an empty line where a key should be.")
        return keys

    def size(self) -> int:
        """Bytes of its records."""
        with _opened(self.values_file) as stream:
            return os.fstat(stream.fileno()).st_size

    def read(self, rows: np.ndarray) -> np.ndarray:
        """Some records, with the fields of ``Records``."""
        stored = np.memmap(self.values_file, record_type(self.num_kept), mode="r")
        return stored[rows]


class ReleasedLogits:
    """A set of stored soft labels in the released layout: E epochs, so views, of each sample.

    A record's place is a number: it counts through an epoch's processes, one after the other.
    Raises UserError for whatever is missing, does not fit or can't be.
    """

    def __init__(self, root: Path, num_classes: int) -> None:
        if num_classes > MAX_CLASSES:
            raise UserError(
                f"The released layout has int16 class ids, so at most {MAX_CLASSES} classes, and "
                f"not {num_classes}; correct --classes."
            )
        self.root = root
        self.num_classes = num_classes
        self.num_kept, folders = _epoch_folders(root)
        if self.num_kept >= num_classes:
            raise UserError(
                f"{root} keeps {self.num_kept} classes of each record, which leaves none of "
                f"{num_classes} for the rest; correct --classes."
            )
        self.epochs = [_ranks(folder, self.num_kept) for folder in folders]

    @property
    def num_views(self) -> int:
        """The number of epochs."""
        return len(self.epochs)

    def fingerprint(self) -> str:
        """32 hex digits of the files' sizes and first records, which tell sets apart."""
        digest = blake2b(digest_size=16)
        for rank in (rank for epoch in self.epochs for rank in epoch):
            digest.update(rank.size().to_bytes(8, "little"))
            with _opened(rank.values_file) as values:
                digest.update(values.read(4 + 4 * self.num_kept))
        return digest.hexdigest()

    def keys(self, epoch: int) -> dict[str, int]:
        """Each key of an epoch and the place of its record.

        The released sampler fills up the last round of its processes with samples that others
        have, too: of so few the first one counts. Raises UserError for more.
        """
        ranks, places = self.epochs[epoch], dict[str, int]()
        place = 0
        repeated: Counter[str] = Counter()
        for rank in ranks:
            keys = rank.keys()
            key, count = Counter(keys).most_common(1)[0] if keys else ("", 0)
            if count > 1:
                raise UserError(
                    f"{rank.keys_file} has the key '{key}' {count} times, which one process never "
                    "writes; the file is damaged or made of several."
                )
            for key in keys:
                if places.setdefault(key, place) != place:
                    repeated[key] += 1
                place += 1
        # Filled to a multiple of the processes, or of twice as many where they mix pairs.
        if repeated.total() >= 2 * len(ranks):
            raise UserError(
                f"{ranks[0].keys_file.parent}: {repeated.total()} keys are in the files of several "
                f"processes (such as {next(iter(repeated))}), more than the {len(ranks)} processes "
                "explain; files of other runs are among them: remove those."
            )
        if not places:
            raise UserError(f"{ranks[0].keys_file.parent} has no records.")
        return places

    def read(self, epoch: int, places: np.ndarray) -> Records:
        """The records in these places (n,) of an epoch, checked."""
        ranks = self.epochs[epoch]
        sizes = [rank.size() // (4 + 4 * self.num_kept) for rank in ranks]
        starts = np.cumsum([0, *sizes])
        stored = np.empty(len(places), record_type(self.num_kept))
        for rank, start, end in zip(ranks, starts[:-1], starts[1:], strict=True):
            is_here = (places >= start) & (places < end)
            if is_here.any():
                stored[is_here] = rank.read(places[is_here] - start)
        self._check(stored, places, ranks[0].keys_file.parent)
        return Records(*(stored[name] for name in Records._fields))

    def _check(self, stored: np.ndarray, places: np.ndarray, folder: Path) -> None:
        classes, probs = stored["classes"], stored["probs"].astype(np.float32)
        ordered = np.sort(classes, axis=1)
        problems = {
            "a negative view seed": stored["view_seeds"] < 0,
            "a negative class id": (classes < 0).any(1),
            f"a class id of {self.num_classes} or above": (classes >= self.num_classes).any(1),
            "one class twice": (ordered[:, 1:] == ordered[:, :-1]).any(1),
            "a probability that is not finite": ~np.isfinite(probs).all(1),
            "probabilities outside 0..1": (probs < 0).any(1) | (probs.sum(1) > MAX_SUM),
            "probabilities that do not fall": (probs[:, 1:] > probs[:, :-1]).any(1),
        }
        for problem, is_wrong in problems.items():
            if is_wrong.any():
                raise UserError(
                    f"{folder}: the record in place {places[is_wrong][0]} has {problem} (of "
                    f"{is_wrong.sum()} such records); the file is damaged, or --classes "
                    f"{self.num_classes} is not right."
                )


def record_type(num_kept: int) -> np.dtype:
    """One record of the layout, 4 + 4 * ``num_kept`` bytes."""
    return np.dtype(
        [("view_seeds", "<i4"), ("classes", "<i2", (num_kept,)), ("probs", "<f2", (num_kept,))]
    )


def soft_labels(records: Records, num_classes: int) -> SoftLabels:
    """What the records say; what is left is 1 minus the sum of the K.

    Differs from the released code: where float16 rounded that sum above 1, nothing is left and the
    K are scaled to 1, instead of a rest below zero.
    """
    probs = torch.from_numpy(records.probs.astype(np.float64))
    total = probs.sum(dim=1)
    return SoftLabels(
        probs=(probs / total.clamp(min=1)[:, None]).float(),
        classes=torch.from_numpy(records.classes.astype(np.int64)),
        rest=(1 - total).clamp(min=0).float(),
        num_classes=num_classes,
    )


def _epoch_folders(root: Path) -> tuple[int, list[Path]]:
    """K, and the folders of the epochs from 0 on."""
    if not root.is_dir():
        raise UserError(f"There is no folder {root}.")
    found = [
        (int(match[2]), int(match[1]), path)
        for path in _listed_in(root)
        if (match := FOLDER.fullmatch(path.name)) and path.is_dir()
    ]
    if not found:
        raise UserError(
            f"{root} has no folder logits_top..._epoch..., so no soft labels in the released "
            "layout; name the folder in which these are."
        )
    epochs, kept, paths = zip(*sorted(found), strict=True)
    if len(set(kept)) > 1:
        names = ", ".join(f"top{n}" for n in sorted(set(kept)))
        raise UserError(f"{root} mixes sets of several K ({names}); give each its own folder.")
    if kept[0] == 0:
        raise UserError(f"{paths[0]} keeps no class at all; correct its name.")
    last, there = epochs[-1], set(epochs)
    if len(there) <= last:
        missing = list(islice((epoch for epoch in range(last) if epoch not in there), NUM_NAMED))
        more = last + 1 - len(there) - len(missing)
        raise UserError(
            f"{root} has epochs up to {last}, but not {', '.join(map(str, missing))}"
            f"{f' and {more} more' if more else ''}; add what is missing, or number the folders "
            "from 0 without a gap."
        )
    return kept[0], list(paths)


def _ranks(folder: Path, num_kept: int) -> list[Rank]:
    names = {path.name for path in _listed_in(folder)}
    numbers = sorted({int(match[1]) for name in names if (match := FILE.fullmatch(name))})
    if not numbers:
        raise UserError(f"{folder} has no rank0-keys.txt; copy its files again.")
    ranks = []
    for number in range(numbers[-1] + 1):  # raises at the first that is missing
        files = (f"rank{number}-keys.txt", f"rank{number}-values.bin")
        missing = [name for name in files if name not in names]
        if missing:
            raise UserError(
                f"{folder} has files of rank {numbers[-1]}, but no {' and no '.join(missing)}; "
                "copy what is missing."
            )
        ranks.append(Rank(folder / files[0], folder / files[1], num_kept))
    return ranks


def _listed_in(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError as error:
        raise UserError(
            f"Can't read {folder}: {reason_of(error)}; correct its permissions."
        ) from error


@contextmanager
def _opened(file: Path, max_bytes: int = MAX_FILE_BYTES) -> Iterator[BinaryIO]:
    try:
        with open_file(file, max_bytes) as stream:
            yield stream
    except OSError as error:
        raise UserError(f"Can't read {file}: {reason_of(error)}; copy it again.") from error
