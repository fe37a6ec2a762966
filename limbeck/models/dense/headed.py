"""What networks for dense tasks have in common: heads on a backbone, and both are one encoder."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Self

from torch import Tensor, nn

from limbeck.errors import UserError
from limbeck.models.encoder import Encoder, EncoderFacts, check_taps
from limbeck.models.timm_encoder import TimmEncoder
from limbeck.records import LOGIT_KINDS, Features, Tap


class Headed(Encoder):
    """A backbone whose blocks are its own, and heads: all that is not the backbone.

    ``reads`` are the backbone's tokens that they read, ``own_kinds`` the taps that come of them. A
    frozen backbone stays in evaluation mode.
    """

    backbone: TimmEncoder
    reads: tuple[Tap, ...]
    own_kinds: tuple[str, ...]

    def __init__(self, backbone: TimmEncoder) -> None:
        super().__init__()
        self.backbone = backbone
        self.is_frozen = False

    def state_facts(
        self, kind: str, name: str, parts: dict[str, Any], origin: dict[str, Any], **own: Any
    ) -> EncoderFacts:
        """The facts of such a network: the backbone's, but for what is its ``own``.

        It is rebuilt from ``parts``, of which it adds the backbone's architecture itself.
        """
        facts = self.backbone.facts
        return replace(
            facts,
            has_dist_head=False,
            can_drop=False,
            origin=origin,
            architecture={
                "kind": kind,
                "name": name,
                "kwargs": {**parts, "backbone": facts.architecture},
                "num_heads": list(facts.num_heads),
                "mean": list(facts.mean),
                "std": list(facts.std),
            },
            **own,
        )

    @property
    def model(self) -> nn.Module:
        """What is saved of it: all of it."""
        return self

    @property
    def blocks(self) -> Sequence[nn.Module]:
        """The backbone's blocks."""
        return self.backbone.blocks

    @abstractmethod
    def read_maps(self, features: Features, taps: Sequence[Tap]) -> dict[Tap, Tensor]:
        """These taps of ``own_kinds``, of the backbone's features that have ``reads``."""

    def forward(
        self,
        images: Tensor,
        ids_keep: Tensor | None = None,
        taps: tuple[Tap, ...] = (),
        mask_token: Tensor | None = None,
    ) -> Features:
        """See ``Encoder.forward``. Raises UserError where patches are dropped or masked."""
        check_taps(self, taps, "encoder")
        if ids_keep is not None or mask_token is not None:
            raise UserError(
                f"A {self.facts.architecture['kind']} sees whole images; leave masking out."
            )
        own = [tap for tap in taps if tap.kind in self.own_kinds]
        inner = tuple(tap for tap in taps if tap.kind not in self.own_kinds)
        asked = tuple(dict.fromkeys((*self.reads, *inner))) if own else inner
        features = self.backbone(images, None, asked)
        found = {tap: features.taps[tap] for tap in inner}
        if own:
            found |= self.read_maps(features, own)
        return replace(features, taps=found)

    def token_maps(self, features: Features) -> list[Tensor]:
        """What ``reads`` has of the backbone, without prefix tokens: maps (B, D, h, w)."""
        facts, maps = self.backbone.facts, []
        for tap in self.reads:
            patches = features.taps[tap][:, facts.num_prefix_tokens :].mT  # [B, D, L]
            maps.append(patches.unflatten(2, facts.grid_of(facts.tap_stride(tap))))
        return maps

    def offered_taps(self) -> tuple[str, ...]:
        """The backbone's kinds of its blocks, and those of maps."""
        ends = ("output", *LOGIT_KINDS)
        inner = [kind for kind in self.backbone.offered_taps() if kind not in ends]
        return (*inner, *self.own_kinds)

    def drop_end(self, kept: tuple[str, ...] = ()) -> None:
        """Leave out what of the backbone no map depends on: the final norm and classifiers."""
        for name in self.backbone.after_blocks:
            module = getattr(self.backbone.model, name, None)
            if isinstance(module, nn.Module) and name not in kept:
                setattr(self.backbone.model, name, nn.Identity())

    def freeze_backbone(self) -> None:
        """From now on the backbone is not trained, nor in training mode."""
        self.is_frozen = True
        self.backbone.eval().requires_grad_(False)

    def train(self, mode: bool = True) -> Self:
        """See ``nn.Module.train``; a frozen backbone stays in evaluation mode."""
        super().train(mode)
        if self.is_frozen:
            self.backbone.eval()
        return self

    def layer_id(self, parameter_name: str) -> int:
        """See ``Encoder.layer_id``; neck and heads come after all blocks."""
        name = parameter_name.removeprefix("model.")
        first, _, rest = name.partition(".")
        if first == "backbone":
            return self.backbone.layer_id(rest)
        if first in dict(self.named_children()):
            return self.facts.depth + 1
        raise ValueError(
            f"'{parameter_name}' is no parameter of {self.facts.architecture['name']}."
        )

    def set_num_heads(self, block: int, num_heads: int) -> None:
        """See ``Encoder.set_num_heads``."""
        self.backbone.set_num_heads(block, num_heads)
        inner = self.backbone.facts
        kwargs = self.facts.architecture["kwargs"] | {"backbone": inner.architecture}
        counts = {"num_heads": list(inner.num_heads)}
        architecture = self.facts.architecture | counts | {"kwargs": kwargs}
        self.facts = replace(self.facts, num_heads=inner.num_heads, architecture=architecture)
