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
from typing import Any

from limbeck.errors import RunError, UserError, require_extra
from limbeck.files import sync_folder

PARTIAL = ".partial"
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

    @abstractmethod
    def sizes(self) -> dict[str, int]:
        """Name -> bytes of the files in it, sorted; none where the folder does not exist."""

    @abstractmethod
    def read_all(self, names: Sequence[str]) -> list[bytes]:
        """The content of files."""

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


def open_place(address: str) -> Place:
    """The place at a path or an fsspec address; nothing is made or looked up yet."""
    address = os.path.expanduser(str(address)).rstrip("/")
    if address.startswith("file://"):
        address = address.removeprefix("file://")
    return RemotePlace(address) if "://" in address else LocalPlace(address)


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

    def __init__(self, address: str) -> None:
        self.address = address
        self.folder = Path(address)

    def sizes(self) -> dict[str, int]:
        """See ``Place``; what is hidden is left out."""
        with self._errors("read", self.address):
            if not self.folder.exists():
                return {}
            entries = sorted(os.scandir(self.folder), key=lambda entry: entry.name)
            return {e.name: e.stat().st_size for e in entries if not e.name.startswith(".")}

    def read_all(self, names: Sequence[str]) -> list[bytes]:
        """See ``Place``."""
        contents = []
        for name in names:
            with self._errors("read", name):
                contents.append((self.folder / name).read_bytes())
        return contents

    def read_range(self, name: str, start: int, end: int) -> bytes:
        """See ``Place``."""
        with self._errors("read", name), open(self.folder / name, "rb") as file:
            file.seek(start)
            return file.read(end - start)

    def size(self, name: str) -> int | None:
        """See ``Place``."""
        with self._errors("read", name):
            try:
                return os.stat(self.folder / name).st_size
            except FileNotFoundError:
                return None

    def write(self, name: str, data: bytes) -> None:
        """See ``Place``: to a temporary name, flushed to the disk, renamed."""
        with self._errors("write", name):
            self.folder.mkdir(parents=True, exist_ok=True)
            partial = self._partial(name)
            try:
                with open(partial, "wb", buffering=0) as stream:
                    _write_through(stream.fileno(), data)
                os.replace(partial, self.folder / name)
            except OSError:
                partial.unlink(missing_ok=True)  # On a full disk it would be in the way.
                raise
            sync_folder(self.folder)

    def free(self) -> int | None:
        """See ``Place``; before the folder exists, where it will be."""
        folder = self.folder.absolute()
        with self._errors("read", self.address):
            there = next(path for path in (folder, *folder.parents) if path.exists())
            return shutil.disk_usage(there).free

    @contextmanager
    def claim(self, name: str, *, wait: bool = False) -> Iterator[Publish]:
        """See ``Place``. The claim is a lock on the temporary file that becomes the file."""
        final, partial = self.folder / name, self._partial(name)
        with self._errors("write", name):
            self.folder.mkdir(parents=True, exist_ok=True)
            descriptor = self._lock(partial, wait)

        def publish(data: bytes) -> None:
            with self._errors("write", name):
                os.ftruncate(descriptor, 0)
                _write_through(descriptor, data)
                os.replace(partial, final)
                sync_folder(self.folder)

        try:
            if final.exists():
                raise Taken(name)
            yield publish
        finally:
            with suppress(OSError):
                partial.unlink(missing_ok=True)
            os.close(descriptor)

    def _partial(self, name: str) -> Path:
        return self.folder / f".{name}{PARTIAL}"

    def _lock(self, partial: Path, wait: bool) -> int:
        while True:
            descriptor = os.open(partial, os.O_RDWR | os.O_CREAT, 0o666)
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

    @contextmanager
    def _errors(self, verb: str, name: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            where = self.folder / name if name != self.address else self.folder
            raise _refused(verb, str(where), error) from error


class RemotePlace(Place):
    """An address of fsspec, such as ``s3://bucket/store``: one object per file."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.protocol = address.partition("://")[0]
        self._store()

    def sizes(self) -> dict[str, int]:
        """See ``Place``."""

        def listed() -> dict[str, int]:
            store, root = self._store()
            store.invalidate_cache()
            try:
                entries = store.ls(root, detail=True)
            except FileNotFoundError:
                return {}
            found = {entry["name"].rstrip("/").rsplit("/", 1)[-1]: entry for entry in entries}
            return {name: int(found[name]["size"] or 0) for name in sorted(found)}

        return self._try("read", self.address, listed)

    def read_all(self, names: Sequence[str]) -> list[bytes]:
        """See ``Place``; many at a time where the store can."""

        def contents() -> list[bytes]:
            store, root = self._store()
            paths = [f"{root}/{name}" for name in names]
            found = store.cat(paths, on_error="raise") if paths else {}
            return [found[store._strip_protocol(path)] for path in paths]

        return self._try("read", self.address, contents)

    def read_range(self, name: str, start: int, end: int) -> bytes:
        """See ``Place``."""

        def content() -> bytes:
            store, root = self._store()
            return store.cat_file(f"{root}/{name}", start=start, end=end)

        return self._try("read", name, content)

    def size(self, name: str) -> int | None:
        """See ``Place``."""

        def found() -> int | None:
            store, root = self._store()
            try:
                return int(store.info(f"{root}/{name}", refresh=True)["size"])
            except FileNotFoundError:
                return None

        return self._try("read", name, found)

    def write(self, name: str, data: bytes) -> None:
        """See ``Place``: an object appears when it is complete."""
        self._put(name, data)

    def free(self) -> int | None:
        """See ``Place``."""
        return None

    @contextmanager
    def claim(self, name: str, *, wait: bool = False) -> Iterator[Publish]:
        """See ``Place``. Nobody waits: where two write at once, the later is told when it ends."""
        del wait
        if self.size(name) is not None:
            raise Taken(name)

        def publish(data: bytes) -> None:
            try:
                self._put(name, data, mode="create")
            except RunError:
                if self.size(name) is not None:
                    raise Taken(name) from None
                self._put(name, data)  # Not every store knows exclusive creation.
            if self.read_all([name]) != [data]:
                raise Taken(name)

        yield publish

    def _put(self, name: str, data: bytes, **kwargs: str) -> None:
        def put() -> None:
            store, root = self._store()
            if self.protocol not in WITHOUT_FOLDERS:
                store.makedirs(root, exist_ok=True)
            store.pipe_file(f"{root}/{name}", data, **kwargs)

        self._try("write", name, put)

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
        except ValueError as error:
            raise UserError(
                f"The store {self.address} can't be opened: {error}; pass a folder, or an address "
                "such as s3://bucket/store."
            ) from error
        return store, root.rstrip("/")

    def _try(self, verb: str, name: str, act: Callable[[], Any]) -> Any:
        try:
            return act()
        except (UserError, Taken):
            raise
        except Exception as error:  # Each of fsspec's stores has errors of its own.
            where = name if name == self.address else f"{self.address}/{name}"
            raise _refused(verb, where, error) from error


def _refused(verb: str, where: str, error: Exception) -> RunError:
    reason = str(error)
    if isinstance(error, OSError):
        reason = "the disk is full" if error.errno in FULL else error.strerror or reason
    remedy = (
        "finished parts are kept; remove the cause, then run the same command again to go on"
        if verb == "write"
        else "correct the address or its permissions"
    )
    return RunError(f"Can't {verb} {where}: {reason}; {remedy}.")


def _write_through(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
    os.fsync(descriptor)


def _lock_file(descriptor: int, wait: bool) -> None:
    try:
        import fcntl
    except ImportError:  # not on Windows
        return
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
        return  # File systems without locks go unguarded.
