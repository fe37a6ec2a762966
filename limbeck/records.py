"""The records that cross floors: Batch, Objects, Detections, Tap, Features, SoftLabels, Losses.

Axis letters, for the whole project: ``B`` batch, ``N`` tokens including prefix, ``L`` patches,
``D`` embed dim, ``nh`` heads, ``hd`` head dim (``D = nh * hd``), ``H W`` pixels, ``gh gw`` token
grid, ``C`` channels or classes.
"""

from dataclasses import dataclass, field
from typing import Literal, get_args

import numpy as np
from torch import Tensor

TapKind = Literal[
    "queries", "keys", "values", "scores", "block_input", "attention_input", "attention_output",
    "attention_tokens", "mlp_output", "tokens", "output", "decoder_tokens", "logits",
    "class_logits", "dist_logits", "pyramid", "aux_logits", "objectness", "box_deltas",
    "class_maps", "box_maps",
]  # fmt: skip
TAP_KINDS: tuple[str, ...] = get_args(TapKind)
HEAD_KINDS = ("queries", "keys", "values", "scores")
"""The kinds with an axis of heads."""
DECODER_KINDS = ("decoder_tokens",)
"""The kinds of a masked autoencoder's decoder: their block is one of the decoder's."""
LOGIT_KINDS = ("logits", "class_logits", "dist_logits")
"""The kinds that come after the tokens: no block, no patch grid."""
LEVEL_KINDS = ("pyramid", "objectness", "box_deltas", "class_maps", "box_maps")
"""The maps of a segmenter or a detector that have a level in the place of a block."""
MAP_KINDS = ("aux_logits", *LEVEL_KINDS)
"""The further maps of a segmenter or a detector."""
NUM_LEVELS = 4
"""Of a segmenter's pyramid."""

IGNORE = 255
"""In a label map: this pixel has no class, and counts in no loss and no score."""


@dataclass(frozen=True)
class Tap:
    """The address of one inner tensor of an encoder.

    ================ ======================================= ====================
    kind             what                                    shape
    ================ ======================================= ====================
    queries          what enters the attention product,      (B, nh, N, hd)
                     after q-norm and rotary position,
                     before the scale
    keys             likewise                                (B, nh, N, hd)
    values           likewise                                (B, nh, N, hd)
    scores           what enters the softmax: queries        (B, nh, N, N)
                     keys^T / sqrt(hd), and the relative
                     position bias where there is one
    block_input      the residual stream before the block    (B, N, D)
    attention_input  what its attention reads, so of a       (B, N, D)
                     pre-norm block that after norm1
    attention_output what the attention branch adds          (B, N, D)
    attention_tokens the residual stream after that          (B, N, D)
    mlp_output       what the MLP branch adds                (B, N, D)
    tokens           the residual stream after the block     (B, N, D)
    output           the tokens after the last block and     (B, N, D)
                     final norm; of TinyMIM* wider
    decoder_tokens   of a masked autoencoder the residual    (B, cls + L, D)
                     stream after a block of its decoder:
                     the CLS token, if any, and all patches
    logits           the classifier's output; of two heads,  (B, C)
                     their mean; of a segmenter maps, four   or (B, C, h, w)
                     times as fine as its patches
    class_logits     of two heads, the class token's         (B, C)
    dist_logits      of two heads, the distillation token's  (B, C)
    pyramid          of a segmenter or a detector what its   (B, D, h, w)
                     heads read; ``block`` is the level, 0
                     the finest
    objectness       of a detector: is there any object?     (B, A, h, w)
                     Logits by level and anchor
    box_deltas       of a detector with anchors: what moves  (B, 4 A, h, w)
                     them onto objects, by level
    class_maps       of a detector without anchors: logits   (B, C, h, w)
                     of the classes at each place of a level
    box_maps         likewise: from the place's centre to    (B, 4, h, w)
                     the box's left, top, right and bottom,
                     in pixels
    aux_logits       what its auxiliary head says            (B, C, h, w)
    ================ ======================================= ====================

    In a hierarchical encoder N and D are those of the block (``EncoderFacts.block_strides`` and
    ``block_dims``). Its tokens are in rows of the grid; where units were dropped, unit by unit as
    in ``ids_keep``, each unit's own in rows.

    ``block`` counts from 0; negative counts from the end (-1 is the last block); it is the level of
    what has one, has no meaning for "output" and the logits, and of "decoder_tokens" it is one of
    the decoder's. ``num_heads`` (queries, keys, values, scores) states the head count that the
    caller needs; None takes the block's own.
    """

    kind: TapKind
    block: int = -1
    num_heads: int | None = None

    def __post_init__(self) -> None:
        if self.kind not in TAP_KINDS:
            raise ValueError(f"Tap kind '{self.kind}' is not one of {', '.join(TAP_KINDS)}.")


