"""The ways in which a loader makes views, each from the file to the noise in an erased box."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

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


@dataclass(frozen=True)
class MakeView:
    """How the views of one recipe are made: (H, W, 3) uint8 and a seed to a view.

    ``decode``: (file, most pixels) -> (H, W, 3) uint8, or BadImage; ``draw_noise`` fills an erased
    box. It can be sent to a worker.
    """

    make: Callable[[np.ndarray, int], View]
    decode: Callable[[bytes, int], np.ndarray]
    draw_noise: DrawNoise

    def __call__(self, image: np.ndarray, seed: int) -> View:
        """The view of an image with a seed."""
        return self.make(image, seed)


def view_maker(views: ViewOptions | ReleasedViews, img_size: int) -> MakeView:
    """What makes such views, ``img_size`` pixels wide and high.

    Raises UserError for a bad recipe, RunError where these libraries can't make them.
    """
    if isinstance(views, ReleasedViews):
        check_streams()
        make = partial(released_view, img_size=img_size)
        return MakeView(make, decode_as_stored, released_noise)
    if views.rand_augment:
        rand_augment(views.rand_augment, img_size)  # A bad recipe is told here, not by a worker.
    make = partial(train_view, options=views, img_size=img_size)
    return MakeView(make, decode_image, view_noise)


def eval_maker(img_size: int, crop_ratio: float) -> MakeView:
    """What makes the ``eval_view`` of an image, which no seed changes."""
    make = partial(_centre, img_size=img_size, crop_ratio=crop_ratio)
    return MakeView(make, decode_image, view_noise)


def _centre(image: np.ndarray, seed: int, img_size: int, crop_ratio: float) -> View:
    del seed
    pixels = eval_view(image, img_size, crop_ratio)
    return View(pixels, pixels, NO_BOX)
