"""Which files a set is made of, and which of them are its training, validation or test part.

Sets of the Hugging Face hub are cloned as one folder with the files of all their splits; what is
for testing must not be trained on.
"""

import glob
import itertools
import logging
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from limbeck.data.folder import SPLIT_OF, by_suffix, named, note_passed, walk
from limbeck.data.formats import is_image_name
from limbeck.errors import UserError, did_you_mean

log = logging.getLogger("limbeck")

PACKED_SUFFIXES = (
    ".tgz", ".tbz", ".txz", ".tar.gz", ".tar.bz2", ".tar.xz", ".tar.zst", ".tar.lz4",
)  # fmt: skip
BRACES = re.compile(r"\{([^{}]*)\}")
MAX_CHOICES = 1_000_000  # of a pattern; more are a slip of the hand


def is_pattern(root: str) -> bool:
    """Whether ``root`` is the name of no file or folder, but of several."""
    return any(sign in root for sign in "*?[{") and not os.path.lexists(root)


def find_files(
    root: str, is_wanted: Callable[[str], bool], notes: list[str] | None = None
) -> list[tuple[Path, str]]:
    """(file, name) of the files that ``root`` stands for: a file, a folder or a pattern.

    A name is relative to the folder, or to the part of the pattern that is the same for all. What
    is left out of a folder is logged and added to ``notes`` where these are given.
    """
    path = Path(root)
    if is_pattern(root):
        files = list(dict.fromkeys(Path(name) for name in expand_pattern(root)))
        parent = os.path.commonpath([os.path.abspath(file.parent) for file in files])
        return [(file, Path(os.path.relpath(file, parent)).as_posix()) for file in files]
    if path.is_dir():
        passed: Counter[str] = Counter()
        names = list(walk(path, passed))
        if notes is not None:
            others = sorted(name for name in names if not is_wanted(name))
            for note in _note_left_out(others, passed):
                log.info("%s", note)
                notes.append(note)
        return [(path / name, name) for name in names if is_wanted(name)]
    return [(path, path.name)]


def _note_left_out(names: list[str], passed: Counter[str]) -> Iterator[str]:
    images = [name for name in names if is_image_name(name)]
    others = [name for name in names if not is_image_name(name)]
    if images:
        yield f"{named(images, 'image')} beside tables or shards left out."
    if others:
        yield f"{by_suffix(others, 'other file')} left out."
    yield from note_passed(passed)


def expand_pattern(pattern: str) -> list[str]:
    """The names of a local pattern of ``{00..09}``, ``{x,y}``, ``*`` and ``?``, in their order.

    Names in braces are meant as they are, there or not; of stars, what is there.
    """
    names: list[str] = []
    for choice in expand_braces(pattern):
        if any(sign in choice for sign in "*?[") and not os.path.lexists(choice):
            names += sorted(glob.glob(choice, recursive=True))
        else:
            names.append(choice)
    if not names:
        raise UserError(f"No file is called {pattern}; correct the pattern.")
    return names


def expand_braces(pattern: str) -> list[str]:
    """``a-{00..02}.tar`` or ``a-{x,y}.tar`` as the list of names; several braces multiply."""
    choices: list[list[str]] = []
    num_names = 1
    for part, is_brace in zip(BRACES.split(pattern), itertools.cycle((False, True))):
        limits = re.fullmatch(r"(\d+)\.\.(\d+)", part) if is_brace else None
        first, last = limits.groups() if limits else ("0", "0")
        words = part.split(",") if is_brace else [part]
        num_names *= int(last) - int(first) + 1 if limits else len(words)
        if not 0 < num_names <= MAX_CHOICES:
            raise UserError(
                f"The pattern {pattern} stands for {'no' if num_names < 1 else f'{num_names:,}'} "
                f"names; correct the numbers in its braces (at most {MAX_CHOICES:,})."
            )
        if limits:
            words = [str(n).zfill(len(first)) for n in range(int(first), int(last) + 1)]
        choices.append(words)
    return ["".join(parts) for parts in itertools.product(*choices)]


def is_packed_name(name: str) -> bool:
    """Whether a file is a compressed .tar by its suffix."""
    return name.lower().endswith(PACKED_SUFFIXES)


def split_of(name: str) -> str | None:
    """The split that a file is of by its name, such as ``data/test-00000-of-00001.parquet``.

    The first or the last word of its base name tells, or else a folder that it lies in.
    """
    *folders, base = name.lower().split("/")
    words = [
        word for word in re.split(r"[^a-z]+", base.partition(".")[0]) if word not in ("", "of")
    ]
    told = [*words[:1], *words[-1:], *reversed(folders)]
    return next((SPLIT_OF[word] for word in told if word in SPLIT_OF), None)


def splits_of(names: list[str]) -> dict[str, list[str]]:
    """The names by their split where they are of several, and otherwise {}.

    Names that don't tell are training data beside others that tell of tests alone; beside
    several splits they are none's, "".
    """
    found: dict[str, list[str]] = {}
    for name in names:
        found.setdefault(split_of(name) or "", []).append(name)
    told = set(found) - {""}
    if "" in found and told and "train" not in told:
        found["train"] = found.pop("")
    return found if len(set(found) - {""}) > 1 else {}


def choose_split(
    files: list[tuple[Path, str]], split: str, root: str, notes: list[str] | None = None
) -> list[tuple[Path, str]]:
    """Those of ``files`` that are of ``split`` (or of several: ``train+validation``).

    All of them where they are of one kind. What is left out is logged and added to ``notes``.
    """
    found = splits_of([name for _, name in files])
    if not found:
        return files
    counts = {name: len(part) for name, part in found.items()}
    wanted = [SPLIT_OF.get(word.strip().lower(), word.strip()) for word in split.split("+")]
    for word in wanted:
        if word not in found:
            names = sorted(set(found) - {""})
            raise UserError(
                f"{root} has no files of a split '{word}', but of {', '.join(names)}."
                f"{did_you_mean(word, names)} Choose with --data.split (of --data.eval-root: "
                "--data.eval-split), or pass the files by name."
            )
    left_out = [
        f"{name or 'of no split'} {count}" for name, count in counts.items() if name not in wanted
    ]
    if left_out:
        note = (
            f"{root} holds several splits: {' and '.join(wanted)} is taken "
            f"({sum(counts[name] for name in wanted)} of {len(files)} files), left out are "
            f"{', '.join(left_out)}. Choose with --data.split; to score on another, pass the same "
            "place as --data.eval-root, and --data.eval-split."
        )
        log.warning("%s", note)
        if notes is not None:
            notes.append(note)
    kept = {name for word in wanted for name in found[word]}
    return [(file, name) for file, name in files if name in kept]
