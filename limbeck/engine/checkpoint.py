"""A run's folder: whose it is, its checkpoint, and writing that survives a crash or a full disk.

The folder holds ``config.json`` (the resolved config), ``fingerprint.json`` (what data and teacher
the run was started with), ``checkpoint.pt`` and, at the end, ``finished.json`` with the digests of
what the run has made. A file is written under a temporary name, flushed to the disk and renamed, so
that at every moment either the old or the new one is whole.
"""

import logging
import os
import re
import shutil
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, BinaryIO
from zipfile import ZIP_STORED, ZipFile

import torch
from typing_extensions import TypedDict

from limbeck.documents import flat, read_json, write_json
from limbeck.engine.differences import MAY_CHANGE, differences
from limbeck.engine.distributed import check_ranks, on_main_rank
from limbeck.errors import RunError, UserError
from limbeck.files import MIB, TEMPORARY_SUFFIX, is_inside, open_file, reason_of, write_whole

log = logging.getLogger("limbeck")

FORMAT = 1

LEFT_OVER = re.compile(rf"\..+(\{TEMPORARY_SUFFIX}|\.\d+\.tmp)")
"""Names of what a killed writer leaves, of the first versions (.tmp) too."""

LOCK_FILE = ".lock"
_HELD: dict[Path, int] = {}  # the locks of this process, of runs that it has not finished


@dataclass(frozen=True)
class Run:
    """A run's folder, opened by ``open_run``. ``is_finished``: nothing is left to do in it.

    ``makes``: the files that it must have then.
    """

    dir: Path
    config: dict[str, Any]
    is_finished: bool = False
    makes: tuple[str, ...] = ()

    @property
    def checkpoint_file(self) -> Path:
        """Where the last checkpoint is."""
        return self.dir / "checkpoint.pt"

    def finish(self, *kept: str) -> None:
        """Mark the run as finished, once everything it was to make is in the folder.

        ``kept``: what it has made besides. Raises RunError where a file can't be read again.
        """
        try:
            files = {name: _digest(self.dir / name) for name in (*self.makes, *kept)}
        except OSError as error:
            raise RunError(f"Can't read {error.filename} again: {reason_of(error)}.") from error
        write_json(self.dir / "finished.json", {"files": files})
        self.release()

    def release(self) -> None:
        """Let other processes into the folder, in which this one does nothing more."""
        if (descriptor := _HELD.pop(self.dir.resolve(), None)) is not None:
            os.close(descriptor)


class _Finished(TypedDict, total=False):
    files: dict[str, str]  # not in the folders of earlier versions


def open_run(
    out: Path,
    config: dict[str, Any],
    fingerprint: dict[str, Any],
    overwrite: bool = False,
    makes: tuple[str, ...] = (),
) -> Run:
    """Start a run in the folder ``out``, or take up the one that is there.

    ``config`` and ``fingerprint`` are plain JSON data. A folder with the same two is continued
    (``MAY_CHANGE`` aside), whatever ``overwrite`` says: the same command always goes on. Another
    run is replaced with ``overwrite``, or where neither it nor a stage in a sub-folder has anything
    to lose yet: its files and TensorBoard folder are deleted, other sub-folders stay. ``makes``
    names what a finished run must have: one that has lost it, or of which it is damaged, goes on
    from its checkpoint. Raises UserError for another run without ``overwrite``, for a folder with
    files that are no run, for one that another process works on, for one that can't be written,
    and on all ranks where one of them has another config or fingerprint.
    """
    check_ranks({"fingerprint": fingerprint, **config})
    return on_main_rank(lambda: _open_run(out, config, fingerprint, overwrite, makes))


def _open_run(
    out: Path,
    config: dict[str, Any],
    fingerprint: dict[str, Any],
    overwrite: bool,
    makes: tuple[str, ...],
) -> Run:
    try:
        entries = _prepare_folder(out)
        if "config.json" in entries:
            what, differing = _differing(out, config, fingerprint)
            if not differing:
                is_finished = "finished.json" in entries and _is_whole(out, makes, overwrite)
                return Run(out, config, is_finished, makes)
            # Before its first checkpoint a run has nothing to lose, and most likely failed.
            has_results = _has(out, "checkpoint.pt") or _has(out, "finished.json")
            if has_results and not overwrite:
                Run(out, config).release()
                more = f" (and {len(differing) - 3} more)" if len(differing) > 3 else ""
                raise UserError(
                    f"{out} holds {what} run: {'; '.join(differing[:3])}{more}. "
                    "Choose another --out, or replace that run with --overwrite."
                )
            _clear(out)
        # The config last: a folder without one is a run that has not begun.
        write_json(out / "fingerprint.json", fingerprint)
        write_json(out / "config.json", config)
    except OSError as error:
        raise UserError(
            f"Can't write in {out}: {reason_of(error)}; choose another --out."
        ) from error
    return Run(out, config, makes=makes)


def saved_config(out: Path, asked: dict[str, Any]) -> dict[str, Any]:
    """The config of the run in a folder, by dotted name; empty where there is none or another.

    Of what both have nothing differs, but for what may change and what is "auto" in ``asked``.
    """
    try:
        there = read_json(out / "config.json") if (out / "config.json").exists() else {}
    except UserError:  # ``open_run`` tells it
        return {}
    found = differences(there, asked, MAY_CHANGE)
    is_other = any(own != '"auto"' and "absent" not in (old, own) for _, old, own in found)
    return {} if is_other else flat(there)


def is_finished_run(out: Path, config: dict[str, Any], fingerprint: dict[str, Any]) -> bool:
    """Whether the folder holds just this run, finished; arguments as of ``open_run``."""
    marks = [out / name for name in ("config.json", "finished.json")]
    return (
        all(mark.exists() for mark in marks)
        and not _differing(out, config, fingerprint)[1]
        and _loss(out, ()) is None
    )


