"""Tables of images: local .parquet and .arrow files, and data sets of the Hugging Face hub through
its own library, ``datasets``."""

import os
import ssl
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import numpy as np

from limbeck.data.columns import Columns
from limbeck.data.options import DataOptions
from limbeck.data.source import MAX_IMAGE_BYTES, BadImage, NamedSource, RawImage, no_images
from limbeck.data.splits import choose_split, find_files
from limbeck.data.table_images import BadTable, Places, TableFile, struct_field
from limbeck.errors import UserError, require_extra
from limbeck.files import open_file, read_file, reason_of

REACH_SECONDS = 5.0  # the hub's own client tries for half a minute


class TableSource(NamedSource):
    """The rows of a table, each with one encoded image.

    ``read_row`` gives a row's bytes, or the path of its image file, or None. A key is the image's
    own path where every row has one and no two are the same (``paths``), and otherwise
    ``record_names[row]``. Files are read below ``folders`` alone: a table is a stranger's.
    ``labels`` are the values of the label column. ``image_columns`` are all of the table that hold
    images, the one that is read first. ``others`` are the values of further columns.
    """

    def __init__(
        self,
        columns: Columns,
        read_row: Callable[[int], bytes | str | None],
        record_names: list[str],
        paths: list[str | None],
        labels: Sequence[object],
        folders: Sequence[Path],
        others: dict[str, list[Any]] | None = None,
    ) -> None:
        is_unique = all(paths) and len(set(paths)) == len(record_names)
        keys: Any = paths if is_unique else record_names
        super().__init__(keys, *columns.read_labels(labels))
        self.notes = tuple(columns.notes)
        self.image_columns = tuple(dict.fromkeys((columns.image, *columns.images)))
        self.others = others or {}
        self._read_row = read_row
        self._folders = [os.path.abspath(folder) for folder in folders]

    def read(self, index: int) -> RawImage:
        try:
            data = self._read_row(index)
            if isinstance(data, str):
                data = read_file(self._inside(data), MAX_IMAGE_BYTES)
        except (OSError, ValueError) as error:  # a name with a NUL
            raise BadImage(f"the file can't be read: {reason_of(error)}") from error
        if data is None:
            raise BadImage("the record has no image")
        return RawImage(data, self.label(index))

    def _inside(self, path: str) -> str:
        for folder in self._folders:
            place = os.path.normpath(os.path.join(folder, path))
            if place.startswith(os.path.join(folder, "")):
                return place
        raise BadImage(f"its file {path} is not in the table's own folder, and no other is read")


def _none(schema: Any) -> list[str]:
    return []


def open_table(
    root: str, options: DataOptions, split: str, others_of: Callable[[Any], list[str]] = _none
) -> TableSource:
    """A .parquet or .arrow file, a folder or a pattern of them; ``split`` chooses among several.

    ``others_of`` names further columns of a schema whose values are read.
    """
    notes: list[str] = []
    files = choose_split(sorted(find_files(root, is_table_name, notes)), split, root, notes)
    first: Columns | None = None
    places: list[Places] = []
    record_names: list[str] = []
    keys: list[str | None] = []
    paths: list[str | None] = []
    values: list[object] = []
    others: dict[str, list[Any]] = {}
    for file, name in files:
        try:
            table = TableFile(file)
            if first is None:
                columns = first = Columns(table.schema, options, str(file))
            else:
                columns = _same_columns(first, table, options)
            places.append(table.places(columns.image, columns.field))
            own = table.values(columns.image, "path") if columns.has_paths else []
            values += table.values(columns.label) if columns.label else []
            for other in others_of(table.schema):
                others.setdefault(other, []).extend(table.values(other))
        except (OSError, BadTable) as error:
            raise UserError(
                f"Can't read {file} as a table: {reason_of(error)}; copy it again or remove it."
            ) from error
        record_names += [f"{name}#{row}" for row in range(table.num_rows)]
        keys += own or [None] * table.num_rows
        paths += [path and os.path.join(file.parent, path) for path in keys[len(paths) :]]
    if first is None or not record_names:
        raise no_images(root)
    folders = [Path(root)] if Path(root).is_dir() else sorted({file.parent for file, _ in files})
    rows = _LocalRows(places, paths)
    source = TableSource(first, rows, record_names, keys, values, folders, others)
    source.notes = (*notes, *source.notes)
    return source


def _same_columns(first: Columns, table: TableFile, options: DataOptions) -> Columns:
    try:
        columns = Columns(table.schema, options, str(table.file))
        reason = "others are its images and labels"
    except UserError as error:
        columns, reason = None, str(error)
    if columns is None or columns.kind != first.kind:
        raise UserError(
            f"{table.file} and {first.where} have different columns ({reason}); pass one folder "
            "per kind of table."
        )
    return columns


