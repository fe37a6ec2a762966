"""What all of timm's Transformers have in common behind the Encoder contract.

The modules and the parameter names stay timm's, so weights move in both directions unmapped. What
timm lacks is done here: the inner tensors of a block as taps, and an early stop after the last
block that is needed. A family (plain, Hiera, Swin) says how its tokens enter, how its blocks are
made of branches, and in which order its tokens lie.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from limbeck.errors import UserError
from limbeck.models.attention import BlockContext, Qkv
from limbeck.models.encoder import Encoder, EncoderFacts, check_taps
from limbeck.records import HEAD_KINDS, LOGIT_KINDS, Features, Tap

TOKEN_KINDS = (
    *("block_input", "attention_input", "attention_output"),
    *("attention_tokens", "mlp_output", "tokens"),
)
"""The kinds of tap of a block that have no axis of heads."""
BEFORE_BLOCK = ("block_input", "attention_input")
"""Those of them that have the width and the grid of what enters the block."""
_ENDS = ("output", *LOGIT_KINDS)


class TimmEncoder(Encoder, ABC):
    """A Transformer of timm behind the Encoder contract; ``model`` is timm's own module.

    ``architecture`` is plain data: ``{"kind": "timm", "name": ..., "kwargs": {...}}``, enough for
    ``timm.create_model(name, **kwargs)``, and "mean" and "std" (3 values each), which normalise
    images in 0..1. Raises UserError for a module, block or attention class that is not supported.
    """

    mean: Tensor
    std: Tensor
    before_blocks: ClassVar[tuple[str, ...]]
    after_blocks: ClassVar[tuple[str, ...]]
    """First names of the parameters that come before and after all blocks."""
    heads_name: ClassVar[str] = "num_heads"
    """What an attention module calls its head count."""

    def __init__(
        self, model: nn.Module, *, architecture: dict[str, Any], origin: dict[str, Any]
    ) -> None:
        super().__init__()
        self.check_supported(model, architecture["name"])
        self.model = model
        self.facts = self.read_facts(architecture, origin)
        # Not persistent: they belong to the architecture, and the weights' names stay timm's.
        for name in ("mean", "std"):
            value = torch.tensor(architecture[name]).view(3, 1, 1)
            self.register_buffer(name, value, persistent=False)

    # --- What a family says of itself ------------------------------------------------------------

    @staticmethod
    @abstractmethod
    def check_supported(model: nn.Module, name: str) -> None:
        """Raise UserError for a model, block or attention that this family can't look into."""

    @property
    def blocks(self) -> Sequence[nn.Module]:
        """All blocks in order."""
        return self.model.blocks

    @abstractmethod
    def _own_facts(self, architecture: dict[str, Any]) -> dict[str, Any]:
        """What of the facts the family knows: "img_size" and "num_heads" at least."""

    @abstractmethod
    def _enter(
        self, images: Tensor, ids_keep: Tensor | None, mask_token: Tensor | None
    ) -> tuple[Tensor, list[BlockContext]]:
        """From normalised images to what enters the first block, and each block's context."""

    @abstractmethod
    def _read_attention(
        self, index: int, x: Tensor, context: BlockContext, is_dropping: bool
    ) -> Qkv:
        """Queries, keys, values (B, nh, N, hd) for the input of a block, in the contract's order.

        They are those after query and key norm and rotary position, before the scale.
        """

    @abstractmethod
    def _attention_branch(self, block: nn.Module, x: Tensor, context: BlockContext) -> Tensor:
        """What the attention adds, before drop path."""

    @abstractmethod
    def _mlp_branch(self, block: nn.Module, x: Tensor) -> Tensor:
        """What the MLP adds to the residual stream, before drop path."""

    def _attention_input(self, block: nn.Module, x: Tensor) -> Tensor:
        """What the attention reads of the block's input."""
        return block.norm1(x)

    def _add_position_bias(
        self, attn: nn.Module, q: Tensor, scores: Tensor, context: BlockContext
    ) -> Tensor:
        """What enters the softmax: scores (B, nh, N, N) of queries, and relative positions."""
        return scores

    def _finish(self, x: Tensor) -> Tensor:
        """The final norm after the last block, where tokens have one."""
        return x

    def _per_head_weights(self, attn: nn.Module) -> str:
        """What ties the attention to its head count, in words; '' if nothing does."""
        return ""

    def _block_of(self, name: str) -> int | None:
        """The block of a parameter of timm's name; None outside of all blocks."""
        first, _, rest = name.partition(".")
        return int(rest.partition(".")[0]) if first == "blocks" else None

    def _between(self, index: int, x: Tensor) -> Tensor:
        """What comes before block ``index`` and after the one before: nothing."""
        return x

    def _shortcut(self, block: nn.Module, x: Tensor) -> Tensor:
        """The residual stream to which the attention is added: the block's input."""
        return x

    def _before_mlp(self, block: nn.Module, x: Tensor) -> Tensor:
        """The residual stream after the attention as the MLP finds it: unchanged."""
        return x

    def _in_rows(self, x: Tensor, index: int, is_dropping: bool) -> Tensor:
        """Tokens as they lie after block ``index`` in the contract's order (B, N, D): as is."""
        return x

    def _classify(self, x: Tensor) -> dict[str, Tensor]:
        """Logits (B, C) by kind of tap, of what ``_finish`` gives."""
        return {"logits": self.model.forward_head(x)}

    # --- The contract ----------------------------------------------------------------------------

    def read_facts(self, architecture: dict[str, Any], origin: dict[str, Any]) -> EncoderFacts:
        """The facts of ``model``; what timm's name stands for is stated in the architecture."""
        own = {
            "embed_dim": self.model.num_features,
            "num_prefix_tokens": 0,
            "has_cls_token": False,
            **self._own_facts(architecture),
        }
        stated = architecture | {
            "kwargs": architecture["kwargs"] | {"img_size": list(own["img_size"])},
            "num_heads": list(own["num_heads"]),
            "mean": list(architecture["mean"]),
            "std": list(architecture["std"]),
        }
        return EncoderFacts(
            depth=len(self.blocks),
            mean=tuple(architecture["mean"]),
            std=tuple(architecture["std"]),
            num_classes=self.model.num_classes,
            architecture=stated,
            origin=origin,
            **own,
        )

    def forward(
        self,
        images: Tensor,
        ids_keep: Tensor | None = None,
        taps: tuple[Tap, ...] = (),
        mask_token: Tensor | None = None,
    ) -> Features:
        """See ``Encoder.forward``. Raises UserError for another image size than built for."""
        check_taps(self, taps, "encoder")
        x, contexts = self._enter(self._normalise(images), ids_keep, mask_token)
        is_dropping = ids_keep is not None and mask_token is None
        return self._run(x, contexts, taps, self.facts.grid, is_dropping)

    def _run(
        self,
        x: Tensor,
        contexts: list[BlockContext],
        taps: tuple[Tap, ...],
        grid: tuple[int, int],
        is_dropping: bool,
        first: int = 0,
    ) -> Features:
        """From the tokens before the block ``first`` to what is wanted."""
        depth = self.facts.depth
        wants_all = len(taps) == 0  # torch.compile can't trace "not taps"
        needs_end = wants_all or any(tap.kind in _ENDS for tap in taps)
        at_block: dict[int, list[Tap]] = {}
        for tap in taps:
            if tap.kind not in _ENDS:
                at_block.setdefault(tap.block % depth, []).append(tap)
        found: dict[Tap, Tensor] = {}
        last = depth - 1 if needs_end else max(at_block)
        for index in range(first, last + 1):
            x, context, here = self._between(index, x), contexts[index], at_block.get(index, [])
            of_heads = [tap for tap in here if tap.kind in HEAD_KINDS]
            if of_heads:
                found |= self._tap_attention(index, x, context, of_heads, is_dropping)
            kinds = {tap.kind for tap in here}
            goes_on = index < last or needs_end or "tokens" in kinds
            inside = self._run_block(self.blocks[index], x, context, kinds, goes_on)
            for tap in here:
                if tap.kind in TOKEN_KINDS:
                    lies_as = max(index - 1, 0) if tap.kind in BEFORE_BLOCK else index
                    found[tap] = self._in_rows(inside[tap.kind], lies_as, is_dropping)
            x = inside["tokens"]
        end = self._finish(x) if needs_end else None
        logit_taps = [tap for tap in taps if tap.kind in LOGIT_KINDS]
        if logit_taps:
            logits = self._read_logits(end)
            found |= {tap: logits[tap.kind] for tap in logit_taps}
        keeps_tokens = wants_all or any(tap.kind == "output" for tap in taps)
        tokens = self._in_rows(end, depth - 1, is_dropping) if keeps_tokens else None
        found |= {tap: tokens for tap in taps if tap.kind == "output"}
        return Features(
            tokens=tokens, num_prefix_tokens=self.facts.num_prefix_tokens, grid=grid, taps=found
        )

    def offered_taps(self) -> tuple[str, ...]:
        """All kinds; logits only with a classifier, and those of each head only with two."""
        kinds = (*HEAD_KINDS, *TOKEN_KINDS, "output")
        if not self.facts.num_classes:
            return kinds
        return (*kinds, *(LOGIT_KINDS if self.facts.has_dist_head else ("logits",)))

    def layer_id(self, parameter_name: str) -> int:
        """See ``Encoder.layer_id``; takes the encoder's parameter names and timm's bare ones."""
        name = parameter_name.removeprefix("model.")
        block = self._block_of(name)
        if block is not None:
            return block + 1
        first = name.partition(".")[0]
        if first in self.before_blocks:
            return 0
        if first in self.after_blocks:
            return self.facts.depth + 1
        raise ValueError(
            f"'{parameter_name}' is no parameter of {self.facts.architecture['name']}."
        )

    def set_num_heads(self, block: int, num_heads: int) -> None:
        """See ``Encoder.set_num_heads``; ``facts`` follow."""
        facts = self.facts
        where = f"Block {block} of {facts.architecture['name']}"
        if not -facts.depth <= block < facts.depth:
            raise UserError(f"{where} does not exist; it has {facts.depth} blocks.")
        own = facts.num_heads[block]
        if num_heads == own:
            return
        if not own:
            raise UserError(f"{where} has no attention; leave its heads out.")
        attn = self.blocks[block].attn
        width = attn.proj.in_features
        if num_heads < 1 or width % num_heads:
            fitting = [str(n) for n in range(1, width + 1) if width % n == 0 and width // n >= 8]
            raise UserError(
                f"{where} is {width} wide, which does not divide into {num_heads} heads; "
                f"choose an encoder with another width, or one of {', '.join(fitting)} heads."
            )
        per_head = self._per_head_weights(attn)
        if per_head:
            raise UserError(
                f"{where} can't be split into {num_heads} heads instead of {own}: it "
                f"has {per_head} for each head; choose an encoder without, or a method that keeps "
                "the head count."
            )
        setattr(attn, self.heads_name, num_heads)
        attn.head_dim = width // num_heads
        attn.scale = attn.head_dim**-0.5
        self.facts = self.read_facts(facts.architecture, facts.origin)

    def _tap_attention(
        self, index: int, x: Tensor, context: BlockContext, taps: list[Tap], is_dropping: bool
    ) -> dict[Tap, Tensor]:
        """The taps with an axis of heads for the input of a block."""
        q, k, v = self._read_attention(index, x, context, is_dropping)
        found = {"queries": q, "keys": k, "values": v}
        if any(tap.kind == "scores" for tap in taps):
            attn = self.blocks[index].attn
            # The scale goes on one factor first: in half precision the plain product can overflow.
            scores = (q * attn.scale) @ k.transpose(-2, -1)  # [B, nh, N, N]
            found["scores"] = self._add_position_bias(attn, q, scores, context)
        return {tap: found[tap.kind] for tap in taps}

    def _read_logits(self, x: Tensor) -> dict[str, Tensor]:
        classifier = self.model.get_classifier()
        first = classifier[0] if isinstance(classifier, tuple) else classifier
        # Not in autocast's bfloat16, where the likeliest classes may tie, and the first would win.
        with torch.autocast(x.device.type, enabled=False):
            return self._classify(x.to(first.weight.dtype))

    def _normalise(self, images: Tensor) -> Tensor:
        facts = self.facts
        if tuple(images.shape[1:]) != (3, *facts.img_size):
            raise UserError(
                f"{facts.architecture['name']} was built for images of 3 x {facts.img_size[0]} x "
                f"{facts.img_size[1]}, not {' x '.join(map(str, images.shape[1:]))}; resize the "
                f"images, or build it for another img_size."
            )
        # A model cast to half precision takes its input in it; under autocast nothing changes.
        return ((images - self.mean) / self.std).to(self.mean.dtype)

    def _run_block(
        self, block: nn.Module, x: Tensor, context: BlockContext, kinds: set[str], goes_on: bool
    ) -> dict[str, Tensor]:
        """The "tokens" after a block, and the ``kinds`` on the way; no further than needed."""
        found = {"block_input": x}
        if "attention_input" in kinds:
            found["attention_input"] = self._attention_input(block, x)
        if kinds & {"attention_output", "attention_tokens", "mlp_output"}:
            found["attention_output"] = self._attention_branch(block, x, context)
            x = self._shortcut(block, x) + block.drop_path1(found["attention_output"])
            found["attention_tokens"] = x
            if goes_on or "mlp_output" in kinds:
                x = self._before_mlp(block, x)
                found["mlp_output"] = self._mlp_branch(block, x)
                x = x + block.drop_path2(found["mlp_output"])
        elif goes_on:
            x = block(x, **context)
        return found | {"tokens": x}


class StagedEncoder(TimmEncoder):
    """A Transformer of stages whose blocks attend within windows of tokens in rows and columns.

    timm merges tokens at the start of a stage, the published code at the end of the one before.
    Here what enters a block is merged already, but the merging's parameters are of the layer of the
    block before, as published, which matters to layer decay. Patches can't be left out.
    """

    stages_name: ClassVar[str]

    @property
    def stages(self) -> Sequence[nn.Module]:
        """All stages in order."""
        return getattr(self.model, self.stages_name)

    @property
    def blocks(self) -> Sequence[nn.Module]:
        """All blocks in order, those without attention too."""
        return [block for stage in self.stages for block in stage.blocks]

    def _with_stages(self, own: dict[str, Any]) -> dict[str, Any]:
        """A family's own facts with those of all encoders of stages."""
        dims, strides = own["block_dims"], own["block_strides"]
        merged = {"patch_size": strides[-1], "input_dims": dims, "input_strides": strides}
        return own | merged | {"can_drop": False, "has_position_bias": True}

    def _between(self, index: int, x: Tensor) -> Tensor:
        first = 0
        for stage in self.stages:
            if first == index and index > 0:
                return self._merge(stage, x)
            first += len(stage.blocks)
        return x

    def _masked_by(self, mask_token: Tensor | None) -> Tensor:
        """The mask token, without which patches would have to be dropped."""
        if mask_token is None:
            raise UserError(
                f"{self.facts.architecture['name']} has windows of the full grid, so patches can't "
                "be dropped; hide them by a mask token (method simmim) or show it the whole image."
            )
        return mask_token

    @abstractmethod
    def _merge(self, stage: nn.Module, x: Tensor) -> Tensor:
        """The tokens with which a stage begins."""

    def _in_rows(self, x: Tensor, index: int, is_dropping: bool) -> Tensor:
        return x.flatten(1, 2)

    def _block_of(self, name: str) -> int | None:
        parts = name.split(".")
        if parts[0] != self.stages_name:
            return None
        before = sum(len(stage.blocks) for stage in self.stages[: int(parts[1])])
        return before + int(parts[3]) if parts[2] == "blocks" else before - 1


def indivisible(name: str, img_size: Sequence[int], multiple: int) -> UserError:
    """The error for images that the last tokens of an encoder do not cut without a rest."""
    return UserError(
        f"Images of {img_size[0]} x {img_size[1]} pixels do not divide into the last tokens of "
        f"{name}; choose an img_size that is a multiple of {multiple}."
    )


def check_class(module: nn.Module, table: dict[type, Any], name: str, what: str) -> None:
    """Raise UserError, with those that are, for a class that is not supported."""
    if type(module) not in table:
        supported = ", ".join(f"{kind.__module__}.{kind.__name__}" for kind in table)
        raise UserError(
            f"'{name}' has {what} {type(module).__module__}.{type(module).__name__}, which is not "
            f"supported; choose one of {supported}."
        )
