"""The images with objects of a run."""

import pytest
import torch

from limbeck.data.skipped import SkippedLog
from limbeck.engine.distributed import Ranks
from limbeck.errors import UserError
from limbeck.recipes.run.objects import object_stream, open_object_images
from tests.recipes.objects import NAMES, detect_config, draw_objects


def test_images_and_their_stream(tmp_path):
    config = detect_config(draw_objects(tmp_path / "o"), tmp_path / "run")
    images = open_object_images(config.data)
    assert images.lineage["classes"] == list(NAMES)
    assert images.lineage["num_train"] + images.lineage["num_holdout"] == 24
    skipped = SkippedLog(None, 24, 0.0)
    batch = next(object_stream(images.train, 48, True, Ranks(), config, skipped, 0, 1))
    assert batch.images.shape == (8, 3, 48, 48) and len(batch.objects) == 8
    assert batch.objects[0].masks.dtype == torch.bool


def test_one_image_is_too_few(tmp_path):
    config = detect_config(draw_objects(tmp_path / "o", 1), tmp_path / "run")
    with pytest.raises(UserError, match="1 image to train on"):
        open_object_images(config.data)
