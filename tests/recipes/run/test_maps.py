"""A segmenter's confusion over scenes."""

import torch

import limbeck
from limbeck.data.skipped import SkippedLog
from limbeck.evaluation.options import MapOptions
from limbeck.recipes.run.maps import confusion_over
from limbeck.recipes.run.scenes import open_scene_images
from tests.recipes.scenes import segment_config


def test_all_pixels_of_all_scenes_are_counted(scenes, segmenter, tmp_path):
    config = segment_config(scenes, tmp_path)
    held_out = open_scene_images(config.data).holdout
    network = limbeck.load(segmenter).train()
    skipped = SkippedLog(None, len(held_out), 0.0)
    found = confusion_over(network, held_out, MapOptions(), config.data, skipped)
    assert found.counts.sum() == 6 * 40 * 48 and found.counts.dtype == torch.int64
    assert found.counts.sum(1)[1] == 6 * 18 * 20  # the boxes
    assert found.score().miou == limbeck.models.finished.read_record(segmenter)[1]["scores"]["miou"]
    assert network.training
