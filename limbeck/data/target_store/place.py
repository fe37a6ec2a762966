"""Where a store lies: a local folder, or any address that fsspec knows.

A file is written whole or not at all. Who makes a file that must not be made twice claims it first;
in a local folder a claim is a lock of the operating system, which ends with its process, whatever
ends that. Object stores have no locks: there the later of two is refused when it publishes.
"""

import errno
import os
import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any, ClassVar

from limbeck.errors import RunError, UserError, require_extra
from limbeck.files import TEMPORARY_SUFFIX, open_file, read_file, sync_folder

MAX_OBJECT_BYTES = 2**30
"""Of a file that is read whole: what is said of a part, or the weights of a block."""
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
EXTRAS = {"s3": "s3fs", "s3a": "s3fs"}
"""Protocol -> the package that the extra "remote" brings for it."""
WITHOUT_FOLDERS = ("s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "oss")
"""Their files need no folder; asked for one, they would make a bucket of a misspelt name."""

Publish = Callable[[bytes], None]


class Taken(Exception):
    """The file that was claimed exists already."""


class Place(ABC):
    """A flat folder of files. All raise RunError, with the reason, where the place refuses."""

    address: str
    failures: ClassVar[type[Exception]]
    """What it raises where it refuses."""

    @abstractmethod
    def begin(self) -> None:
        """Make the folder; what is written later fails where it is gone."""

    @abstractmethod
    def sweep(self) -> None:
        """Remove what killed writers left half-written, and nothing of those that live."""

    @abstractmethod
    def sizes(self) -> dict[str, int]:
        """Name -> bytes of the files in it, sorted; none where the folder does not exist."""

    @abstractmethod
    def read_all(self, names: Sequence[str]) -> list[bytes]:
        """The content of files, of at most MAX_OBJECT_BYTES each."""

    @abstractmethod
    def read_range(self, name: str, start: int, end: int) -> bytes:
        """A part of a file."""

    @abstractmethod
    def size(self, name: str) -> int | None:
        """Bytes of a file; None where there is none."""

    @abstractmethod
    def write(self, name: str, data: bytes) -> None:
        """Write a file, in the place of one of that name."""

    @abstractmethod
    def free(self) -> int | None:
        """Bytes that are free there; None where there is no telling."""

    @abstractmethod
    def claim(self, name: str, *, wait: bool = False) -> AbstractContextManager[Publish]:
        """Be the only one to write ``name``, with the function that the context gives.

        Raises Taken where it exists, RunError where another process is writing it, unless it is to
        ``wait`` for that.
        """

    @contextmanager
    def _errors(self, verb: str, name: str = "") -> Iterator[None]:
        """Tell what could not be done to a file, or to the place itself, and why."""
        try:
            yield
        except (UserError, Taken):
            raise
        except self.failures as error:
            raise _refused(verb, f"{self.address}/{name}".rstrip("/"), error) from error


def open_place(address: str) -> Place:
    """The place at a path or an fsspec address; nothing is made or looked up yet."""
    address = os.path.expanduser(str(address).removeprefix("file://"))
    if not address or "\0" in address:
        raise UserError(f"The store {address!r} can't be: that is no path; correct it.")
    is_remote = "://" in address
    address = address.rstrip("/") or "/"
    return RemotePlace(address) if is_remote else LocalPlace(address)


def check_room(place: Place, num_bytes: int, what: str, remedy: str) -> None:
    """Raise UserError where a place has not room for so many bytes, as far as it tells."""
    free = place.free()
    if free is not None and num_bytes > free:
        raise UserError(
            f"{what} need {num_bytes / 1e9:.2f} GB and {place.address} has {free / 1e9:.2f} GB "
            f"free; free some, or {remedy}."
        )


class LocalPlace(Place):
    """A folder of this machine, or one that it mounts."""

    failures = OSError

    def __init__(self, address: str) -> None:
        self.address = address
        self.folder = Path(address)

    def begin(self) -> None:
        with self._errors("write"):
            self.folder.mkdir(parents=True, exist_ok=True)

    def sweep(self) -> None:
        """See ``Place``: the lock of a writer ends with it."""
        with suppress(OSError):
            for partial in self.folder.glob(f".*{TEMPORARY_SUFFIX}"):
                with suppress(RunError), open_file(partial) as file:
                    if _lock_file(file.fileno(), wait=False):
                        partial.unlink()

    def sizes(self) -> dict[str, int]:
        """See ``Place``; what is hidden, and a link to nothing, is left out."""
        sizes = {}
        with self._errors("read"):
            if not self.folder.exists():
                return {}
            names = sorted(name for name in os.listdir(self.folder) if not name.startswith("."))
        for name in names:
            if (size := self.size(name)) is not None:
                sizes[name] = size
        return sizes

    def read_all(self, names: Sequence[str]) -> list[bytes]:
        contents = []
        for name in names:
            with self._errors("read", name):
                contents.append(read_file(self.folder / name, MAX_OBJECT_BYTES))
        return contents

    def read_range(self, name: str, start: int, end: int) -> bytes:
        with self._errors("read", name), open_file(self.folder / name) as file:
            file.seek(start)
            return file.read(end - start)

    def size(self, name: str) -> int | None:
        with self._errors("read", name):
            try:
                return os.stat(self.folder / name).st_size
            except FileNotFoundError:
                return None

    def write(self, name: str, data: bytes) -> None:
        """See ``Place``: to a temporary name, flushed to the disk, renamed."""
        with self._partial(name, wait=False) as publish:
            publish(data)

    def free(self) -> int | None:
        """See ``Place``; before the folder exists, where it will be."""
        folder = self.folder.absolute()
        with self._errors("read"):
            there = next(path for path in (folder, *folder.parents) if path.exists())
            return shutil.disk_usage(there).free

    @contextmanager
    def claim(self, name: str, *, wait: bool = False) -> Iterator[Publish]:
        """See ``Place``. The claim is a lock on the temporary file that becomes the file."""
        with self._partial(name, wait) as publish:
            if (self.folder / name).exists():
                raise Taken(name)
            yield publish

    @contextmanager
    def _partial(self, name: str, wait: bool) -> Iterator[Publish]:
        partial = self.folder / f".{name}{TEMPORARY_SUFFIX}"
        with self._errors("write", name):
            descriptor = self._lock(partial, wait)

        def publish(data: bytes) -> None:
            with self._errors("write", name):
                os.ftruncate(descriptor, 0)
                _write_through(descriptor, data)
                os.replace(partial, self.folder / name)
                sync_folder(self.folder)

        try:
            yield publish
        finally:
            with suppress(OSError):
                partial.unlink(missing_ok=True)  # On a full disk it would be in the way.
            os.close(descriptor)

    def _lock(self, partial: Path, wait: bool) -> int:
        while True:
            # Of a link that somebody put there the target is not written to.
            flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
            descriptor = os.open(partial, flags, 0o666)
            try:
                _lock_file(descriptor, wait)
                # Whoever had the lock before may have renamed the file meanwhile.
                if os.path.samestat(os.fstat(descriptor), os.stat(partial)):
                    return descriptor
            except FileNotFoundError:
                pass
            except BaseException:
                os.close(descriptor)
                raise
            os.close(descriptor)


class RemotePlace(Place):
    """An address of fsspec, such as ``s3://bucket/store``: one object per file."""

    failures = Exception  # each of fsspec's stores has errors of its own

    def __init__(self, address: str) -> None:
        self.address = address
        self.protocol = address.partition("://")[0]
        self._store()

    def begin(self) -> None:
        """See ``Place``; an object store has no folders."""
        if self.protocol not in WITHOUT_FOLDERS:
            store, root = self._store()
            with self._errors("write"):
                store.makedirs(root, exist_ok=True)

    def sweep(self) -> None:
        """See ``Place``; an object appears when it is complete."""

    def sizes(self) -> dict[str, int]:
        with self._errors("read"):
            store, root = self._store()
            store.invalidate_cache()
            try:
                entries = store.ls(root, detail=True)
            except FileNotFoundError:
                return {}
            found = {entry["name"].rstrip("/").rsplit("/", 1)[-1]: entry for entry in entries}
            return {name: int(found[name]["size"] or 0) for name in sorted(found)}

    def read_all(self, names: Sequence[str]) -> list[bytes]:
        """See ``Place``; many at a time where the store can."""
        with self._errors("read"):
            store, root = self._store()
            sizes = self.sizes() if len(names) > 1 else {name: self.size(name) for name in names}
            for name in names:
                if (sizes.get(name) or 0) > MAX_OBJECT_BYTES:
                    raise OSError(f"{name} has more than {MAX_OBJECT_BYTES:,} bytes")
            paths = [f"{root}/{name}" for name in names]
            found = store.cat(paths, on_error="raise") if paths else {}
            return [found[store._strip_protocol(path)] for path in paths]

    def read_range(self, name: str, start: int, end: int) -> bytes:
        with self._errors("read", name):
            store, root = self._store()
            return store.cat_file(f"{root}/{name}", start=start, end=end)

    def size(self, name: str) -> int | None:
        with self._errors("read", name):
            store, root = self._store()
            try:
                return int(store.info(f"{root}/{name}", refresh=True)["size"])
            except FileNotFoundError:
                return None

    def write(self, name: str, data: bytes, **how: str) -> None:
        """See ``Place``: an object appears when it is complete."""
        with self._errors("write", name):
            store, root = self._store()
            store.pipe_file(f"{root}/{name}", data, **how)

    def free(self) -> int | None:
        return None

    @contextmanager
    def claim(self, name: str, *, wait: bool = False) -> Iterator[Publish]:
        """See ``Place``. Nobody waits: where two write at once, the later is told when it ends."""
        del wait
        if self.size(name) is not None:
            raise Taken(name)

        def publish(data: bytes) -> None:
            try:
                self.write(name, data, mode="create")
            except RunError:
                if self.size(name) is not None:
                    raise Taken(name) from None
                self.write(name, data)  # Not every store knows exclusive creation.
            if self.read_all([name]) != [data]:
                raise Taken(name)

        yield publish

    def _store(self) -> tuple[Any, str]:
        """The file system and the folder's path in it.

        Looked up on each use: the object must not cross a fork, and fsspec keeps it.
        """
        import fsspec

        try:
            store, root = fsspec.core.url_to_fs(self.address)
        except ImportError as error:
            if self.protocol in EXTRAS:
                purpose = f"A store at {self.protocol}://"
                raise require_extra(EXTRAS[self.protocol], "remote", purpose) from error
            raise UserError(f"The store {self.address} can't be opened: {error}.") from error
        except Exception as error:  # Each of fsspec's stores has errors of its own.
            raise UserError(
                f"The store {self.address} can't be opened: {error}; pass a folder, or an address "
                "such as s3://bucket/store."
            ) from error
        return store, root.rstrip("/")


def _refused(verb: str, where: str, error: Exception) -> RunError:
    reason, remedy = str(error), "correct the address or its permissions"
    if isinstance(error, OSError):
        reason = error.strerror or reason
    if verb == "write":
        remedy = "finished parts are kept; remove the cause, then run the same command again to "
        remedy += "go on"
        if isinstance(error, OSError):
            reason = "the disk is full" if error.errno in FULL else reason
            reason = "the store's folder is gone" if error.errno == errno.ENOENT else reason
    return RunError(f"Can't {verb} {where}: {reason}; {remedy}.")


def _write_through(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
    os.fsync(descriptor)


def _lock_file(descriptor: int, wait: bool) -> bool:
    """Whether it is locked now; raises RunError where another process has it."""
    try:
        import fcntl
    except ImportError:  # not on Windows
        return False
    try:
        # Not lockf, whose locks are a process's: threads of two processes that wait for each
        # other's parts would look like a deadlock, and be refused.
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except (BlockingIOError, PermissionError) as error:
        raise RunError(
            "Another process is writing the same part of the store; let it finish, and start "
            "several processes with torchrun, which shares the parts out."
        ) from error
    except OSError:
        return False  # File systems without locks go unguarded.
    return True
