"""Distillation methods.

A new one is its file here, its options (a class in ``options/``), and two lines here: its class,
and the section of its options. This is plain data, so that a command line is checked before torch
is imported.
"""

from limbeck import config  # not its ``options`` alone: this package has a module of that name
from limbeck.methods import options as of

METHODS: dict[str, str] = {
    "relation": "limbeck.methods.relation:Relation",
    "feature": "limbeck.methods.feature:Feature",
    "cls-token": "limbeck.methods.cls_token:ClsToken",
    "cls-patch": "limbeck.methods.cls_patch:ClsPatch",
    "output-similarity": "limbeck.methods.output_similarity:OutputSimilarity",
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

BOX_METHODS: dict[str, str] = {
    "feature-richness": "limbeck.methods.boxes:FeatureRichness",
    "dense-answers": "limbeck.methods.boxes:DenseAnswers",
}
"""Likewise where it is detection."""


@config.options
class PerBoxMethodOptions:
    """One section per built-in method of detection, named as in ``PerMethodOptions``."""

    feature_richness: of.FeatureRichnessOptions = of.FeatureRichnessOptions()
    dense_answers: of.DenseAnswersOptions = of.DenseAnswersOptions()


@config.options
class PerMapMethodOptions:
    """One section per built-in method of segmentation, named as in ``PerMethodOptions``."""

    channel_wise: of.ChannelWiseOptions = of.ChannelWiseOptions()
    pixel_kl: of.PixelKlOptions = of.PixelKlOptions()


@config.options
class PerTaskMethodOptions:
    """One section per built-in method of fine-tuning, named as in ``PerMethodOptions``."""

    logit: of.LogitOptions = of.LogitOptions()
    nkd: of.NkdOptions = of.NkdOptions()


@config.options
class PerMethodOptions:
    """One section per built-in method: the field is the method's name with "_" for "-"."""

    relation: of.RelationOptions = of.RelationOptions()
    feature: of.FeatureOptions = of.FeatureOptions()
    cls_token: of.ClsTokenOptions = of.ClsTokenOptions()
    cls_patch: of.ClsPatchOptions = of.ClsPatchOptions()
    output_similarity: of.OutputSimilarityOptions = of.OutputSimilarityOptions()
    attention_map: of.AttentionMapOptions = of.AttentionMapOptions()
    decoder_feature: of.DecoderFeatureOptions = of.DecoderFeatureOptions()
    masked_pixel: of.MaskedPixelOptions = of.MaskedPixelOptions()
    simmim: of.SimMimOptions = of.SimMimOptions()
    moco_v3: of.MocoV3Options = of.MocoV3Options()
    dino: of.DinoOptions = of.DinoOptions()
    sparse_logit: of.SparseLogitOptions = of.SparseLogitOptions()
