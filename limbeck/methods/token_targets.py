"""Stored token states: what enters a block of the teacher, from which follows all that it does.

Stored answers in the place of a teacher are TinyViT's idea (arXiv 2207.10666), which stores class
probabilities. The tokens before a block and this block's weights give its queries, keys, values,
scores and features, so that relations (TinyMIM, arXiv 2301.01296), attention scores (MAE-Lite,
arXiv 2205.14443) and features are learnt without the rest of the teacher. Of masked methods only
the tokens are stored that the teacher computes: the mask follows from the view's seed.
"""

from typing import Any

import torch
from torch import Tensor

from limbeck.data.options import StoreOptions
from limbeck.data.target_store import ArraySpec
from limbeck.errors import NotFiniteError, UserError
from limbeck.methods.method import Method
from limbeck.methods.targets import Targets
from limbeck.methods.teacher import DTYPES, Teacher, autocast
from limbeck.models.attention import choose_attention
from limbeck.models.encoder import EncoderFacts, check_taps
from limbeck.models.part import build_part, fill_part
from limbeck.ops.masking import count_kept
from limbeck.ops.token_codes import (
    channel_moments,
    decode_bf16,
    decode_int8,
    encode_bf16,
    encode_int8,
)
from limbeck.records import LOGIT_KINDS, Features, Tap

OF_TEACHER = "teacher."
"""Before the names of the teacher's own weights."""


class TokenTargets(Targets):
    """Tokens (N, D) that enter a block, as int8 with a scale per token or as bfloat16.

    ``params``: "point" and "block" say which tokens, "dtype" how they are coded, "num_tokens" how
    many there are, "shown" what of a view the teacher saw (``Method.shown_to_teacher``),
    "has_mask_token" whether it has its own, "precision" in which it computes: the block goes on in
    the same, whatever the student's.
    """

    kind = "tokens"
    options = ("token_dtype",)

    def __init__(
        self, params: dict[str, Any], teacher: EncoderFacts, weights: dict[str, Tensor]
    ) -> None:
        self._params, self._facts, self._weights = params, teacher, weights
        self.tap = Tap(params["point"], params["block"])
        self.encoder = build_part(teacher.architecture, self._of_teacher())

    @classmethod
    def plan(cls, options: StoreOptions, method: Method, teacher: Teacher) -> "TokenTargets":
        """See ``Targets.plan``: the tokens before the one block that the method reads."""
        facts, encoder = teacher.facts, teacher.encoder
        block = _block_read(method, facts)
        teacher.check(method)
        if any(module.training for module in encoder.modules()):
            raise UserError(
                "A teacher with drop path says something else each time, so that its tokens can't "
                "be stored; leave teacher.drop_path_rate out."
            )
        has_mask_token = encoder.mask_token is not None
        shown = _shown(method, has_mask_token)
        is_dropping = shown.get("masking") == "drop"
        weights = encoder.weights_from(block, is_dropping=is_dropping)
        weights = {f"{OF_TEACHER}{name}": value for name, value in weights.items()}
        tap = Tap("block_input", block)
        if options.token_dtype == "int8":
            tokens = teacher(_generated_images(facts.img_size).to(teacher.device), None, (tap,))
            weights["shift"], weights["spread"] = channel_moments(tokens.taps[tap])
        num_patches = facts.grid[0] * facts.grid[1]
        if is_dropping:
            num_patches = count_kept(shown["num_units"], shown["mask_ratio"])
        params = {
            "point": tap.kind,
            "block": block,
            "dtype": options.token_dtype,
            "num_tokens": facts.num_prefix_tokens + num_patches,
            "shown": shown,
            "has_mask_token": has_mask_token,
            "precision": teacher.precision,
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
        """The block, what it needs besides, and of int8 the shift and spread of each channel."""
        return {name: value.cpu().contiguous() for name, value in self._weights.items()}

    @property
    def arrays(self) -> dict[str, ArraySpec]:
        """Bytes of a view: num_tokens * (D + 2) of int8, num_tokens * 2 D of bfloat16."""
        num_tokens, width = self._params["num_tokens"], self._facts.tap_dim(self.tap)
        if self._params["dtype"] == "bf16":
            return {"tokens": ArraySpec((num_tokens, width), "int16")}
        return {
            "tokens": ArraySpec((num_tokens, width), "int8"),
            "scales": ArraySpec((num_tokens,), "float16"),
        }

    @property
    def taps(self) -> tuple[Tap, ...]:
        """The tokens before the block alone: a live teacher then stops there."""
        return (self.tap,)

    def encode(self, features: Features) -> dict[str, Tensor]:
        """See ``Targets.encode``. Raises NotFiniteError for infinite tokens."""
        tokens = features.taps[self.tap]
        if not tokens.isfinite().all():
            raise NotFiniteError(
                f"The teacher's tokens before block {self.tap.block} are not finite; set "
                "teacher.precision bf16 or fp32."
            )
        if self._params["dtype"] == "bf16":
            return {"tokens": encode_bf16(tokens)}
        codes, scales = encode_int8(tokens, self._weights["shift"], self._weights["spread"])
        return {"tokens": codes, "scales": scales}

    def decode(self, arrays: dict[str, Tensor], taps: tuple[Tap, ...]) -> Features:
        """See ``Targets.decode``: the block goes on as in the live teacher."""
        if self._params["dtype"] == "bf16":
            tokens = decode_bf16(arrays["tokens"])
        else:
            shift, spread = self._weights["shift"], self._weights["spread"]
            tokens = decode_int8(arrays["tokens"], arrays["scales"], shift, spread)
        with autocast(tokens.device, self._params["precision"]):
            return self.encoder.continue_from(self.tap.block, tokens, taps)

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
        fill_part(self.encoder, self._of_teacher())
        choose_attention(self.encoder, device, DTYPES[self._params["precision"]])
        return self

    def _of_teacher(self) -> dict[str, Tensor]:
        named = self._weights.items()
        return {n.removeprefix(OF_TEACHER): v for n, v in named if n.startswith(OF_TEACHER)}


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


def _generated_images(img_size: tuple[int, int]) -> Tensor:
    """Eight images (8, 3, H, W) in 0..1 of coloured patches of all sizes, always the same.

    Which channels of a network are large is told by them nearly as well as by photos, and a plan
    has none.
    """
    generator = torch.Generator().manual_seed(0)
    images = torch.zeros(8, 3, *img_size)
    for cells in (1, 4, 16, 64):
        coarse = torch.randn(8, 3, cells, cells, generator=generator)
        images += torch.nn.functional.interpolate(coarse, img_size, mode="bilinear")
    return images.sigmoid()
