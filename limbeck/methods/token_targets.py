"""Stored token states: what enters a block of the teacher, from which follows all that it does.

Stored answers in the place of a teacher are TinyViT's idea (arXiv 2207.10666), which stores class
probabilities. The tokens before a block and this block's weights give its queries, keys, values,
scores and features, so that relations (TinyMIM, arXiv 2301.01296), attention scores (MAE-Lite,
arXiv 2205.14443) and features are learnt without the rest of the teacher. Of masked methods only
the tokens are stored that the teacher computes: the mask follows from the view's seed.
"""

from typing import Any, ClassVar

import torch
from torch import Tensor

from limbeck.data.options import StoreOptions
from limbeck.data.target_store import ArraySpec
from limbeck.errors import NotFiniteError, UserError
from limbeck.methods.method import Method
from limbeck.methods.targets import Targets
from limbeck.methods.teacher import Precision, Teacher
from limbeck.models.attention import choose_attention
from limbeck.models.encoder import EncoderFacts, check_taps
from limbeck.models.part import build_part, fill_part
from limbeck.ops.masking import count_kept
from limbeck.ops.token_codes import (
    LARGEST,
    decode_bf16,
    decode_int8,
    encode_bf16,
    encode_int8,
)
from limbeck.records import LOGIT_KINDS, Features, Tap


class TokenTargets(Targets):
    """Tokens (N, D) that enter a block, as int8 with a scale per token or as bfloat16.

    ``params``: "point" and "block" say which tokens, "dtype" how they are coded, "num_tokens" how
    many there are, "shown" what of a view the teacher saw (``Method.shown_to_teacher``),
    "has_mask_token" whether it has its own.
    """

    kind = "tokens"
    options = ("token_dtype",)
    # int8 rounds by 0.005, twice. Of a ViT-Ti of random weights the largest distance to fp32 was
    # 0.003 in fp16 and 0.007 in bf16 before block 11.
    usual_distance: ClassVar[dict[Precision, float]] = {"fp32": 0.01, "fp16": 0.015, "bf16": 0.03}

    def __init__(
        self, params: dict[str, Any], teacher: EncoderFacts, weights: dict[str, Tensor]
    ) -> None:
        self._params, self._facts, self._weights = params, teacher, weights
        self.tap = Tap(params["point"], params["block"])
        self.encoder = build_part(teacher.architecture, weights)

    @classmethod
    def plan(cls, options: StoreOptions, method: Method, teacher: Teacher) -> "TokenTargets":
        """See ``Targets.plan``: the tokens before the one block that the method reads."""
        facts, encoder = teacher.facts, teacher.encoder
        block = _block_read(method, facts)
        teacher.check(method)
        has_mask_token = encoder.mask_token is not None
        shown = _shown(method, has_mask_token)
        is_dropping = shown.get("masking") == "drop"
        weights = encoder.weights_from(block, is_dropping=is_dropping)
        num_patches = facts.grid[0] * facts.grid[1]
        if is_dropping:
            num_patches = count_kept(shown["num_units"], shown["mask_ratio"])
        params = {
            "point": "block_input",
            "block": block,
            "dtype": options.token_dtype,
            "num_tokens": facts.num_prefix_tokens + num_patches,
            "shown": shown,
            "has_mask_token": has_mask_token,
        }
        return cls(params, facts, weights).to(teacher.device)

    @classmethod
    def from_store(
        cls, params: dict[str, Any], teacher: EncoderFacts, weights: dict[str, Tensor]
    ) -> "TokenTargets":
        """See ``Targets.from_store``: of the teacher only the block is in memory."""
        return cls(params, teacher, weights)

    @property
    def params(self) -> dict[str, Any]:
        """See the class."""
        return self._params

    @property
    def weights(self) -> dict[str, Tensor]:
        """The teacher's block and what it needs besides, in the types in which it computes."""
        return {name: value.cpu().contiguous() for name, value in self._weights.items()}

    @property
    def arrays(self) -> dict[str, ArraySpec]:
        """Bytes of a view: N (D + 2) + 4 D of int8, 2 N D of bfloat16."""
        num_tokens, width = self._params["num_tokens"], self._facts.tap_dim(self.tap)
        if self._params["dtype"] == "bf16":
            return {"tokens": ArraySpec((num_tokens, width), "int16")}
        return {
            "tokens": ArraySpec((num_tokens, width), "int8"),
            "scales": ArraySpec((num_tokens,), "float16"),
            "shift": ArraySpec((width,), "float16"),
            "spread": ArraySpec((width,), "float16"),
        }

    @property
    def taps(self) -> tuple[Tap, ...]:
        """The tokens before the block alone: a live teacher then stops there."""
        return (self.tap,)

    def encode(self, features: Features) -> dict[str, Tensor]:
        """See ``Targets.encode``. Raises NotFiniteError for tokens that can't be coded."""
        tokens = features.taps[self.tap]
        if not tokens.abs().amax() <= LARGEST:  # nor of NaN
            raise NotFiniteError(
                f"The teacher's tokens before block {self.tap.block} are not finite, or beyond "
                f"{LARGEST:g}; set teacher.precision fp32, or choose another block."
            )
        if self._params["dtype"] == "bf16":
            return {"tokens": encode_bf16(tokens)}
        names = ("tokens", "scales", "shift", "spread")
        return dict(zip(names, encode_int8(tokens), strict=True))

    def decode(self, arrays: dict[str, Tensor], taps: tuple[Tap, ...]) -> Features:
        """See ``Targets.decode``: under the teacher's autocast the block goes on as it did."""
        if self._params["dtype"] == "bf16":
            tokens = decode_bf16(arrays["tokens"])
        else:
            tokens = decode_int8(*(arrays[name] for name in self.arrays))
        return self.encoder.continue_from(self.tap.block, tokens, taps)

    def distance(self, stored: dict[str, Tensor], fresh: dict[str, Tensor]) -> Tensor:
        """The relative error |a - b| / |a| over all tokens of a view."""
        first, second = (
            self.decode(arrays, self.taps).taps[self.tap].float().flatten(1)
            for arrays in (stored, fresh)
        )
        return (first - second).norm(dim=1) / first.norm(dim=1).clamp(min=1e-12)

    def check(self, method: Method) -> None:
        """See ``Targets.check``: the same block, and the same patches shown to the teacher."""
        block = _block_read(method, self._facts)
        if block != self.tap.block:
            raise UserError(
                f"{_name(method)} reads block {block} of the teacher and the store has the tokens "
                f"before block {self.tap.block}; set that block, or store targets for this method."
            )
        shown = _shown(method, self._params["has_mask_token"])
        if shown != self._params["shown"]:
            raise UserError(
                f"{_name(method)} shows the teacher {_in_words(shown)} and the store is of one "
                f"that saw {_in_words(self._params['shown'])}; set the same mask, or store targets "
                "for this method."
            )
        check_taps(self.encoder, method.teacher_taps, "teacher")

    def to(self, device: torch.device) -> "TokenTargets":
        """See ``Targets.to``."""
        self._weights = {name: value.to(device) for name, value in self._weights.items()}
        fill_part(self.encoder, self._weights)
        # The matrices are of the type in which the teacher computes, all else is float32.
        types = {value.dtype for value in self._weights.values() if value.is_floating_point()}
        lower = types & {torch.bfloat16, torch.float16}
        choose_attention(self.encoder, device, lower.pop() if lower else torch.float32)
        return self


