"""The contract of every source of scenes: images, each with the class of each of its pixels."""

from abc import abstractmethod
from collections.abc import Sequence

import numpy as np

from limbeck.data.source import Source, Subset, sum_of_digests
from limbeck.errors import UserError
from limbeck.records import IGNORE

MAX_SCENE_CLASSES = IGNORE - 1


class Scenes(Source):
    """Images with a label map each; ``classes`` are those of the maps.

    A label map is uint8 (H, W) of class indices or ``IGNORE``, pixel by pixel that of the upright
    image.
    """

    layout: str
    """How images and masks lie, as it was recognised: a few words for people."""
    problems: tuple[tuple[str, str], ...] = ()
    """(key, sentence) of images that were left out in opening it."""

    def label(self, index: int) -> int | None:
        """None: a scene has a label map."""
        return None

    @abstractmethod
    def read_scene(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """The image, uint8 (H, W, 3), and its label map; raises BadImage where either is bad."""

    @abstractmethod
    def read_mask(self, index: int) -> np.ndarray:
        """The label map alone, of which the image's size is read; raises BadImage likewise."""

    @abstractmethod
    def mask_name(self, index: int) -> str:
        """Where the mask of a sample comes from, for people."""

    def stamp(self, index: int) -> str:
        """What tells, without reading it, that a mask is another one; "" where nothing does."""
        del index
        return ""

    def fingerprint(self) -> str:
        """32 hex digits of classes, keys and stamps, whatever the order of the scenes."""
        texts = (f"{self.key(index)}\0{self.stamp(index)}" for index in range(len(self)))
        return sum_of_digests(["\0".join(self.classes), *texts])


class SceneSubset(Subset, Scenes):
    """Some scenes, in the given order."""

    source: Scenes

    def __init__(self, source: Scenes, indices: Sequence[int] | np.ndarray) -> None:
        super().__init__(source, indices)  # type: ignore[arg-type]
        self.layout, self.problems, self.notes = source.layout, source.problems, source.notes

    def read_scene(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        return self.source.read_scene(int(self.indices[index]))

    def read_mask(self, index: int) -> np.ndarray:
        return self.source.read_mask(int(self.indices[index]))

    def mask_name(self, index: int) -> str:
        return self.source.mask_name(int(self.indices[index]))

    def stamp(self, index: int) -> str:
        return self.source.stamp(int(self.indices[index]))


class RenumberedScenes(SceneSubset):
    """All scenes of a source with its classes in the order of others, of which it may lack some.

    Raises UserError for a class that the others lack.
    """

    def __init__(self, source: Scenes, classes: tuple[str, ...], place: str, other: str) -> None:
        super().__init__(source, range(len(source)))
        missing = [name for name in source.classes if name not in classes]
        if missing:
            raise UserError(
                f"The classes of {place} are not those of {other}, which has no "
                f"'{missing[0]}' (it has {', '.join(classes[:5])}{', ...' * (len(classes) > 5)}); "
                "name them alike with --data.class-names, or leave some out with --data.merge "
                f"ignore={missing[0]}."
            )
        self.classes = classes
        self._new = np.full(256, IGNORE, np.uint8)
        self._new[: len(source.classes)] = [classes.index(name) for name in source.classes]

    def read_scene(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """With the classes of the others."""
        image, labels = super().read_scene(index)
        return image, self._new[labels]

    def read_mask(self, index: int) -> np.ndarray:
        """With the classes of the others."""
        return self._new[super().read_mask(index)]