@dataclass(frozen=True)
class SoftLabels:
    """Class probabilities of which the K largest are stated; what is left is spread evenly.

    ``probs`` (B, K) float32, descending; ``classes`` (B, K) int64; ``rest`` (B,) float32, at least
    0: the sum over the other ``num_classes`` - K classes. probs and rest add up to 1.
    """

    probs: Tensor
    classes: Tensor
    rest: Tensor
    num_classes: int


@dataclass(frozen=True)
class Objects:
    """What is to be found in one image of a batch, in pixels of that image.

    ``boxes`` (n, 4) float32: left, top, right, bottom; ``classes`` (n,) int64. ``size`` (H, W) is
    what of the image is no filling, which lies right and below. ``masks`` (n, H, W) bool of the
    whole image, where there are any; all false of an object that has a box alone. ``outlines``: of
    each object those (k, 2), x and y, that its mask was drawn by, None where it was not.
    """

    boxes: Tensor
    classes: Tensor
    size: tuple[int, int]
    masks: Tensor | None = None
    outlines: tuple[list[np.ndarray] | None, ...] | None = None


@dataclass(frozen=True)
class Detections:
    """What a detector finds in one image, the surest first.

    ``boxes`` (n, 4) float32: left, top, right, bottom in pixels of the image; ``scores`` (n,)
    float32 in 0..1; ``classes`` (n,) int64. ``masks`` (n, m, m) float32: how likely (0..1) each
    place of a grid laid over its box is of the object.
    """

    boxes: Tensor
    scores: Tensor
    classes: Tensor
    masks: Tensor | None = None


@dataclass(frozen=True)
class Batch:
    """One micro-batch on its device.

    ``images`` (B, 3, H, W), 0..1, augmented, not normalised: what the student sees.
    ``teacher_images`` the same crop and flip without the student's own disturbance.
    ``labels`` (B,) int64 class indices, or (B, C) float soft targets after mixing, or None; of
    scenes (B, H, W) int64, the class of each pixel or ``IGNORE``. ``objects``, one record an image,
    where boxes are to be found.
    ``keys`` the samples' names. ``view_seeds`` (B,) int64, one per view: all further randomness
    of a sample (its mask, say) is drawn from it, so that it is the same on any number of ranks.
    Where a method asks for V views of a sample, ``images`` and ``view_seeds`` have B * V rows, the
    views of a sample one after the other, and ``teacher_images`` are ``images``; labels and keys
    stay B. ``local_images`` (B * local views, 3, h, w) are further, smaller views of its choice.
    ``targets``: what a store has of a teacher's answer to each view, by name, first axis B, still
    encoded; None without a store.
    ``ids_keep`` and ``teacher_ids_keep`` (B, kept) patch indices that student and teacher see (all
    where None), set by a method's ``prepare``; so is ``mask_token`` (1, 1, D), a parameter of the
    method: the student gets it in place of every patch that it does not see, which then is not
    dropped. ``mix_shares`` (B,) where a ``prepare`` mixed images: how much of each is its own;
    the rest is its partner's, 1 for 0 and 0 for 1, 3 for 2 and so on, and an odd last one has none.
    """

    images: Tensor
    teacher_images: Tensor
    labels: Tensor | None
    keys: tuple[str, ...]
    view_seeds: Tensor
    ids_keep: Tensor | None = None
    teacher_ids_keep: Tensor | None = None
    mask_token: Tensor | None = None
    local_images: Tensor | None = None
    targets: dict[str, Tensor] | None = None
    mix_shares: Tensor | None = None
    objects: tuple[Objects, ...] | None = None

    @property
    def num_views(self) -> int:
        """Views per sample in ``images``."""
        return len(self.images) // len(self.keys)


@dataclass(frozen=True)
class Features:
    """What an encoder says of a batch.

    ``tokens`` (B, N, D): final tokens after the last norm; None where the encoder stopped early
    because no tap needed them. ``grid`` (gh, gw): the *full* patch grid, also where patches were
    dropped. ``taps``: exactly the taps that were asked for. ``local``: likewise of the batch's
    ``local_images``. ``soft_labels``: of a teacher whose answers were stored, in place of its
    logits.
    """

    tokens: Tensor | None
    num_prefix_tokens: int
    grid: tuple[int, int]
    taps: dict[Tap, Tensor] = field(default_factory=dict)
    local: "Features | None" = None
    soft_labels: SoftLabels | None = None


@dataclass(frozen=True)
class Losses:
    """``total``, a scalar with gradient, and its named parts for the log (detached scalars).

    ``at_zero`` (detached, a scalar), where a method knows it: what the total would be of a student
    that predicts nothing, which a run soon falls below.
    """

    total: Tensor
    parts: dict[str, Tensor] = field(default_factory=dict)
    at_zero: Tensor | None = None