def _block_read(method: Method, teacher: EncoderFacts) -> int:
    """The one block of the teacher that a method reads, from 0; UserError unless there is one."""
    if not method.teacher_taps or method.momentum is not None:
        raise UserError(
            f"{_name(method)} has no teacher, so there is nothing to store; choose another method."
        )
    logits = [tap.kind for tap in method.teacher_taps if tap.kind in LOGIT_KINDS]
    if logits:
        raise UserError(
            f"{_name(method)} reads the teacher's {logits[0]}, which its tokens do not tell; store "
            "class probabilities instead."
        )
    if not teacher.depth:
        raise UserError("The teacher has no blocks, so no tokens of them; choose a plain ViT.")
    last = teacher.depth - 1
    blocks = {
        last if tap.kind == "output" else tap.block % teacher.depth for tap in method.teacher_taps
    }
    if len(blocks) > 1:
        raise UserError(
            f"{_name(method)} reads blocks {', '.join(map(str, sorted(blocks)))} of the teacher, "
            "and the tokens before one block are stored; let it read one, or train with a live "
            "teacher."
        )
    return blocks.pop()


def _shown(method: Method, has_mask_token: bool) -> dict[str, Any]:
    """What of a view the teacher is shown: all of it where it lacks a mask token to hide some."""
    shown = method.shown_to_teacher()
    if shown is None:
        raise UserError(
            f"{_name(method)} does not say which patches it shows the teacher, so that these can't "
            "be stored; implement its shown_to_teacher, or train with a live teacher."
        )
    return {} if shown.get("masking") == "mask-token" and not has_mask_token else shown


def _in_words(shown: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in shown.items()) or "whole images"


def _name(method: Method) -> str:
    return f"The method {type(method).__name__}"
