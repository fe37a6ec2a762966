"""Teachers as users write them: functions that return an Encoder."""

import timm
import torch

from limbeck.models.encoder import Encoder, EncoderFacts
from limbeck.records import Features
from tests.fakes import FakeEncoder


class Convnet(Encoder):
    """A convolutional classifier of three classes: no blocks, no heads, no tokens."""

    def __init__(self, img_size=64):
        super().__init__()
        self.model = timm.create_model("test_resnet", num_classes=3)
        self.facts = EncoderFacts(
            embed_dim=self.model.num_features,
            depth=0,
            num_heads=(),
            num_prefix_tokens=0,
            has_cls_token=False,
            patch_size=32,
            img_size=(img_size, img_size),
            mean=(0.5, 0.5, 0.5),
            std=(0.5, 0.5, 0.5),
            num_classes=3,
            architecture={"kind": "convnet"},
            origin={},
        )

    def forward(self, images, ids_keep=None, taps=(), mask_token=None):
        logits = self.model((images - 0.5) / 0.5)
        return Features(None, 0, self.facts.grid, dict.fromkeys(taps, logits))

    def offered_taps(self):
        return ("logits",)

    def layer_id(self, parameter_name):
        return 0

    def set_num_heads(self, block, num_heads):
        raise NotImplementedError


def convnet(**overrides):
    """With random weights."""
    torch.manual_seed(0)
    return Convnet(**overrides)


def _of(origin, **overrides):
    encoder = FakeEncoder(**overrides)
    encoder._facts["origin"] = origin
    return encoder


def nameless(img_size=None):
    """It says nothing of itself."""
    return _of({})


def unknown(img_size=None):
    """Likewise, with other weights."""
    return _of({}, seed=1)


def named():
    """It names its classes."""
    return _of({"classes": ["blue", "green", "red"]})


SEED = 0


def seeded(**_):
    """A classifier whose weights follow from SEED."""
    with torch.random.fork_rng():
        torch.manual_seed(SEED)
        return Convnet()
