# ruff: noqa: F401 - imported for others
"""Options of the methods, one class each, by subject (no torch here, see ``limbeck.config``)."""

from limbeck.methods.options.base import MethodOptions
from limbeck.methods.options.boxes import DenseAnswersOptions, FeatureRichnessOptions
from limbeck.methods.options.classifier import (
    ClassifierOptions,
    LogitOptions,
    NkdOptions,
    SparseLogitOptions,
)
from limbeck.methods.options.comparison import (
    AttentionMapOptions,
    ClsPatchOptions,
    ClsTokenOptions,
    ComparisonOptions,
    FeatureOptions,
    OutputSimilarityOptions,
    RelationOptions,
    TransferOptions,
)
from limbeck.methods.options.decoder_feature import DecoderFeatureOptions
from limbeck.methods.options.maps import ChannelWiseOptions, PixelKlOptions
from limbeck.methods.options.masked import (
    DecoderOptions,
    MaskedPixelOptions,
    MaskTokenOptions,
    ReconstructionOptions,
    RegressionOptions,
    SimMimOptions,
)
from limbeck.methods.options.two_views import DinoOptions, MocoV3Options, TwoViewOptions
