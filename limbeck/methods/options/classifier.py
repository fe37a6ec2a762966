"""Options of the methods that train a classifier."""

import dataclasses
from typing import Annotated, ClassVar, Literal

import pydantic

from limbeck.config import PositiveFloat, PositiveInt, Probability, Rate, options
from limbeck.data.options import CropOptions, PairMixOptions, RandAugment, ViewOptions
from limbeck.errors import UserError
from limbeck.methods.options.base import MethodOptions
from limbeck.models.options import GlobalPool


@options
class LogitOptions:
    """A classification teacher beside the labels. Defaults: DeiT's."""

    kind: Literal["hard", "soft"] = "hard"
    """hard: the teacher's most likely class is a label; soft: its probabilities are matched."""
    weight: Annotated[float, pydantic.Field(gt=0, lt=1)] | None = None
    """Share of the teacher's loss, the labels have the rest; 0.5 if hard, 0.1 if soft."""
    temperature: PositiveFloat | None = None
    """Divides the logits of both sides, soft only; 3 if not given."""

    def __post_init__(self) -> None:
        if self.kind == "hard" and self.temperature is not None:
            raise UserError(
                "logit.temperature has no effect with hard labels; leave it out, or choose "
                "logit.kind soft."
            )


@options
class NkdOptions:
    """A teacher's logits in the place of the labels' cross entropy: of the labels only the
    likeliest class counts. Defaults: G2SD's."""

    temperature: PositiveFloat = 1.0
    """Divides the logits of both sides, of all classes but the target."""
    alpha: PositiveFloat = 1.0
    """Weight of these classes."""


@options
class ClassifierOptions(MethodOptions):
    """What all methods share that train the student's classifier from the start."""

    trains_classifier: ClassVar[bool] = True

    drop_path_rate: Rate = 0.0
    """Stochastic depth of the student, rising linearly from 0 in the first block to this in the
    last."""
    global_pool: GlobalPool | None = None
    """What the classifier of a ViT reads. avg (if not given): the mean of the patch tokens; token:
    the CLS token."""


@options
class SparseLogitOptions(ClassifierOptions):
    """A teacher's class probabilities, the K largest of each image. Defaults: TinyViT's."""

    top_k: PositiveInt | None = None
    """Classes whose probability the student is told, the others share the rest; all of them (with a
    store: those that it has) if not given. TinyViT kept 100 of 21,841 and 10 of 1,000."""
    temperature: PositiveFloat = 1.0
    """Divides the logits of both sides; the loss is multiplied by its square."""
    label_weight: Rate = 0.0
    """Share of the loss of the images' own labels, which must be the teacher's classes."""
    rand_augment: RandAugment = "rand-m9-mstd0.5-inc1"
    """RandAugment in timm's words, of what both student and teacher see; "" is without."""
    erase_prob: Probability = 0.25
    """Random erasing, likewise."""
    mix: PairMixOptions = PairMixOptions()
    """Mixup and cutmix of what the student sees; as released there is none."""

    def __post_init__(self) -> None:
        default, mix = PairMixOptions(), self.mix
        if not mix.mixup_alpha and not mix.cutmix_alpha and mix != default:
            raise UserError(
                "sparse_logit.mix.mix_prob and switch_prob have no effect without mixing; set "
                "mixup_alpha or cutmix_alpha, or leave them out."
            )
        if not (mix.mixup_alpha and mix.cutmix_alpha) and mix.switch_prob != default.switch_prob:
            raise UserError(
                "sparse_logit.mix.switch_prob is for mixup and cutmix together; set both alphas, "
                "or leave it out."
            )

    def views(self, crop: CropOptions) -> tuple[ViewOptions, ...]:
        """One, which the teacher sees as it is, too."""
        (view,) = super().views(crop)
        return (
            dataclasses.replace(view, rand_augment=self.rand_augment, erase_prob=self.erase_prob),
        )
