"""The scenes of a run and their batches."""

import pytest
import torch

from limbeck.data.options import DataOptions
from limbeck.data.scenes.options import SceneOptions
from limbeck.data.skipped import SkippedLog
from limbeck.engine.distributed import Ranks
from limbeck.errors import UserError
from limbeck.recipes.run.images import open_images
from limbeck.recipes.run.scenes import (
    open_for_distilling,
    open_scene_images,
    scene_stream,
    without_masks,
)
from tests.recipes.scenes import NAMES, draw_scenes, segment_config


def test_scenes_are_held_out_and_identified(scenes, tmp_path):
    data = SceneOptions(root=str(scenes), holdout_ratio=0.25)
    found = open_scene_images(data)
    assert (len(found.train), len(found.holdout)) == (18, 6)
    assert found.train.classes == NAMES and found.lineage["num_train"] == 18
    assert not {*map(found.train.key, range(18))} & {*map(found.holdout.key, range(6))}
    other = open_scene_images(SceneOptions(root=str(draw_scenes(tmp_path / "few", 20))))
    assert other.fingerprint != found.fingerprint
    with pytest.raises(UserError, match="name more of them"):
        open_scene_images(SceneOptions(root=str(draw_scenes(tmp_path / "one", 1)), holdout_ratio=0))


def test_to_distil_there_are_images_alone(scenes, images):
    data = SceneOptions(root=str(scenes), holdout_ratio=0.25)
    found, of_scenes = open_for_distilling(data), open_scene_images(data)
    assert [*map(found.train.key, range(18))] == [*map(of_scenes.train.key, range(18))]
    assert found.train.read(0).data == of_scenes.train.read(0).data
    assert not found.is_labelled and of_scenes.train.classes == NAMES
    assert found.fingerprint == of_scenes.fingerprint
    photos = open_images(DataOptions(root=str(images)))
    assert without_masks(photos) is photos
    assert open_for_distilling(DataOptions(root=str(images))).fingerprint == photos.fingerprint


def test_batches_have_crops_with_their_label_maps(scenes, tmp_path):
    config = segment_config(scenes, tmp_path)
    found = open_scene_images(config.data)
    skipped, ranks = SkippedLog(None, 24, 0.0), Ranks(device=torch.device("cpu"))
    first, second = scene_stream(found.train, 32, ranks, config, skipped, 0, 2)
    assert first.images.shape == (8, 3, 32, 32) and first.labels.shape == (8, 32, 32)
    bright = first.images.mean(dim=1) > 0.4
    is_known = first.labels != 255
    assert ((first.labels == 1) == bright)[is_known].float().mean() > 0.9
    (again,) = scene_stream(found.train, 32, ranks, config, skipped, 1, 2)
    assert torch.equal(again.images, second.images) and torch.equal(again.labels, second.labels)
