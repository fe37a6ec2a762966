"""A detector of any encoder: what is added to the encoder, and what is put on it."""

from limbeck.errors import UserError
from limbeck.models.build import seeded
from limbeck.models.dense.build import without_classifier
from limbeck.models.dense.detector import Detector, head_module
from limbeck.models.options import DetectorOptions
from limbeck.models.timm_encoder import TimmEncoder


def build_detector(
    backbone: TimmEncoder,
    num_classes: int,
    options: DetectorOptions,
    seed: int,
    img_size: tuple[int, int] | None = None,
) -> Detector:
    """A detector with a copy of the backbone's weights; all else starts from ``seed``.

    ``img_size`` (H, W) of its images, a square: positions are interpolated. The backbone's
    classifier and final norm are left out, and all else of it is trainable unless ``options``
    freeze it. Raises UserError for options that the backbone can't have.
    """
    encoder = without_classifier(backbone, img_size)
    size = encoder.facts.img_size
    if size[0] != size[1]:
        raise UserError(f"A detector sees squares, not {size[1]} x {size[0]}; set --img-size.")
    module = head_module(options.head)
    parts = {
        "img_size": list(size),
        "num_classes": num_classes,
        "backbone": encoder.facts.architecture,
        "head": options.head,
        "masks": options.masks,
    } | module.parts_of(encoder, options)
    with seeded(seed):
        detector: Detector = module.build(encoder, parts, encoder.facts.origin)
    if options.freeze:
        detector.freeze_backbone()
    return detector.train(backbone.training)
