"""Any classifier of timm as a teacher of logits: a convolutional network, say.

DeiT's teacher is one (arXiv 2012.12877: RegNetY-16GF). Nothing but its logits is known of it.
"""

from typing import Any

import torch
from torch import Tensor, nn

from limbeck.errors import UserError
from limbeck.models.encoder import Encoder, EncoderFacts, check_taps
from limbeck.records import Features, Tap

KIND = "timm-classifier"


class ClassifierEncoder(Encoder):
    """A timm classifier behind the Encoder contract, without blocks; ``model`` is timm's module.

    It normalises images in 0..1 with ``mean`` and ``std`` (3 values each) and takes them in
    ``img_size`` (H, W). ``name`` and ``kwargs`` are those of ``timm.create_model``. Raises
    UserError for a model without a classifier.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        name: str,
        kwargs: dict[str, Any],
        origin: dict[str, Any],
        img_size: tuple[int, int],
        mean: tuple[float, float, float],
        std: tuple[float, float, float],
    ) -> None:
        super().__init__()
        if not model.num_classes:
            raise UserError(
                f"'{name}' has no classifier, and it is no vision Transformer whose inner tensors "
                "are known; choose another teacher."
            )
        self.model = model
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)
        self.facts = EncoderFacts(
            embed_dim=model.num_features,
            depth=0,
            num_heads=(),
            num_prefix_tokens=0,
            has_cls_token=False,
            patch_size=img_size[0],  # it has no patches
            img_size=img_size,
            mean=mean,
            std=std,
            num_classes=model.num_classes,
            architecture={
                "kind": KIND,
                "name": name,
                "kwargs": kwargs,
                "num_heads": [],
                "mean": list(mean),
                "std": list(std),
            },
            origin=origin,
            can_drop=False,
        )

    def forward(
        self,
        images: Tensor,
        ids_keep: Tensor | None = None,
        taps: tuple[Tap, ...] = (),
        mask_token: Tensor | None = None,
    ) -> Features:
        """See ``Encoder.forward``; there are no tokens, and Tap("logits") is the one tap."""
        check_taps(self, taps, "teacher")
        if ids_keep is not None or mask_token is not None:
            raise UserError(
                f"{self.facts.architecture['name']} has no patches that could be dropped or masked."
            )
        x = ((images - self.mean) / self.std).to(self.mean.dtype)
        logits = self._classify(self.model.forward_features(x))  # [B, C]
        return Features(None, 0, self.facts.grid, dict.fromkeys(taps, logits))

    def _classify(self, features: Tensor) -> Tensor:
        classifier = self.model.get_classifier()
        if not isinstance(classifier, nn.Linear):  # some have convolutions, or norms with it
            return self.model.forward_head(features)
        x = self.model.forward_head(features, pre_logits=True)
        # In bfloat16 the likeliest classes may tie, and the first would win.
        with torch.autocast(x.device.type, enabled=False):
            return classifier(x.to(classifier.weight.dtype))

    def offered_taps(self) -> tuple[str, ...]:
        """Only the logits."""
        return ("logits",)

    def layer_id(self, parameter_name: str) -> int:
        """1 for the classifier, 0 for all before it."""
        classifier = self.model.get_classifier()
        own = self.get_parameter(parameter_name)
        is_linear = isinstance(classifier, nn.Linear)
        return int(is_linear and any(own is parameter for parameter in classifier.parameters()))

    def set_num_heads(self, block: int, num_heads: int) -> None:
        """Raises UserError: there are no blocks."""
        raise UserError(
            f"{self.facts.architecture['name']} has no blocks whose heads could be set."
        )
