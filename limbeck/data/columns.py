"""The columns of a table that hold its images and labels, found by their types and names."""

import logging
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from typing_extensions import TypedDict

from limbeck.data.options import DataOptions
from limbeck.data.source import MAX_CLASSES, is_label, label_table, plain_label
from limbeck.documents import fit, parse_json
from limbeck.errors import UserError, did_you_mean

log = logging.getLogger("limbeck")

# fmt: off
LABEL_NAMES = (
    "label", "labels", "class", "target", "fine_label", "class_label", "class_id", "cls",
)
# fmt: on
OTHER_MEDIA = ("Audio", "Video", "Pdf")  # stored as bytes and path, too


class _Feature(TypedDict, total=False):
    _type: str
    names: list[str] | None
    num_classes: int | None


class _Info(TypedDict, total=False):
    features: dict[str, object] | None


class _Notes(TypedDict, total=False):
    """What ``datasets`` writes into a table's schema."""

    info: _Info


class Columns:
    """The image and the label column of a table's schema, and all ``images`` among its columns.

    ``class_names`` are those that the table gives its label column, () for none. ``notes`` say
    what is left out as a label.
    """

    def __init__(self, schema: Any, options: DataOptions, where: str) -> None:
        self.schema, self.where = schema, where
        self.notes: list[str] = []
        # Of two columns of one name, neither can be meant.
        self._names = [name for name, count in Counter(schema.names).items() if count == 1]
        self._features = _features(schema, where)
        self.images = tuple(
            name
            for name in self._names
            if _has_bytes(self._type(name))
            and self._features.get(name, {}).get("_type") not in OTHER_MEDIA
        )
        self.image = self._find_image(options.image_column)
        self.type = schema.field(self.image).type
        self.field = "bytes" if _has_bytes(self.type) else None
        self.has_paths = self.field is not None and self.type.get_field_index("path") >= 0
        self.asked = options.label_column
        self.label = self._find_label()
        self.class_names = self._class_names(self.label) if self.label else ()

    @property
    def kind(self) -> tuple[object, ...]:
        """What the tables of one set have in common."""
        of_label = self.label and _label_kind(self._type(self.label))
        return self.image, self.field, self.label, of_label, self.class_names

    def _type(self, name: str) -> Any:
        return self.schema.field(name).type

    def _find_image(self, asked: str | None) -> str:
        names = self._names
        if asked is not None:
            if asked not in names:
                raise _no_column(asked, self.schema.names, "image")
            arrow_type = self._type(asked)
            if not _has_bytes(arrow_type) and not _is_binary(arrow_type):
                raise UserError(
                    f"The column '{asked}' holds {arrow_type}, not encoded images; pass another "
                    "--data.image-column."
                )
            return asked
        found = self.images
        if len(found) == 1 or "image" in found:
            return "image" if "image" in found else found[0]
        raise UserError(
            f"{'More than one' if found else 'No'} column of the table holds images (columns: "
            f"{', '.join(found or names)}); name it with --data.image-column."
        )

    def _class_names(self, name: str) -> tuple[str, ...]:
        """The class names of a column of type ClassLabel, else ()."""
        feature = self._features.get(name, {})
        if feature.get("_type") != "ClassLabel" or _label_kind(self._type(name)) != "integers":
            return ()
        number = feature.get("num_classes") or 0
        return tuple(feature.get("names") or map(str, range(min(number, MAX_CLASSES))))

    def _find_label(self) -> str | None:
        """The column of ClassLabel type, by its name where there are several; else by its name,
        integers before other kinds of labels.

        Integers of other names may be anything: an identifier, a width.
        """
        names = [name for name in self._names if name != self.image]
        if self.asked == "":
            return None
        if self.asked is not None:
            if self.asked not in self._names:
                raise _no_column(self.asked, self.schema.names, "label")
            if self.asked == self.image or not _label_kind(self._type(self.asked)):
                raise UserError(
                    f"The column '{self.asked}' holds {self._type(self.asked)}, not labels; pass "
                    "another --data.label-column."
                )
            return self.asked
        with_names = [name for name in names if self._class_names(name)]
        if with_names:
            usual = [name for name in LABEL_NAMES if name in with_names]
            if not usual and len(with_names) > 1:
                raise UserError(
                    "Several columns of the table could be the label "
                    f"({', '.join(with_names)}); name it with --data.label-column."
                )
            return (usual or with_names)[0]
        usual = [name for name in LABEL_NAMES if name in names]
        kinds = {name: _label_kind(self._type(name)) for name in usual}
        for name, kind in kinds.items():
            if not kind:
                self.notes.append(
                    f"The column '{name}' holds {self._type(name)}, which is no label; it is left "
                    "out."
                )
        others = [name for name in usual if kinds[name]]
        return next(
            (name for name in others if kinds[name] == "integers"), next(iter(others), None)
        )

    def read_labels(self, values: Sequence[object]) -> tuple[tuple[str, ...], np.ndarray | None]:
        """Class names and class indices of the label column's values; logs the notes."""
        labels = self._read_labels(values)
        for note in self.notes:
            log.warning("%s", note)
        return labels

    def _read_labels(self, values: Sequence[object]) -> tuple[tuple[str, ...], np.ndarray | None]:
        if self.label is None:
            return (), None
        plain = [plain_label(value) for value in values]
        is_words = any(isinstance(value, str) for value in plain)
        if self.asked is None and is_words and len(plain) > 1 and len(set(plain)) == len(plain):
            self.notes.append(
                f"The column '{self.label}' has another word in each row, so it is left out as a "
                f"label; to use it all the same, pass --data.label-column {self.label}."
            )
            return (), None
        classes, labels = label_table(plain, self.asked)
        if labels is None:
            if not any(map(is_label, plain)):
                example = next((value for value in values if value is not None), None)
                self.notes.append(
                    f"The column '{self.label}' is left out as a label: it must hold words, or "
                    f"whole numbers from 0 to below {MAX_CLASSES} (it has {example!r})."
                )
            return (), None
        if not self.class_names:
            return classes, labels
        if len(labels) and labels.max() >= len(self.class_names):
            raise UserError(
                f"The column '{self.label}' has the class {labels.max()}, but names of "
                f"{len(self.class_names)} classes only; correct the table or pass another "
                "--data.label-column."
            )
        return self.class_names, labels


