"""Which images an export is proven on, how they are shown, and both networks' scores of them."""

import logging
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from limbeck.data.options import DataOptions
from limbeck.errors import UserError
from limbeck.models.finished import load_finished
from limbeck.recipes.ship.export import ExportConfig, _shown
from limbeck.recipes.ship.shown import (
    Scorer,
    Shown,
    open_shown,
    own_crop_ratio,
    preprocessing_of,
    scorer_of,
)
from limbeck.records import Batch, Objects


def shown(network, data=None, count=100):
    source, _, data = open_shown(network, data or DataOptions())
    return Shown(network, source, data, count, own_crop_ratio(network))


def keys_of(batches):
    return [key for batch in batches for key in batch.keys]


def test_without_a_name_those_that_the_run_held_out(classifier):
    network = load_finished(classifier)
    (batch, *more) = shown(network).batches((32, 32))
    keys = keys_of([batch, *more])
    assert len(keys) == 12 and set(batch.labels.tolist()) <= {0, 1, 2}
    assert batch.images.shape[1:] == (3, 32, 32)
    assert torch.equal((255 * batch.images).round() / 255, batch.images)  # pixels, all of them
    few = keys_of(shown(network, count=4).batches((40, 48)))
    assert few == [keys[0], keys[3], keys[6], keys[9]]


def test_where_none_were_held_out_it_is_said_that_the_run_was_trained_on_them(classifier, caplog):
    caplog.set_level(logging.INFO, "limbeck")
    network = load_finished(classifier)
    config = ExportConfig(network=str(classifier), to="timm")
    assert not _shown(config, network)[0].seen_in_training
    network.facts.origin["config"]["data"] |= {"holdout_ratio": 0.0}
    own, _ = _shown(config, network)
    assert own.seen_in_training and "some that it was trained on" in caplog.text
    assert len(own.source) == 48


def test_named_images_with_the_network_s_classes_have_labels(classifier, images, unlabelled):
    network = load_finished(classifier)
    named = shown(network, DataOptions(root=str(images), num_workers=0))
    assert all(batch.labels is not None for batch in named.batches((32, 32)))
    bare = shown(network, DataOptions(root=str(unlabelled), num_workers=0), count=3)
    assert [batch.labels for batch in bare.batches((32, 32))] == [None]


