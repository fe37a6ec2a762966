"""Distillation methods.

A new one is its file here, its options (a class in ``options/``), and two lines here: its class,
and the section of its options. This is plain data, so that a command line is checked before torch
is imported.
"""

from limbeck import config  # not its ``options`` alone: this package has a module of that name
from limbeck.methods.options import (
    AttentionMapOptions,
    ChannelWiseOptions,
    ClsTokenOptions,
    DecoderFeatureOptions,
    DinoOptions,
    FeatureOptions,
    LogitOptions,
    MaskedPixelOptions,
    MocoV3Options,
    NkdOptions,
    PixelKlOptions,
    RelationOptions,
    SimMimOptions,
    SparseLogitOptions,
)

METHODS: dict[str, str] = {
    "relation": "limbeck.methods.relation:Relation",
    "feature": "limbeck.methods.feature:Feature",
    "cls-token": "limbeck.methods.cls_token:ClsToken",
    "attention-map": "limbeck.methods.attention_map:AttentionMap",
    "decoder-feature": "limbeck.methods.decoder_feature:DecoderFeature",
    "masked-pixel": "limbeck.methods.masked_pixel:MaskedPixel",
    "simmim": "limbeck.methods.simmim:SimMim",
    "moco-v3": "limbeck.methods.moco_v3:MocoV3",
    "dino": "limbeck.methods.dino:Dino",
    "sparse-logit": "limbeck.methods.sparse_logit:SparseLogit",
}
"""Name on the command line -> "module:Class"."""

TASK_METHODS: dict[str, str] = {
    "logit": "limbeck.methods.logit:Logit",
    "nkd": "limbeck.methods.nkd:Nkd",
}
"""Likewise the methods by which a teacher helps in fine-tuning, beside a task's own loss."""


MAP_METHODS: dict[str, str] = {
    "channel-wise": "limbeck.methods.maps:ChannelWise",
    "pixel-kl": "limbeck.methods.maps:PixelKl",
}
"""Likewise where the task is segmentation."""


@config.options
class PerMapMethodOptions:
    """One section per built-in method of segmentation, named as in ``PerMethodOptions``."""

    channel_wise: ChannelWiseOptions = ChannelWiseOptions()
    pixel_kl: PixelKlOptions = PixelKlOptions()


@config.options
class PerTaskMethodOptions:
    """One section per built-in method of fine-tuning, named as in ``PerMethodOptions``."""

    logit: LogitOptions = LogitOptions()
    nkd: NkdOptions = NkdOptions()


@config.options
class PerMethodOptions:
    """One section per built-in method: the field is the method's name with "_" for "-"."""

    relation: RelationOptions = RelationOptions()
    feature: FeatureOptions = FeatureOptions()
    cls_token: ClsTokenOptions = ClsTokenOptions()
    attention_map: AttentionMapOptions = AttentionMapOptions()
    decoder_feature: DecoderFeatureOptions = DecoderFeatureOptions()
    masked_pixel: MaskedPixelOptions = MaskedPixelOptions()
    simmim: SimMimOptions = SimMimOptions()
    moco_v3: MocoV3Options = MocoV3Options()
    dino: DinoOptions = DinoOptions()
    sparse_logit: SparseLogitOptions = SparseLogitOptions()
