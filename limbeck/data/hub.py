"""Tables of images through Hugging Face ``datasets``: local parquet and arrow, and hub names."""

import ssl
from collections import Counter
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import numpy as np

from limbeck.data.folder import walk
from limbeck.data.options import DataOptions
from limbeck.data.source import BadImage, Names, RawImage, Source, label_table, no_images
from limbeck.errors import UserError, did_you_mean, require_extra

# fmt: off
LABEL_NAMES = (
    "label", "labels", "class", "target", "fine_label", "class_label", "class_id", "cls",
)
# fmt: on
REACH_SECONDS = 5.0  # the hub's own client tries for half a minute


class TableSource(Source):
    """A ``datasets.Dataset`` with a column of encoded images.

    A key is the image's own path where every row has one and no two are the same, and otherwise
    ``record_names[row]``.
    """

    def __init__(self, table: Any, record_names: list[str], options: DataOptions) -> None:
        self.table = table
        self._image_column = _find_image_column(table, options.image_column)
        column = table.data.column(self._image_column)
        self._is_struct = _has_bytes(column.type)
        keys = record_names
        if self._is_struct and column.type.get_field_index("path") >= 0:
            import pyarrow.compute

            # Only the paths are read, not the images beside them.
            paths = pyarrow.compute.struct_field(column, "path").to_pylist()
            if all(paths) and len(set(paths)) == len(paths):
                keys = paths
        self._keys = Names(keys)
        self.classes, self._labels = _read_labels(table, options.label_column, self._image_column)

    def __len__(self) -> int:
        return len(self._keys)

    def key(self, index: int) -> str:
        return self._keys[index]

    def label(self, index: int) -> int | None:
        return None if self._labels is None else int(self._labels[index])

    def read(self, index: int) -> RawImage:
        value = self.table.data.column(self._image_column)[index].as_py()
        data = value["bytes"] if self._is_struct and value else value
        if data is None and value and value.get("path"):
            try:
                data = Path(value["path"]).read_bytes()
            except OSError as error:
                raise BadImage(f"the file can't be read: {error.strerror}") from error
        if data is None:
            raise BadImage("the record has no image")
        return RawImage(data, self.label(index))


def open_table(root: str, options: DataOptions, split: str) -> TableSource:
    """A .parquet or .arrow file, or a folder of them; there are no splits."""
    del split
    datasets = _import_datasets()
    path = Path(root)
    files = [path] if path.is_file() else sorted(path / f for f in walk(path) if is_table_name(f))
    if not files:
        raise no_images(root)
    tables, record_names = [], []
    names = [str(file.relative_to(path)) if path.is_dir() else file.name for file in files]
    for file, name in zip(files, names, strict=True):
        try:
            if file.suffix.lower() == ".arrow":
                table = datasets.Dataset.from_file(str(file))
            else:
                table = datasets.Dataset.from_parquet(str(file))
            tables.append(table)
        except Exception as error:  # pyarrow and datasets have many; all mean a bad file here.
            raise UserError(
                f"Can't read {file} as a table: {_first_line(error)}; copy it again or remove it."
            ) from error
        record_names += [f"{name}#{row}" for row in range(len(table))]
    try:
        table = datasets.concatenate_datasets(tables)
    except Exception as error:
        raise UserError(
            f"The tables in {root} have different columns ({_first_line(error)}); "
            "pass one folder per kind of table."
        ) from error
    if not len(table):
        raise no_images(root)
    return TableSource(table, record_names, options)


def open_hub(root: str, options: DataOptions, split: str) -> TableSource:
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
        reason = _first_line(error)
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
    return TableSource(table, [f"{split}#{row}" for row in range(len(table))], options)


def is_table_name(name: str) -> bool:
    """Whether a file is a table by its suffix."""
    return name.lower().endswith((".parquet", ".arrow"))


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


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _has_bytes(arrow_type: Any) -> bool:
    return arrow_type.num_fields > 0 and arrow_type.get_field_index("bytes") >= 0


def _is_other_media(feature: Any) -> bool:
    """Sound and video are stored as bytes and path, too."""
    return type(feature).__name__ in ("Audio", "Video", "Pdf")


def _find_image_column(table: Any, asked: str | None) -> str:
    schema = table.data.schema
    if asked is not None:
        if asked not in schema.names:
            raise _no_column(asked, schema.names, "image")
        arrow_type = schema.field(asked).type
        if not _has_bytes(arrow_type) and "binary" not in str(arrow_type):
            raise UserError(
                f"The column '{asked}' holds {arrow_type}, not encoded images; pass another "
                "--data.image-column."
            )
        return asked
    other_media = [name for name in schema.names if _is_other_media(table.features[name])]
    with_bytes = [name for name in schema.names if _has_bytes(schema.field(name).type)]
    found = [name for name in with_bytes if name not in other_media]
    if len(found) > 1 and "image" in found:
        return "image"
    if len(found) != 1:
        raise UserError(
            f"{'More than one' if found else 'No'} column of the table holds images (columns: "
            f"{', '.join(found or schema.names)}); name it with --data.image-column."
        )
    return found[0]


def _read_labels(
    table: Any, asked: str | None, image_column: str
) -> tuple[tuple[str, ...], np.ndarray | None]:
    import pyarrow

    schema = table.data.schema
    if asked is not None and asked not in schema.names:
        raise _no_column(asked, schema.names, "label")
    name = asked or _find_label_column(table)
    if name is None:
        return (), None
    arrow_type = schema.field(name).type
    types = pyarrow.types
    is_text = types.is_string(arrow_type) or types.is_large_string(arrow_type)
    is_label = is_text or types.is_integer(arrow_type)
    if name == image_column or not is_label:
        raise UserError(
            f"The column '{name}' holds {arrow_type}, not labels; pass another --data.label-column."
        )
    classes, labels = label_table(table.data.column(name).to_pylist(), asked)
    names = getattr(table.features[name], "names", None)
    return (tuple(names) if names and labels is not None else classes), labels


def _find_label_column(table: Any) -> str | None:
    """The column of ClassLabel type, by its name where there are several; else integers by name.

    Other integers may be anything: an identifier, a width.
    """
    import datasets
    import pyarrow

    schema, features = table.data.schema, table.features
    with_names = [n for n in schema.names if isinstance(features[n], datasets.ClassLabel)]
    integers = [n for n in schema.names if pyarrow.types.is_integer(schema.field(n).type)]
    usual = [name for name in LABEL_NAMES if name in (with_names or integers)]
    if not usual and len(with_names) > 1:
        raise UserError(
            f"Several columns of the table could be the label ({', '.join(with_names)}); "
            "name it with --data.label-column."
        )
    return next(iter(usual + with_names), None)


def _no_column(name: str, names: list[str], kind: str) -> UserError:
    counts = Counter(names)
    return UserError(
        f"The table has no {kind} column '{name}'.{did_you_mean(name, counts)} "
        f"Columns: {', '.join(counts)}."
    )
