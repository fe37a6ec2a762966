"""The records that cross floors: Batch, Tap, Features, SoftLabels, Losses.

Axis letters, for the whole project: ``B`` batch, ``N`` tokens including prefix, ``L`` patches,
``D`` embed dim, ``nh`` heads, ``hd`` head dim (``D = nh * hd``), ``H W`` pixels, ``gh gw`` token
grid, ``C`` channels or classes.
"""

from dataclasses import dataclass, field
from typing import Literal, get_args

from torch import Tensor

TapKind = Literal[
    "queries", "keys", "values", "scores", "block_input", "attention_input", "attention_output",
    "attention_tokens", "mlp_output", "tokens", "output", "decoder_tokens", "logits",
    "class_logits", "dist_logits", "pyramid", "aux_logits",
]  # fmt: skip
TAP_KINDS: tuple[str, ...] = get_args(TapKind)
HEAD_KINDS = ("queries", "keys", "values", "scores")
"""The kinds with an axis of heads."""
DECODER_KINDS = ("decoder_tokens",)
"""The kinds of a masked autoencoder's decoder: their block is one of the decoder's."""
LOGIT_KINDS = ("logits", "class_logits", "dist_logits")
"""The kinds that come after the tokens: no block, no patch grid."""
MAP_KINDS = ("pyramid", "aux_logits")
"""The further maps of a segmenter; "pyramid" has a level in the place of a block."""
NUM_LEVELS = 4

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
    pyramid          of a segmenter what its head reads;     (B, D, h, w)
                     ``block`` is the level, 0 the finest
    aux_logits       what its auxiliary head says            (B, C, h, w)
    ================ ======================================= ====================

    In a hierarchical encoder N and D are those of the block (``EncoderFacts.block_strides`` and
    ``block_dims``). Its tokens are in rows of the grid; where units were dropped, unit by unit as
    in ``ids_keep``, each unit's own in rows.

    ``block`` counts from 0; negative counts from the end (-1 is the last block); it has no meaning
    for "output" and the logits, and of "decoder_tokens" it is one of the decoder's. ``num_heads``
    (queries, keys, values, scores) states the head count that the caller needs; None takes the
    block's own.
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
class Batch:
    """One micro-batch on its device.

    ``images`` (B, 3, H, W), 0..1, augmented, not normalised: what the student sees.
    ``teacher_images`` the same crop and flip without the student's own disturbance.
    ``labels`` (B,) int64 class indices, or (B, C) float soft targets after mixing, or None; of
    scenes (B, H, W) int64, the class of each pixel or ``IGNORE``.
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
