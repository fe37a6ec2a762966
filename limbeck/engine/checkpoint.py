"""A run's folder: whose it is, its checkpoint, and writing that survives a crash or a full disk.

The folder holds ``config.json`` (the resolved config), ``fingerprint.json`` (what data and teacher
the run was started with) and ``checkpoint.pt``. A file is written under a temporary name, flushed
to the disk and renamed, so that at every moment either the old or the new one is whole.
"""

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch

from limbeck.documents import read_json, write_json
from limbeck.engine.distributed import on_main_rank
from limbeck.errors import RunError, UserError
from limbeck.files import TEMPORARY_SUFFIX, write_whole

FORMAT = 1

MAY_CHANGE = (
    "out",
    "overwrite",
    "teacher.source",  # what it computes is in the fingerprint, wherever its weights lie
    "precision",  # what auto stands for in a study: kept, not compared
    "targets.cache",
    "data.num_workers",
    "data.max_bad_ratio",
    "probes.batch_size",
    "probes.num_train",
    "probes.num_test",
    "evaluation.batch_size",
    "train.accumulate_steps",  # as the number of processes, which is not in the config at all
    "train.compile",
    "train.save_every",
    "train.log_every",
    "train.probe_every",
    "train.device",
    "train.wandb_project",
)
"""Options that may differ when a run is continued: they do not change what is learned."""

LOCK_FILE = ".lock"
_HELD: dict[Path, int] = {}  # the locks of this process, which last as long as it does


@dataclass(frozen=True)
class Run:
    """A run's folder, opened by ``open_run``. ``is_finished``: nothing is left to do in it."""

    dir: Path
    config: dict[str, Any]
    is_finished: bool = False

    @property
    def checkpoint_file(self) -> Path:
        """Where the last checkpoint is."""
        return self.dir / "checkpoint.pt"

    def finish(self) -> None:
        """Mark the run as finished, once everything it was to make is in the folder."""
        write_whole(self.dir / "finished.json", lambda stream: stream.write(b"{}\n"))


def open_run(
    out: Path, config: dict[str, Any], fingerprint: dict[str, Any], overwrite: bool = False
) -> Run:
    """Start a run in the folder ``out``, or take up the one that is there.

    ``config`` and ``fingerprint`` are plain JSON data. A folder with the same two is continued
    (``MAY_CHANGE`` aside), whatever ``overwrite`` says: the same command always goes on. Another
    run is replaced with ``overwrite``, or where neither it nor a stage in a sub-folder has anything
    to lose yet: its files and TensorBoard folder are deleted, other sub-folders stay. Raises
    UserError for another run without ``overwrite``, for a folder with files that are no run, for
    one that another process works on, and for one that can't be written.
    """
    return on_main_rank(lambda: _open_run(out, config, fingerprint, overwrite))


def _open_run(
    out: Path, config: dict[str, Any], fingerprint: dict[str, Any], overwrite: bool
) -> Run:
    entries = _prepare_folder(out)
    if "config.json" in entries:
        differing = _differing(out, config, fingerprint)
        if not differing:
            return Run(out, config, is_finished="finished.json" in entries)
        # Before its first checkpoint a run has nothing to lose, and most likely failed.
        marks = ("checkpoint.pt", "finished.json")
        # A chain's are in the folders of its stages, with several seeds one folder deeper.
        has_results = any(
            mark in entries or any(out.glob(f"*/{mark}")) or any(out.glob(f"*/*/{mark}"))
            for mark in marks
        )
        if has_results and not overwrite:
            more = f" (and {len(differing) - 3} more)" if len(differing) > 3 else ""
            raise UserError(
                f"{out} holds another run: {'; '.join(differing[:3])}{more}. "
                "Choose another --out, or replace that run with --overwrite."
            )
        _clear(out)
    # The config last: a folder without one is a run that has not begun.
    write_json(out / "fingerprint.json", fingerprint)
    write_json(out / "config.json", config)
    return Run(out, config)


def saved_config(out: Path, asked: dict[str, Any]) -> dict[str, Any]:
    """The config of the run in a folder, by dotted name; empty where there is none or another.

    Of what both have nothing differs, but for what may change and what is "auto" in ``asked``.
    """
    file = out / "config.json"
    there = dict(_flatten(read_json(file))) if file.exists() else {}
    here = {name: value for name, value in _flatten(asked) if value != "auto"}
    is_other = any(
        _short(there, name) != _short(here, name)
        for name in there.keys() & here.keys()
        if not _may_change(name)
    )
    return {} if is_other else there


def is_finished_run(out: Path, config: dict[str, Any], fingerprint: dict[str, Any]) -> bool:
    """Whether the folder holds just this run, finished; arguments as of ``open_run``."""
    marks = [out / name for name in ("config.json", "finished.json")]
    return all(mark.exists() for mark in marks) and not _differing(out, config, fingerprint)


