"""The ways in which a loader makes views, each from the file to the noise in an erased box."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from limbeck.data.decode import decode_as_stored, decode_image
from limbeck.data.options import ReleasedViews, ViewOptions
from limbeck.data.released_views import check_streams, released_noise, released_view
from limbeck.data.views import (
    NO_BOX,
    DrawNoise,
    View,
    eval_view,
    rand_augment,
    train_view,
    view_noise,
)


class MakeView(Protocol):
    """How the views of one recipe are made, from the file to the noise in an erased box."""

    @property
    def decode(self) -> Callable[[bytes, int], np.ndarray]:
        """(file, most pixels) -> (H, W, 3) uint8; raises BadImage."""
        ...

    @property
    def draw_noise(self) -> DrawNoise:
        """What fills an erased box."""
        ...

    def __call__(self, image: np.ndarray, seed: int) -> View:
        """The view of an image with a seed."""
        ...


@dataclass(frozen=True)
class TrainView:
    """``train_view`` with its options; a class, since a lambda can't be sent to a worker."""

    options: ViewOptions
    img_size: int
    decode = staticmethod(decode_image)
    draw_noise = staticmethod(view_noise)

    def __call__(self, image: np.ndarray, seed: int) -> View:
        """The view of an image with a seed."""
        return train_view(image, seed, self.options, self.img_size)


@dataclass(frozen=True)
class ReleasedView:
    """``released_view`` in one size."""

    img_size: int
    decode = staticmethod(decode_as_stored)
    draw_noise = staticmethod(released_noise)

    def __call__(self, image: np.ndarray, seed: int) -> View:
        """The view of an image with a seed."""
        return released_view(image, seed, self.img_size)


@dataclass(frozen=True)
class EvalView:
    """``eval_view``, which no seed changes."""

    img_size: int
    crop_ratio: float
    decode = staticmethod(decode_image)
    draw_noise = staticmethod(view_noise)

    def __call__(self, image: np.ndarray, seed: int) -> View:
        """The centre of an image."""
        del seed
        pixels = eval_view(image, self.img_size, self.crop_ratio)
        return View(pixels, pixels, NO_BOX)


def view_maker(views: ViewOptions | ReleasedViews, img_size: int) -> MakeView:
    """What makes such views, ``img_size`` pixels wide and high.

    Raises UserError for a bad recipe, RunError where these libraries can't make them.
    """
    if isinstance(views, ReleasedViews):
        check_streams()
        return ReleasedView(img_size)
    if views.rand_augment:
        rand_augment(views.rand_augment, img_size)  # A bad recipe is told here, not by a worker.
    return TrainView(views, img_size)