def open_hub(
    root: str, options: DataOptions, split: str, others_of: Callable[[Any], list[str]] = _none
) -> TableSource:
    """A data set of the Hugging Face hub, ``hf:NAME`` or ``hf:NAME:CONFIG``; offline if cached."""
    datasets = _import_datasets()
    name, _, config = root.removeprefix("hf:").partition(":")
    is_offline = datasets.config.HF_HUB_OFFLINE
    unreachable = "" if is_offline else _why_unreachable(datasets.config.HF_ENDPOINT)
    try:
        # Offline, the cache alone is asked, and at once.
        datasets.config.HF_HUB_OFFLINE = is_offline or bool(unreachable)
        table = datasets.load_dataset(name, config or None, split=split)
    except Exception as error:  # The hub, the network and the data set's files each have their own.
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        if isinstance(error, ConnectionError):
            reason = unreachable or reason
        raise UserError(
            f"Can't load '{name}' (split '{split}') from the Hugging Face hub: {reason}; "
            "correct the name or --data.split, or download its .parquet files elsewhere and pass "
            "their folder as --data.root."
        ) from error
    finally:
        datasets.config.HF_HUB_OFFLINE = is_offline
    if not len(table):
        raise no_images(root)
    columns = Columns(table.features.arrow_schema, options, root)
    image = table.data.column(columns.image)
    label = table.data.column(columns.label).to_pylist() if columns.label else []
    return TableSource(
        columns,
        _HubRows(table, columns),
        [f"{split}#{row}" for row in range(len(table))],
        struct_field(image, "path").to_pylist() if columns.has_paths else [None] * len(table),
        label,
        _hub_folders(datasets.config),
        {name: table.data.column(name).to_pylist() for name in others_of(columns.schema)},
    )


def _hub_folders(config: Any) -> list[Path]:
    """Where the image files of a data set are kept: not all of the cache, where tokens lie, too."""
    hub = os.environ.get("HF_HUB_CACHE") or os.path.join(config.HF_CACHE_HOME, "hub")
    return [Path(hub), Path(config.HF_DATASETS_CACHE), Path(config.EXTRACTED_DATASETS_PATH)]


def is_table_name(name: str) -> bool:
    """Whether a file is a table by its suffix."""
    return name.lower().endswith((".parquet", ".arrow"))


class _LocalRows:
    """What each row has: an image's place in a file, or the path of an image file.

    No file stays open, so the rows can be forked or pickled.
    """

    def __init__(self, places: list[Places], paths: list[str | None]) -> None:
        self._files = [str(file) for file, _, _ in places]
        self._numbers = np.repeat(np.arange(len(places)), [len(sizes) for _, _, sizes in places])
        self._offsets = np.concatenate([offsets for _, offsets, _ in places])
        self._sizes = np.concatenate([sizes for _, _, sizes in places])
        self._paths = {row: paths[row] for row in np.flatnonzero(self._sizes < 0).tolist()}

    def __call__(self, row: int) -> bytes | str | None:
        size = int(self._sizes[row])
        if size < 0:
            return self._paths[row]
        if size > MAX_IMAGE_BYTES:
            raise BadImage(f"it has {size:,} bytes, over the limit of {MAX_IMAGE_BYTES:,}")
        with open_file(self._files[self._numbers[row]]) as file:
            file.seek(int(self._offsets[row]))
            return file.read(size)


class _HubRows:
    """What each row has: an image, or the path of an image file."""

    def __init__(self, table: Any, columns: Columns) -> None:
        self._table, self._image, self._is_struct = table, columns.image, columns.field is not None

    def __call__(self, row: int) -> bytes | str | None:
        value = self._table.data.column(self._image)[row].as_py()
        if not self._is_struct or not value:
            return value
        data: bytes | str | None = value["bytes"]
        return value.get("path") if data is None else data


def _why_unreachable(address: str) -> str:
    """Why nothing answers at an address, or '' if something does."""
    try:
        urlopen(Request(address, method="HEAD"), timeout=REACH_SECONDS).close()
    except HTTPError as error:
        error.close()  # An answer, too.
    except Exception as error:  # Of the socket, of HTTP, of the address itself.
        reason = getattr(error, "reason", error)
        # The hub's client has certificates of its own.
        if not isinstance(reason, ssl.SSLError):
            return f"{address} can't be reached ({reason})"
    return ""


def _import_datasets() -> Any:
    try:
        import datasets
    except ImportError as error:
        raise require_extra("datasets", "datasets", "Reading tables of images") from error
    # Its bars would be drawn over the run's own display.
    datasets.disable_progress_bars()
    return datasets
