"""Stored token states: tokens of the teacher at one point, from which follows what is learnt.

Stored answers in the place of a teacher are TinyViT's idea (arXiv 2207.10666), which stores class
probabilities. The tokens before a block and this block's weights give its queries, keys, values,
scores and features, so that relations (TinyMIM, arXiv 2301.01296), attention scores (MAE-Lite,
arXiv 2205.14443) and features are learnt without the rest of the teacher. A decoder's tokens (G2SD,
arXiv 2302.14771) are stored as they are learnt, and nothing of the teacher with them. Of masked
methods only the tokens are stored that the teacher computes: the mask follows from the view's seed.
"""

from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field, StrictBool, StrictInt
from torch import Tensor
from typing_extensions import TypedDict

from limbeck.data.options import StoreOptions
from limbeck.data.target_store import ArraySpec
from limbeck.errors import NotFiniteError, UserError
from limbeck.methods.method import Method
from limbeck.methods.targets import Targets, fit_said, not_possible
from limbeck.methods.teacher import Precision, Teacher
from limbeck.models.attention import choose_attention
from limbeck.models.encoder import EncoderFacts, check_offered, check_taps
from limbeck.models.part import build_part, fill_part
from limbeck.ops.masking import count_kept
from limbeck.ops.token_codes import LARGEST, decode_bf16, decode_int8, encode_bf16, encode_int8
from limbeck.records import DECODER_KINDS, LOGIT_KINDS, Features, Tap


class _Params(TypedDict):
    point: Literal["block_input", "decoder_tokens"]
    block: StrictInt
    dtype: Literal["int8", "bf16"]
    num_tokens: Annotated[StrictInt, Field(gt=0)]
    shown: dict[str, Any]
    has_mask_token: StrictBool


