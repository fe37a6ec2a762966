"""What every method may set (no torch here, see ``limbeck.config``)."""

import dataclasses
from typing import ClassVar

from limbeck.config import NotNegative, Rate, options
from limbeck.data.options import CropOptions, ViewOptions


@options
class MethodOptions:
    """What every method may set of the student's training: how the student is disturbed."""

    needs_teacher: ClassVar[bool] = True
    """False for a method that has none (a teacher is then refused)."""
    trains_classifier: ClassVar[bool] = False
    """True where the student gets a classifier of the teacher's classes: of ``ClassifierOptions``.
    The teacher is then shown images of its own size."""

    reads_decoder: ClassVar[bool] = False
    """True where the teacher is a whole masked autoencoder, whose decoder is read too."""

    color_jitter: tuple[NotNegative, NotNegative, NotNegative] = (0.0, 0.0, 0.0)
    """Brightness, contrast, saturation of the student's view alone: factors in 1 +- value."""
    drop_path_rate: Rate = 0.0
    """Stochastic depth of the student: this rate in every block but the last."""

    def for_next_stage(self) -> "MethodOptions":
        """The options of a chain's next stage, whose teacher is the student of this one."""
        return self

    def views(self, crop: CropOptions) -> tuple[ViewOptions, ...]:
        """The views that are made of each image, with the crop and flip that the run states."""
        return (ViewOptions(**dataclasses.asdict(crop), color_jitter=self.color_jitter),)

    def local_views(self, crop: CropOptions) -> tuple[tuple[ViewOptions, int], ...]:
        """Further, smaller views of each image, and their sides in pixels."""
        del crop
        return ()
