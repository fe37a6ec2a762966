"""The scenes that a reader has found, with what their masks mean."""

import numpy as np

from limbeck.data.scenes.coding import Coding
from limbeck.data.scenes.layout import Found
from limbeck.data.scenes.options import SceneOptions
from limbeck.data.scenes.pixels import decode_pair, fitted
from limbeck.data.scenes.scene import Scenes
from limbeck.data.source import BadImage, RawImage
from limbeck.errors import UserError
from limbeck.files import printable
from limbeck.records import IGNORE


class AnnotatedScenes(Scenes):
    """Images and masks of a place; what is bad of them is refused or told, as the options say."""

    def __init__(self, found: Found, coding: Coding, options: SceneOptions) -> None:
        self.found, self.coding = found, coding
        self.classes, self.layout, self.problems = coding.classes, found.layout, found.problems
        self.notes = found.notes
        self.max_image_pixels = options.max_image_pixels
        self.is_refused = options.broken == "refuse"

    def __len__(self) -> int:
        return len(self.found.images)

    def key(self, index: int) -> str:
        return self.found.images.key(index)

    def mask_name(self, index: int) -> str:
        return self.found.masks.name(index)

    def stamp(self, index: int) -> str:
        return self.found.masks.stamp(index)

    def read(self, index: int) -> RawImage:
        return RawImage(self.found.images.read(index).data, None)

    def read_scene(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        try:
            labels = self._labels(index)
            return decode_pair(self.read(index).data, labels, self.max_image_pixels)
        except BadImage as error:
            raise self._refusal(index, error) from error

    def read_mask(self, index: int) -> np.ndarray:
        try:
            return fitted(self._labels(index), self.read(index).data, self.max_image_pixels)
        except BadImage as error:
            raise self._refusal(index, error) from error

    def _labels(self, index: int) -> np.ndarray:
        try:
            raw = self.found.masks.read(index)
        except BadImage as error:
            raise BadImage(f"its mask can't be used: {error}") from error
        labels = self.coding.apply(raw)
        if (labels == IGNORE).all():
            raise BadImage("its mask has no pixel of a class: all are ignored")
        return labels

    def _refusal(self, index: int, error: BadImage) -> Exception:
        if not self.is_refused:
            return error
        return UserError(
            f"{printable(self.key(index))} can't be used: {error}; repair or remove it, or pass "
            "--data.broken skip."
        )