def _differing(
    out: Path, config: dict[str, Any], fingerprint: dict[str, Any]
) -> tuple[str, list[str]]:
    """What the folder's run is to this one, and in what it differs, in words."""
    try:
        there = {name: read_json(out / f"{name}.json") for name in ("config", "fingerprint")}
    except UserError as error:
        return "a damaged", [str(error).rstrip(".")]
    found = differences(there["config"], config, MAY_CHANGE)
    found += differences(there["fingerprint"], fingerprint, MAY_CHANGE, "fingerprint of ")
    return "another", [f"{name} is {old} there and {new} here" for name, old, new in found]


def _has(out: Path, mark: str) -> bool:
    """Whether it is in the folder, or in those of a chain's stages, or of their seeds."""
    return any(any(out.glob(f"{where}{mark}")) for where in ("", "*/", "*/*/"))


def _is_whole(out: Path, makes: tuple[str, ...], overwrite: bool) -> bool:
    """Whether a finished run has what it has made; if not, it is unfinished from now on."""
    loss = _loss(out, makes)
    if loss is None:
        return True
    if not overwrite and not _has(out, "checkpoint.pt"):
        raise UserError(
            f"{out} was finished, but {loss}, and without its checkpoint it can't be made again. "
            "Restore the file from a copy, or train afresh with --overwrite."
        )
    log.warning("%s was finished, but %s: it is made again.", out, loss)
    (out / "finished.json").unlink()
    return False


def _loss(out: Path, makes: tuple[str, ...]) -> str | None:
    """What a finished run has lost of what it has made, in words."""
    try:
        said: _Finished = read_json(out / "finished.json", _Finished)
    except UserError:
        return "finished.json is damaged"
    known = dict.fromkeys(makes) | said.get("files", {})
    for name, digest in known.items():
        if not is_inside(name):
            return "finished.json is damaged"
        try:
            found = _digest(out / name)
        except OSError as error:
            return f"{name} can't be read ({reason_of(error)})"
        if digest not in (None, found):
            return f"{name} is damaged"
    return None


def _digest(file: Path) -> str:
    digest = blake2b(digest_size=16)
    with open_file(file) as stream:
        while block := stream.read(MIB):
            digest.update(block)
    return digest.hexdigest()


def _prepare_folder(out: Path) -> set[str]:
    """Make or lock the folder, sweep what a crash left in it; the names of its entries."""
    out.mkdir(parents=True, exist_ok=True)
    entries = {entry.name: entry for entry in out.iterdir() if not LEFT_OVER.fullmatch(entry.name)}
    if "config.json" not in entries:
        foreign = entries.keys() - {"fingerprint.json", LOCK_FILE}
        if LOCK_FILE in entries:  # a run's whose clearing was cut short; its sub-folders stay
            foreign = {name for name in foreign if not entries[name].is_dir()}
        if foreign:
            raise UserError(
                f"{out} is not empty and holds no run ({', '.join(sorted(foreign)[:3])}); "
                "choose another --out."
            )
    _lock(out)  # before the sweep: what is half written may be another process's
    (out / f".probe{TEMPORARY_SUFFIX}").write_bytes(b"\n")
    for entry in out.iterdir():
        if LEFT_OVER.fullmatch(entry.name) and not entry.is_dir():
            entry.unlink(missing_ok=True)
    return {entry.name for entry in out.iterdir()}


def _lock(out: Path) -> None:
    """Keep other processes out of the folder until the run is finished, or this one has ended.
    Raises UserError.

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
    _HELD[out.resolve()] = descriptor


def _clear(out: Path) -> None:
    shutil.rmtree(out / "tensorboard", ignore_errors=True)
    # Cut short, this leaves a run that can be replaced again: the mark goes first, and the config,
    # without which a folder is nobody's, stays until the next one takes its place.
    (out / "finished.json").unlink(missing_ok=True)
    for entry in out.iterdir():
        if not entry.is_dir() and entry.name not in ("config.json", LOCK_FILE):
            entry.unlink(missing_ok=True)


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
    """The run's checkpoint on the CPU, or None before the first.

    Raises RunError for a file that is damaged, no checkpoint, or another run's.
    """
    file = run.checkpoint_file
    if not file.exists():
        return None
    try:
        _check_sums(file)
        state = torch.load(file, map_location="cpu", weights_only=True)
        is_ours = isinstance(state, dict) and state.get("limbeck_checkpoint") == FORMAT
        found = differences(state["config"], run.config, MAY_CHANGE) if is_ours else []
    except OSError as error:
        raise RunError(f"Can't read {file}: {reason_of(error)}.") from error
    except Exception as error:  # torch.load names no common class for a damaged file
        raise RunError(
            f"Can't read {file}: it is damaged, or no checkpoint. Restore it from a copy, or "
            "delete it to start afresh."
        ) from error
    if not is_ours:
        raise RunError(
            f"{file} is no checkpoint of this version of Limbeck; continue with the version that "
            "wrote it, or choose another --out."
        )
    if found:
        name, there, here = found[0]
        raise RunError(
            f"{file} is another run's ({name} is {there} there and {here} here). Restore this "
            "run's from a copy, or delete it to start afresh."
        )
    return state


def _check_sums(file: Path) -> None:
    """Compare the checksums that torch.save has put into its archive; torch.load does not."""
    with open_file(file) as stream, ZipFile(stream) as archive:
        # As torch writes it: what is compressed could be of any size.
        if any(each.compress_type != ZIP_STORED for each in archive.infolist()):
            raise ValueError("compressed")
        if archive.testzip() is not None:
            raise ValueError("another checksum")