def test_other_classes_are_refused(classifier, images, tmp_path):
    for name in ("red", "yellow"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.png").write_bytes((images / "red" / "000.png").read_bytes())
    with pytest.raises(UserError, match="are not those of the run"):
        open_shown(load_finished(classifier), DataOptions(root=str(tmp_path)))


def test_images_that_are_gone_are_asked_for(classifier):
    network = load_finished(classifier)
    network.facts.origin["config"]["data"]["root"] = "/nowhere/photos"
    with pytest.raises(UserError, match="/nowhere/photos, are gone; name some with --data"):
        open_shown(network, DataOptions())
    del network.facts.origin["config"]
    with pytest.raises(UserError, match="does not say which images"):
        open_shown(network, DataOptions())


def test_not_one_readable_image_is_said(classifier, tmp_path):
    (tmp_path / "a.png").write_bytes(b"none")
    network = load_finished(classifier)
    with pytest.raises(UserError, match="Not one of the images can be read"):
        list(shown(network, DataOptions(root=str(tmp_path), num_workers=0)).batches((32, 32)))


def test_scenes_are_cut_with_their_masks(segmenter, scenes):
    network = load_finished(segmenter)
    batches = list(shown(network).batches((32, 32)))
    assert len(batches) == 6
    for batch in batches:
        assert batch.images.shape == (1, 3, 32, 32) and batch.labels.shape == (1, 32, 32)
        bright = batch.images.mean(1) > 0.4  # the boxes
        assert (bright == (batch.labels == 1)).float().mean() > 0.9
    named = shown(network, DataOptions(root=str(scenes), num_workers=0), count=3)
    names = [key.rpartition("/")[2] for key in keys_of(named.batches((32, 32)))]
    assert names == ["000.png", "008.png", "016.png"]


def test_images_without_masks_do_for_a_segmenter(segmenter, unlabelled):
    network = load_finished(segmenter)
    found = shown(network, DataOptions(root=str(unlabelled), num_workers=0), count=2)
    assert [batch.labels for batch in found.batches((32, 32))] == [None, None]


def test_the_preprocessing_is_what_is_done(classifier, images, segmenter):
    network = load_finished(classifier)
    said = preprocessing_of(network.facts, own_crop_ratio(network))
    assert said["size"] == [32, 32] and said["shorter_side"] == 36
    assert said["mean"] == list(network.facts.mean)
    key = keys_of(shown(network).batches((32, 32)))[0]
    with Image.open(images / key) as image:
        width, height = image.size
        scale = said["shorter_side"] / min(image.size)
        wide = image.resize((round(width * scale), round(height * scale)), Image.BICUBIC)
    left, top = ((side - 32) // 2 for side in wide.size)
    expected = np.asarray(wide.crop((left, top, left + 32, top + 32))).astype(int)
    batch = next(shown(network).batches((32, 32)))
    found = (255 * batch.images[0]).round().permute(1, 2, 0).numpy()
    assert abs(found - expected).max() <= 2  # Pillow rounds elsewhere
    assert "windows of 32 x 32" in preprocessing_of(load_finished(segmenter).facts, 1.0)["words"]


def labelled(labels):
    images = torch.zeros(len(labels), 3, 1, 1)
    keys = tuple(map(str, range(len(labels))))
    return Batch(images, images, labels, keys, torch.arange(len(labels)))


def test_both_scores_and_what_may_be_lost(classifier):
    scorer = Scorer(load_finished(classifier).facts)
    assert scorer.plain() == {} and scorer.failures(0) == []
    right = {"logits": np.eye(3, dtype=np.float32)[[0, 1, 2, 0]]}
    wrong = {"logits": np.eye(3, dtype=np.float32)[[0, 1, 0, 1]]}
    scorer.add(labelled(torch.tensor([0, 1, 2, 0])), right, wrong)
    assert scorer.plain() == {"name": "top-1", "pytorch": 1.0, "file": 0.5, "images": 4}
    assert scorer.failures(50) == []
    assert scorer.failures(0.5) == [
        "top-1 falls from 100.00 to 50.00 % (tolerance 25.00 points)"  # one image of four
    ]


def test_a_detector_s_score_is_its_ap50_and_its_thresholds_are_told(detector):
    scorer = scorer_of(load_finished(detector).facts)
    assert scorer.plain() == {} == scorer.thresholds() and scorer.failures(0) == []
    boxes = torch.tensor([[0.0, 0, 10, 10], [20, 20, 40, 40]])
    wanted = Objects(boxes, torch.tensor([0, 0]), (40, 48))
    batch = replace(labelled(torch.zeros(1)), labels=None, objects=(wanted,))
    more = torch.tensor([[30.0, 0, 44, 10]])
    own = {
        "boxes": torch.cat([boxes, more])[None].numpy(), "classes": np.array([[0, 0, 0]]),
        "scores": np.array([[0.9, 0.8, 0.3]], np.float32),
    }  # fmt: skip
    # The file squeezes the confidences, and its last box, of the filling below too, is clipped.
    file = own | {"scores": np.array([[0.6, 0.5, 0.4]], np.float32)}
    file["boxes"] = own["boxes"] + np.array([0, 0, 0, 4], np.float32)
    scorer.add(batch, own, file)
    assert scorer.plain() == {"name": "AP50", "pytorch": 1.0, "file": 1.0, "images": 1}
    said = scorer.thresholds()
    assert said["pytorch"] == pytest.approx({"threshold": 0.55, "f1": 1})
    assert said["file"] == pytest.approx({"threshold": 0.45, "f1": 1})
    assert said["old_f1"] == pytest.approx(2 / 3)
    worse = scorer_of(load_finished(detector).facts)
    worse.add(batch, own, own | {"boxes": own["boxes"] + 30})
    assert worse.failures(1) == ["AP50 falls from 100.00 to 0.00 % (tolerance 50.00 points)"]


def test_a_segmenter_s_score_is_its_miou(segmenter):
    scorer = Scorer(load_finished(segmenter).facts)
    labels = torch.tensor([[[0, 0, 1, 255]]])
    mask = np.array([[[0, 0, 1, 0]]], np.uint8)
    scorer.add(labelled(labels), {"mask": mask}, {"mask": np.zeros_like(mask)})
    said = scorer.plain()
    assert (said["name"], said["pytorch"]) == ("mIoU", 1.0)
    assert said["file"] == pytest.approx((2 / 3 + 0) / 2)
    assert len(scorer.failures(0.5)) == 1
