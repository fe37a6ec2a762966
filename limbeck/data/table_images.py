"""Where the bytes of each image of a table lie: a file, an offset and a size.

An image of an uncompressed Arrow file is read from where it is. Parquet files are packed in groups
of rows, of which one can't be read alone: their images are written out once, one after the other,
into a file of a cache. A copy is found again by what identifies the table's present content, never
by its name or time alone; labels and names are not in it.
"""

import atexit
import hashlib
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from limbeck.errors import RunError, UserError, require_extra
from limbeck.files import check_regular, open_file, reason_of, write_whole

log = logging.getLogger("limbeck")

BATCH_ROWS = 16  # decoded at once, however large a group of rows is
BUFFER_BYTES = 2**20  # of a packed column; without it a whole group is in memory
LARGE_BYTES = 2**28  # unpacking more than that is announced

Places = tuple[Path, np.ndarray, np.ndarray]
"""(file, offsets, sizes) of encoded images; the size of none is -1."""


class BadTable(Exception):
    """A file can't be read as a table; the message is the reason."""


class TableFile:
    """One .parquet or .arrow file, opened by pyarrow after its own checks.

    Raises OSError for what is no regular file and BadTable for one that is damaged. An Arrow file
    is checked in whole columns before anything is taken from it: pyarrow itself trusts the offsets
    in it, and a wrong one ends the process.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        check_regular(file)
        self._parquet: Any = None
        self._arrow: Any = None
        self._mapped: Any = None
        with _damaged():
            if file.suffix.lower() == ".arrow":
                self._mapped, self._arrow = _map_arrow(file)
                self.schema, self.num_rows = self._arrow.schema, self._arrow.num_rows
            else:
                self._parquet = import_pyarrow().parquet.ParquetFile(
                    str(file), buffer_size=BUFFER_BYTES, pre_buffer=False
                )
                self.schema = self._parquet.schema_arrow
                self.num_rows = self._parquet.metadata.num_rows

    def values(self, name: str, field: str | None = None) -> list[Any]:
        """A whole column (or one ``field`` of its structs) as Python values."""
        with _damaged():
            if self._arrow is not None:
                column = self._checked(name)
            else:
                path = name if field is None else f"{name}.{field}"
                column = self._parquet.read(columns=[path]).column(name)
            self._check_rows(len(column))
            return struct_field(column, field).to_pylist()

    def places(self, name: str, field: str | None) -> Places:
        """Where the images of a column (or of one ``field`` of its structs) lie."""
        if self._arrow is not None:
            with _damaged():
                places = _places_in(self._mapped, struct_field(self._checked(name), field))
            if places is not None:
                return self.file, *places
        return _unpack(self.file, name, self.num_rows, lambda: self._batches(name, field))

    def _check_rows(self, number: int) -> None:
        if number != self.num_rows:
            raise BadTable(f"it has {number} values for its {self.num_rows} rows")

    def _checked(self, name: str) -> Any:
        alone = self._arrow.select([name])
        alone.validate(full=True)
        return alone.column(name)

    def _batches(self, name: str, field: str | None) -> Iterator[list[bytes | None]]:
        """Batches of images; whatever goes wrong in them is the table's fault."""
        path = name if field is None else f"{name}.{field}"
        with _damaged():
            if self._arrow is not None:
                batches = self._arrow.select([name]).to_batches(max_chunksize=BATCH_ROWS)
            else:
                batches = self._parquet.iter_batches(BATCH_ROWS, columns=[path])
            number = 0
            for batch in batches:
                number += len(batch)
                yield struct_field(batch.column(name), field).to_pylist()
            self._check_rows(number)


@contextmanager
def _damaged() -> Iterator[None]:
    """Turn whatever pyarrow raises into a BadTable: it has many errors, and all mean a bad file."""
    try:
        yield
    except (UserError, BadTable):
        raise
    except Exception as error:
        words = str(error).strip().splitlines() or [type(error).__name__]
        raise BadTable(words[0].rstrip(".")) from error


def import_pyarrow() -> Any:
    """pyarrow with its parts, or the error that names the extra."""
    try:
        import pyarrow
        import pyarrow.compute
        import pyarrow.parquet
    except ImportError as error:
        raise require_extra("pyarrow", "datasets", "Reading tables of images") from error
    return pyarrow


def _map_arrow(file: Path) -> tuple[Any, Any]:
    """(the file's bytes, its table) without reading more than where its columns lie."""
    pyarrow = import_pyarrow()
    mapped = pyarrow.memory_map(str(file)).read_buffer()
    try:
        return mapped, pyarrow.ipc.open_stream(mapped).read_all()
    except pyarrow.ArrowInvalid:
        # The other of Arrow's two layouts, also called Feather.
        if mapped[:6].to_pybytes() != b"ARROW1":
            raise
        return mapped, pyarrow.ipc.open_file(mapped).read_all()


def struct_field(column: Any, field: str | None) -> Any:
    """One field of a column of structs, or the column itself."""
    return column if field is None else import_pyarrow().compute.struct_field(column, field)