def _differing(out: Path, config: dict[str, Any], fingerprint: dict[str, Any]) -> list[str]:
    # Compared as JSON reads it back: tuples are lists, keys are strings.
    config, fingerprint = json.loads(json.dumps([config, fingerprint]))
    known = [(read_json(out / "config.json"), config, "")]
    known += [(read_json(out / "fingerprint.json"), fingerprint, "fingerprint of ")]
    return [text for args in known for text in _differences(*args)]


def _prepare_folder(out: Path) -> set[str]:
    """Make or lock the folder, sweep what a crash left in it; the names of its entries."""
    probe = out / f".probe{TEMPORARY_SUFFIX}"
    try:
        out.mkdir(parents=True, exist_ok=True)
        entries = {entry.name for entry in out.iterdir()}
        foreign = {name for name in entries if not name.endswith(TEMPORARY_SUFFIX)}
        if "config.json" not in entries and foreign - {"fingerprint.json", LOCK_FILE}:
            raise UserError(
                f"{out} is not empty and holds no run ({', '.join(sorted(foreign)[:3])}); "
                "choose another --out."
            )
        _lock(out)  # before the sweep: what is half written may be another process's
        probe.write_bytes(b"\n")
        for file in out.glob(f".*{TEMPORARY_SUFFIX}"):
            file.unlink()
        return {entry.name for entry in out.iterdir()}
    except OSError as error:
        raise UserError(f"Can't write in {out}: {error.strerror}; choose another --out.") from error


def _lock(out: Path) -> None:
    """Keep other processes out of the folder for as long as this one lives; raises UserError.

    A lock of the operating system: it ends with the process, whatever ends it, and loader
    processes do not inherit it. File systems without locks go unguarded.
    """
    if out.resolve() in _HELD:
        return
    try:
        import fcntl
    except ImportError:  # not on Windows
        return
    descriptor = os.open(out / LOCK_FILE, os.O_RDWR | os.O_CREAT)
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError) as error:
        os.close(descriptor)
        raise UserError(
            f"Another process is working on the run in {out}; wait for it, or choose another --out."
        ) from error
    except OSError:
        os.close(descriptor)
        return
    _HELD[out.resolve()] = descriptor  # closing it would unlock


def _clear(out: Path) -> None:
    shutil.rmtree(out / "tensorboard", ignore_errors=True)
    # The marks first and last: cut short, this leaves an unfinished run that can be replaced again.
    (out / "finished.json").unlink(missing_ok=True)
    for entry in out.iterdir():
        if not entry.is_dir() and entry.name not in ("config.json", LOCK_FILE):
            entry.unlink()
    (out / "config.json").unlink()


def _flatten(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _differences(there: dict[str, Any], here: dict[str, Any], what: str) -> list[str]:
    old, new = dict(_flatten(there)), dict(_flatten(here))
    if old.get("teacher.source") is None and new.get("teacher.source") is None:
        for each in (old, new):  # earlier versions wrote one of a teacher that there is not
            each.pop("teacher.precision", None)
    return [
        f"{what}{name} is {_short(old, name)} there and {_short(new, name)} here"
        for name in {**new, **old}
        if not _may_change(name) and _short(old, name) != _short(new, name)
    ]


def _may_change(name: str) -> bool:
    # A fine-tuning within something larger has sections of its own, such as tune.train.
    return name in MAY_CHANGE or any(
        "." in each and name.endswith(f".{each}") for each in MAY_CHANGE
    )


def _short(values: dict[str, Any], name: str) -> str:
    return json.dumps(values[name]) if name in values else "absent"


def save_checkpoint(run: Run, state: dict[str, Any]) -> None:
    """Replace the run's checkpoint by ``state`` (tensors and plain data).

    Raises RunError on a full disk; the previous checkpoint is then still there.
    """
    full = {"limbeck_checkpoint": FORMAT, "config": run.config, **state}
    write_whole(run.checkpoint_file, lambda stream: _save(full, stream))


def _save(state: dict[str, Any], stream: BinaryIO) -> None:
    try:
        torch.save(state, stream)
    except RuntimeError as error:
        # PyTorch's own complaint about the unfinished archive hides the disk's.
        if isinstance(error.__context__, OSError):
            raise error.__context__ from None
        raise


def load_checkpoint(run: Run) -> dict[str, Any] | None:
    """The run's checkpoint on the CPU, or None before the first; raises RunError for a bad file."""
    file = run.checkpoint_file
    if not file.exists():
        return None
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load names no common class for a damaged file
        raise RunError(
            f"Can't read {file}: {error}. Restore it from a copy, or delete it to start afresh."
        ) from error
    if not isinstance(state, dict) or state.get("limbeck_checkpoint") != FORMAT:
        raise RunError(
            f"{file} is no checkpoint of this version of Limbeck; continue with the version that "
            "wrote it, or choose another --out."
        )
    return state
