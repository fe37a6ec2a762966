"""Mixup and cutmix of TinyViT's released code (arXiv 2207.10666): the images of a batch in pairs.

Both images of a pair are mixed with each other, and what is drawn follows from the seeds of their
views, so a teacher's answer to the mixed image can be stored with each. All released sets were
written without it.
"""

from dataclasses import dataclass

from torch import Tensor

from limbeck.data.released_views import draw_integer, released_generator
from limbeck.data.views import Box
from limbeck.errors import UserError

MIXUP_ALPHA, CUTMIX_ALPHA, SWITCH_PROB = 0.8, 1.0, 0.5


@dataclass(frozen=True)
class PairMix:
    """What is done to a pair: swap ``box`` (cutmix), or where it is None, blend (mixup).

    ``lam`` is the share of an image's own pixels; of cutmix as drawn, before the box is clipped,
    which may leave nothing of it.
    """

    lam: float
    box: Box | None


def draw_pair_mix(first_seed: int, second_seed: int, img_size: int) -> PairMix:
    """How the views of two seeds are mixed in images of ``img_size`` pixels; symmetric."""
    rng = released_generator(first_seed ^ second_seed)
    rng.random()  # whether to mix at all, with probability 1
    if rng.random() >= SWITCH_PROB:
        return PairMix(float(rng.beta(MIXUP_ALPHA, MIXUP_ALPHA)), None)
    lam = float(rng.beta(CUTMIX_ALPHA, CUTMIX_ALPHA))
    half = int(img_size * (1 - lam) ** 0.5) // 2
    centres = [draw_integer(rng, 0, img_size - 1) for _ in "yx"]
    (top, bottom), (left, right) = (
        (max(0, centre - half), min(img_size, centre + half)) for centre in centres
    )
    return PairMix(lam, (top, left, bottom - top, right - left))


def mix_pairs(images: Tensor, seeds: Tensor) -> Tensor:
    """Images (B, 3, S, S), erased and normalised or not, with (0, 1), (2, 3), ... mixed.

    ``seeds`` (B,) are those of their views. Raises UserError for an odd batch.
    """
    if len(images) % 2:
        raise UserError(f"A batch of {len(images)} can't be mixed in pairs; make it even.")
    mixed = images.clone()
    for first in range(0, len(images), 2):
        pair = images[first : first + 2]
        drawn = draw_pair_mix(*seeds[first : first + 2].tolist(), images.shape[-1])
        if drawn.box is None:
            mixed[first : first + 2] = drawn.lam * pair + (1 - drawn.lam) * pair.flip(0)
        else:
            top, left, height, width = drawn.box
            place = (..., slice(top, top + height), slice(left, left + width))
            mixed[first : first + 2][place] = pair.flip(0)[place]
    return mixed