def _places_in(mapped: Any, column: Any) -> tuple[np.ndarray, np.ndarray] | None:
    """(offsets, sizes) of the values in the mapped file, or None if they are not in it as such."""
    pyarrow = import_pyarrow()
    width = {pyarrow.binary(): np.int32, pyarrow.large_binary(): np.int64}.get(column.type)
    if width is None:
        return None
    offsets, sizes = [], []
    for chunk in column.chunks:
        _, ends, values = chunk.buffers()
        if not len(chunk):
            continue
        if values is None:
            return None
        start = values.address - mapped.address
        if not 0 <= start <= start + values.size <= mapped.size:
            return None  # compressed: unpacked in memory
        limits = np.frombuffer(ends, width)[chunk.offset : chunk.offset + len(chunk) + 1]
        limits = limits.astype(np.int64)
        is_null = chunk.is_null().to_numpy(zero_copy_only=False)
        offsets.append(start + limits[:-1])
        sizes.append(np.where(is_null, -1, np.diff(limits)))
    none = [np.zeros(0, np.int64)]
    return np.concatenate(offsets or none), np.concatenate(sizes or none)


def _unpack(
    table: Path, column: str, num_rows: int, batches: Callable[[], Iterable[list[bytes | None]]]
) -> Places:
    """A table's column of images in a file of the cache; written if it isn't there yet."""
    name = f"{_identity(table, column)}.images"
    cache = cache_folder()
    try:
        file = _written(cache / name, table, batches)
    except (OSError, RunError, NotImplementedError) as error:
        reason = reason_of(error) if isinstance(error, OSError) else str(error.__cause__ or error)
        file = Path(_temporary_folder(cache, reason), name)
        _written(file, table, batches)
    with open_file(file) as stream:
        start = stream.seek(0, os.SEEK_END) - 8 * num_rows
        stream.seek(max(start, 0))
        sizes = np.frombuffer(stream.read(8 * num_rows), "<i8").astype(np.int64)
    ends = np.cumsum(np.maximum(sizes, 0))
    if len(sizes) != num_rows or (num_rows and ends[-1] != start):
        raise UserError(f"The unpacked images {file} are damaged; delete that file and try again.")
    return file, ends - np.maximum(sizes, 0), sizes


def _written(file: Path, table: Path, batches: Callable[[], Iterable[list[bytes | None]]]) -> Path:
    from filelock import FileLock

    file.parent.mkdir(parents=True, exist_ok=True)
    if not file.exists():
        # The ranks of a run open the same table at the same time.
        with FileLock(f"{file}.lock"):
            if not file.exists():
                if table.stat().st_size > LARGE_BYTES:
                    log.info("Unpacking the images of %s once, into %s.", table, file)
                write_whole(file, lambda stream: _write_images(stream, batches()))
    return file


def _write_images(stream: BinaryIO, batches: Iterable[list[bytes | None]]) -> None:
    """All images, then the size of each as 8 bytes."""
    sizes: list[int] = []
    for batch in batches:
        for data in batch:
            sizes.append(-1 if data is None else len(data))
            stream.write(data or b"")
    stream.write(np.array(sizes, "<i8").tobytes())


def _identity(table: Path, column: str) -> str:
    """Of a column of a file's present content. A time stamp can be copied; when the file's entry on
    the disk was last changed can't, and the footer of a parquet file has the sizes of all that is
    in it."""
    status = table.stat()
    with open_file(table) as stream:
        stream.seek(-min(status.st_size, BUFFER_BYTES), os.SEEK_END)
        end = stream.read()
    facts = (
        column, table.resolve(),
        status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns,
    )  # fmt: skip
    return hashlib.blake2b(os.fsencode(repr(facts)) + end, digest_size=16).hexdigest()


def cache_folder() -> Path:
    """Where ``datasets`` keeps its tables, in a folder of our own."""
    home = os.environ.get("XDG_CACHE_HOME") or os.path.join("~", ".cache")
    home = os.environ.get("HF_HOME") or os.path.join(home, "huggingface")
    place = os.environ.get("HF_DATASETS_CACHE") or os.path.join(home, "datasets")
    return Path(os.path.expanduser(place), "limbeck")


def _temporary_folder(cache: Path, reason: str) -> str:
    try:
        folder = tempfile.mkdtemp(prefix="limbeck-")
    except OSError as error:
        raise RunError(
            f"The images of a table can't be unpacked: the cache {cache} can't be written "
            f"({reason}), nor a temporary folder ({reason_of(error)}); name a folder with room in "
            "the environment variable HF_DATASETS_CACHE."
        ) from error
    # Not at the end of a worker process, which leaves without it.
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    log.warning(
        "The cache %s can't be written (%s), so the images of tables are unpacked into %s for this "
        "run alone; name a folder with room in the environment variable HF_DATASETS_CACHE.",
        cache, reason, folder,
    )  # fmt: skip
    return folder