class TokenTargets(Targets):
    """Tokens (N, D) of one point, as int8 with a scale per token or as bfloat16.

    ``params``: "point" ("block_input" or "decoder_tokens") and "block" are the tap that is stored,
    "dtype" how its tokens are coded, "num_tokens" how many there are, "shown" what of a view the
    teacher saw (``Method.shown_to_teacher``), "has_mask_token" whether it has its own.
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
        self.encoder = build_part(teacher.architecture, weights) if weights else None
        """What goes on from the tokens; None where they are all that can be asked for."""

    @classmethod
    def plan(cls, options: StoreOptions, method: Method, teacher: Teacher) -> "TokenTargets":
        """See ``Targets.plan``: the tokens of the one point that the method reads."""
        facts, encoder = teacher.facts, teacher.encoder
        tap = _point_read(method, facts)
        teacher.check(method)
        has_mask_token = encoder.mask_token is not None
        shown = _shown(method, has_mask_token)
        is_dropping = shown.get("masking") == "drop"
        num_patches = facts.grid[0] * facts.grid[1]
        if tap.kind in DECODER_KINDS:  # which has a token in every place
            weights: dict[str, Tensor] = {}
            num_prefix_tokens = int(facts.has_cls_token)
        else:
            weights = encoder.weights_from(tap.block, is_dropping=is_dropping)
            num_prefix_tokens = facts.num_prefix_tokens
            if is_dropping:
                num_patches = count_kept(shown["num_units"], shown["mask_ratio"])
        params = {
            "point": tap.kind,
            "block": tap.block,
            "dtype": options.token_dtype,
            "num_tokens": num_prefix_tokens + num_patches,
            "shown": shown,
            "has_mask_token": has_mask_token,
        }
        return cls(params, facts, weights).to(teacher.device)

    @classmethod
    def from_store(
        cls, params: dict[str, Any], teacher: EncoderFacts, weights: dict[str, Tensor]
    ) -> "TokenTargets":
        """See ``Targets.from_store``: of the teacher only the block, if any, is in memory."""
        values: _Params = fit_said(params, _Params)
        is_decoded = values["point"] in DECODER_KINDS
        depth = teacher.decoder_depth if is_decoded else teacher.depth
        if not 0 <= values["block"] < depth:
            raise not_possible(f"its tokens are of block {values['block']} of {depth}")
        targets = cls(dict(values), teacher, weights)
        encoder, wanted = targets.encoder, set[str]()
        if not is_decoded and encoder is not None:
            is_dropping = values["shown"].get("masking") == "drop"
            wanted = set(encoder.weights_from(values["block"], is_dropping=is_dropping))
        if is_decoded != (encoder is None) or wanted != weights.keys():
            raise not_possible("its weights are not those of the block that its tokens enter")
        return targets

    @property
    def params(self) -> dict[str, Any]:
        """See the class."""
        return self._params

    @property
    def weights(self) -> dict[str, Tensor]:
        """The teacher's block and what it needs besides, in the types in which it computes; none of
        a decoder's tokens."""
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
        """The tokens of the point alone: a live teacher then stops there."""
        return (self.tap,)

    def encode(self, features: Features) -> dict[str, Tensor]:
        """See ``Targets.encode``. Raises NotFiniteError for tokens that can't be coded."""
        tokens = features.taps[self.tap]
        if not tokens.abs().amax() <= LARGEST:  # nor of NaN
            raise NotFiniteError(
                f"The teacher's tokens {_place(self.tap)} are not finite, or beyond "
                f"{LARGEST:g}; set teacher.precision fp32, or choose another block."
            )
        if self._params["dtype"] == "bf16":
            return {"tokens": encode_bf16(tokens)}
        names = ("tokens", "scales", "shift", "spread")
        return dict(zip(names, encode_int8(tokens), strict=True))

    def decode(self, arrays: dict[str, Tensor], taps: tuple[Tap, ...]) -> Features:
        """See ``Targets.decode``: under the teacher's autocast a block goes on as it did."""
        if self._params["dtype"] == "bf16":
            tokens = decode_bf16(arrays["tokens"])
        else:
            tokens = decode_int8(*(arrays[name] for name in self.arrays))
        if self.encoder is None:
            facts = self._facts
            return Features(None, facts.num_prefix_tokens, facts.grid, dict.fromkeys(taps, tokens))
        return self.encoder.continue_from(self.tap.block, tokens, taps)

    def distance(self, stored: dict[str, Tensor], fresh: dict[str, Tensor]) -> Tensor:
        """The relative error |a - b| / |a| over all tokens of a view."""
        first, second = (
            self.decode(arrays, self.taps).taps[self.tap].float().flatten(1)
            for arrays in (stored, fresh)
        )
        return (first - second).norm(dim=1) / first.norm(dim=1).clamp(min=1e-12)

    def check(self, method: Method) -> None:
        """See ``Targets.check``: the same point, and the same patches shown to the teacher."""
        tap = _point_read(method, self._facts)
        if tap != self.tap:
            raise UserError(
                f"{_name(method)} reads {_block(tap)} of the teacher and the store has the tokens "
                f"{_place(self.tap)}; set that block, or store targets for this method."
            )
        shown = _shown(method, self._params["has_mask_token"])
        if shown != self._params["shown"]:
            raise UserError(
                f"{_name(method)} shows the teacher {_in_words(shown)} and the store is of one "
                f"that saw {_in_words(self._params['shown'])}; set the same mask, or store targets "
                "for this method."
            )
        if self.encoder is None:
            check_offered(self._facts, (self.tap.kind,), method.teacher_taps, "teacher")
        else:
            check_taps(self.encoder, method.teacher_taps, "teacher")

    def to(self, device: torch.device) -> "TokenTargets":
        if self.encoder is None:
            return self
        self._weights = {name: value.to(device) for name, value in self._weights.items()}
        fill_part(self.encoder, self._weights)
        # The matrices are of the type in which the teacher computes, all else is float32.
        types = {value.dtype for value in self._weights.values() if value.is_floating_point()}
        lower = types & {torch.bfloat16, torch.float16}
        choose_attention(self.encoder, device, lower.pop() if lower else torch.float32)
        return self


def _point_read(method: Method, teacher: EncoderFacts) -> Tap:
    """The one point from which all that a method reads of its teacher follows, its block from 0.

    Raises UserError unless there is one.
    """
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
    points = {_point_of(tap, teacher) for tap in method.teacher_taps}
    if len({point.kind for point in points}) > 1:
        raise UserError(
            f"{_name(method)} reads both the teacher's decoder and its encoder, and the tokens of "
            "one point are stored; let it read the decoder alone, or train with a live teacher."
        )
    if len(points) > 1:
        blocks = ", ".join(str(block) for block in sorted(point.block for point in points))
        raise UserError(
            f"{_name(method)} reads blocks {blocks} of the teacher, and the tokens of one are "
            "stored; let it read one, or train with a live teacher."
        )
    return points.pop()


def _point_of(tap: Tap, teacher: EncoderFacts) -> Tap:
    """The stored point that a tap follows from; that there is such a tap is checked elsewhere."""
    if tap.kind in DECODER_KINDS:
        depth = teacher.decoder_depth
        return Tap(tap.kind, tap.block % depth if -depth <= tap.block < depth else tap.block)
    block = teacher.depth - 1 if tap.kind == "output" else tap.block % teacher.depth
    return Tap("block_input", block)


def _place(point: Tap) -> str:
    place = "after" if point.kind in DECODER_KINDS else "before"
    return f"{place} {_block(point)}"


def _block(point: Tap) -> str:
    return f"block {point.block}{' of the decoder' if point.kind in DECODER_KINDS else ''}"


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
