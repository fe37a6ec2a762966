"""Files of this machine, opened with care: only regular ones of a bounded size are read, text that
is no UTF-8 is written all the same, and what is written is never seen half.

Everything that a user's disk holds comes in through ``read_file`` or ``open_file``: a named pipe
would hang its reader, a device or a sparse giant would fill the memory.
"""

import errno
import os
import re
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import BinaryIO

from limbeck.errors import RunError

MIB = 2**20
MAX_FILE_BYTES = 2**40  # beyond any weights file; a sparse giant says more
TEMPORARY_SUFFIX = ".partial"


class NotRegular(OSError):
    """A file that is not read: no regular one, or too large a one; ``strerror`` says which."""


def open_file(file: Path | str, max_bytes: int = MAX_FILE_BYTES) -> BinaryIO:
    """A regular file of at most ``max_bytes``, opened for reading.

    Raises OSError, whose ``strerror`` is for people: a pipe, a device or a socket is never waited
    for, and a file that says to be larger is not begun.
    """
    # Non-blocking: a pipe without a writer would hang in the opening already.
    descriptor = os.open(file, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | _BINARY)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise NotRegular(errno.EINVAL, f"it is {_kind(status.st_mode)}, not a regular file")
        if status.st_size > max_bytes:
            raise NotRegular(
                errno.EFBIG, f"it has {status.st_size:,} bytes, over the limit of {max_bytes:,}"
            )
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def read_file(file: Path | str, max_bytes: int) -> bytes:
    """The bytes of a regular file of at most ``max_bytes``; raises OSError as ``open_file``."""
    with open_file(file, max_bytes) as stream:
        data = stream.read(max_bytes + 1)  # a file may say 0 bytes and give more
    if len(data) > max_bytes:
        raise NotRegular(errno.EFBIG, f"it has more bytes than the limit of {max_bytes:,}")
    return data


def check_regular(file: Path | str) -> None:
    """Raise OSError, as ``open_file``, for what a library that opens files itself must not get."""
    open_file(file).close()


@contextmanager
def utf8_name(file: Path) -> Iterator[str]:
    """A name of the file for libraries that take UTF-8 alone; other names are known to Linux."""
    if is_utf8(str(file)):
        yield str(file)
        return
    with open_file(file) as stream:
        yield f"/proc/self/fd/{stream.fileno()}"


def is_inside(name: str) -> bool:
    """Whether a name that a file gives stays within that file's own folder."""
    parts = {*PurePosixPath(name).parts, *PureWindowsPath(name).parts}
    is_absolute = name.startswith(("/", "\\")) or bool(PureWindowsPath(name).drive)
    return bool(name) and ".." not in parts and not is_absolute and "\0" not in name


def is_utf8(text: str) -> bool:
    """Whether UTF-8 can hold a text; a file name on an old disk may be bytes of something else."""
    return not any("\ud800" <= letter <= "\udfff" for letter in text)


def printable(text: str) -> str:
    """The text for a screen: what UTF-8 can't hold (of an old disk's file names) and what would
    steer a terminal, line ends and tabs apart, as backslash escapes."""
    return _UNPRINTABLE.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


@contextmanager
def disk_errors(file: Path) -> Iterator[None]:
    """Turn a failure to write ``file`` into a RunError that says why and what to do."""
    try:
        yield
    except OSError as error:
        if error.errno == errno.ENOENT and not file.parent.exists():
            raise RunError(
                f"Can't write {file}: its folder has vanished. Put it back to keep what was in it, "
                "then run the same command again."
            ) from error
        raise RunError(
            f"Can't write {file}: {reason_of(error)}. What was written before is kept; make room, "
            "then run the same command again to continue."
        ) from error


def reason_of(error: Exception) -> str:
    """Why the operating system refused, for people; of another error what it says."""
    if not isinstance(error, OSError):
        return str(error)
    is_full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    return "the disk is full" if is_full else error.strerror or str(error)


def write_whole(file: Path, write: Callable[[BinaryIO], object]) -> None:
    """Write a file so that it is never seen half-written, even after a power cut.

    Raises RunError where the disk is full or refuses; the old file then stays.
    """
    temporary = file.with_name(f".{file.name}{TEMPORARY_SUFFIX}")
    with disk_errors(file):
        try:
            with open(temporary, "wb") as stream:
                write(stream)
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(temporary, file)
        finally:
            temporary.unlink(missing_ok=True)
        sync_folder(file.parent)


def write_bytes(file: Path, content: bytes) -> None:
    """Write a file's whole content, as ``write_whole``."""
    write_whole(file, lambda stream: stream.write(content))


def write_text(file: Path, text: str) -> None:
    """Write text as UTF-8, as ``write_whole``, whatever it holds."""
    write_bytes(file, text.encode("utf-8", "backslashreplace"))


def sync_folder(folder: Path) -> None:
    """Bring a rename in the folder to the disk."""
    if os.name == "posix":  # elsewhere a folder can't be opened, and the rename is durable
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


# Control characters, marks that turn the direction of writing, and halves of UTF-16 pairs.
_UNPRINTABLE = re.compile("[\0-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_BINARY = getattr(os, "O_BINARY", 0)  # Windows would translate line ends

_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def _kind(mode: int) -> str:
    return next((name for is_kind, name in _KINDS if is_kind(mode)), "something else")
