"""The contract of every source of objects: images, each with boxes of named classes."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from limbeck.data.decode import decode_image
from limbeck.data.source import Source, Subset, sum_of_digests
from limbeck.errors import UserError


class Annotated(NamedTuple):
    """The objects of an image, in pixels of the upright image, as they are annotated.

    ``boxes`` (n, 4) float64: left, top, right, bottom, within the image and of some area;
    ``classes`` (n,) int64; ``is_crowd`` (n,) bool: a box of many; ``areas`` (n,) float64 in pixels,
    by which objects are small or large. ``shapes``: of each COCO's outlines (a list of x, y, x, y,
    ...), or its runs ("counts" and "size"), or None.
    """

    boxes: np.ndarray
    classes: np.ndarray
    is_crowd: np.ndarray
    areas: np.ndarray
    shapes: tuple[Any, ...]


class ObjectSource(Source):
    """Images with their objects; an image without any is one without objects, a negative."""

    layout: str
    """How images and annotations lie, as it was recognised: a few words for people."""
    problems: tuple[tuple[str, str], ...] = ()
    """(key, sentence) of images, or objects of images, that were left out in opening it."""
    has_shapes: bool
    """Whether objects have outlines or runs."""

    def label(self, index: int) -> int | None:
        """None: an image has objects."""
        return None

    @abstractmethod
    def read_objects(self, index: int) -> tuple[np.ndarray, Annotated]:
        """The image, uint8 (H, W, 3), and its objects; raises BadImage where either is bad."""

    @abstractmethod
    def objects(self, index: int) -> Annotated:
        """The objects alone, as they were found; the image is not looked at."""

    @abstractmethod
    def stamp(self, index: int) -> str:
        """What tells that the objects are others."""

    def fingerprint(self) -> str:
        """32 hex digits of classes, keys and stamps, whatever the order of the images."""
        texts = (f"{self.key(index)}\0{self.stamp(index)}" for index in range(len(self)))
        return sum_of_digests(["\0".join(self.classes), *texts])


class ObjectSubset(Subset, ObjectSource):
    """Some of the images, in the given order."""

    source: ObjectSource

    def __init__(self, source: ObjectSource, indices: Sequence[int] | np.ndarray) -> None:
        super().__init__(source, indices)  # type: ignore[arg-type]
        self.layout, self.problems, self.notes = source.layout, source.problems, source.notes
        self.has_shapes = source.has_shapes

    def read_objects(self, index: int) -> tuple[np.ndarray, Annotated]:
        return self.source.read_objects(int(self.indices[index]))

    def objects(self, index: int) -> Annotated:
        return self.source.objects(int(self.indices[index]))

    def stamp(self, index: int) -> str:
        return self.source.stamp(int(self.indices[index]))


class RenumberedObjects(ObjectSubset):
    """All of a source with its classes in the order of others, of which it may lack some.

    Raises UserError for a class that the others lack.
    """

    def __init__(
        self, source: ObjectSource, classes: tuple[str, ...], place: str, other: str
    ) -> None:
        super().__init__(source, range(len(source)))
        missing = [name for name in source.classes if name not in classes]
        if missing:
            raise UserError(
                f"The classes of {place} are not those of {other}, which has no "
                f"'{missing[0]}' (it has {', '.join(classes[:5])}{', ...' * (len(classes) > 5)}); "
                "name them alike in the annotations, or leave some out with --data.merge "
                f"ignore={missing[0]}."
            )
        self.classes = classes
        self._new = np.array([classes.index(name) for name in source.classes], np.int64)

    def read_objects(self, index: int) -> tuple[np.ndarray, Annotated]:
        """With the classes of the others."""
        image, found = super().read_objects(index)
        return image, found._replace(classes=self._new[found.classes])

    def objects(self, index: int) -> Annotated:
        """With the classes of the others."""
        found = super().objects(index)
        return found._replace(classes=self._new[found.classes])


class WithoutObjects(ObjectSubset):
    """All images of any source, of which nothing is known."""

    def __init__(self, source: Source, max_image_pixels: int) -> None:
        Subset.__init__(self, source, range(len(source)))
        self.layout, self.has_shapes = "images alone", False
        self.max_image_pixels = max_image_pixels

    def read_objects(self, index: int) -> tuple[np.ndarray, Annotated]:
        """With no objects."""
        data = self.read(index).data
        return decode_image(data, self.max_image_pixels), self.objects(index)

    def objects(self, index: int) -> Annotated:
        """None."""
        none = np.zeros(0)
        return Annotated(none.reshape(0, 4), none.astype(int), none.astype(bool), none, ())

    def stamp(self, index: int) -> str:
        """None."""
        return ""