def _features(schema: Any, where: str) -> dict[str, _Feature]:
    """What ``datasets`` noted of each column, where it is one of its named types."""
    text = (schema.metadata or {}).get(b"huggingface")
    if text is None:
        return {}
    notes: _Notes = parse_json(text, _Notes, f"the schema of {where}")
    features = notes.get("info", {}).get("features") or {}
    return {
        name: fit(feature, _Feature, f"the column '{name}' in the schema of {where}")
        for name, feature in features.items()
        if isinstance(feature, dict) and isinstance(feature.get("_type"), str)
    }


def _has_bytes(arrow_type: Any) -> bool:
    import pyarrow

    if not pyarrow.types.is_struct(arrow_type):
        return False
    place = arrow_type.get_field_index("bytes")
    return place >= 0 and _is_binary(arrow_type.field(place).type)


def _is_binary(arrow_type: Any) -> bool:
    from pyarrow import types

    if types.is_dictionary(arrow_type):
        arrow_type = arrow_type.value_type
    tests = (types.is_binary, types.is_large_binary, types.is_fixed_size_binary)
    # A column of nothing but null has no better type.
    return any(test(arrow_type) for test in (*tests, types.is_binary_view, types.is_null))


def _label_kind(arrow_type: Any) -> str:
    """Whether its values may be labels, and of which kind; "" if not."""
    from pyarrow import types

    if types.is_dictionary(arrow_type):
        arrow_type = arrow_type.value_type
    if types.is_integer(arrow_type):
        return "integers"
    words = (types.is_string, types.is_large_string, types.is_string_view)
    if any(test(arrow_type) for test in words):
        return "words"
    if types.is_boolean(arrow_type):
        return "truth values"
    return "floats" if types.is_floating(arrow_type) else ""


def _no_column(name: str, names: list[str], kind: str) -> UserError:
    counts = Counter(names)
    if name in counts:
        return UserError(
            f"The table has {counts[name]} columns '{name}'; give them different names or pass "
            f"another --data.{kind}-column."
        )
    return UserError(
        f"The table has no {kind} column '{name}'.{did_you_mean(name, counts)} "
        f"Columns: {', '.join(counts)}."
    )
