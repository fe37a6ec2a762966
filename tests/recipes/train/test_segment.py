"""``limbeck segment`` end to end: trained, stopped and continued, taught, and refused."""

import json
from dataclasses import replace

import pytest

import limbeck
from limbeck.engine.loop import Interrupted
from limbeck.errors import UserError
from limbeck.methods.options import ChannelWiseOptions
from limbeck.models.options import SegmenterOptions, TeacherOptions
from limbeck.recipes.train.segment import check, report, segment
from tests.recipes.runs import metrics_of, weights_of
from tests.recipes.scenes import NAMES, segment_config


def test_it_learns_what_is_drawn_and_says_so(segmenter):
    record = json.loads((segmenter / "student.json").read_text())
    assert record["classes"] == list(NAMES) and set(record["iou"]) == set(NAMES)
    assert record["scores"]["miou"] > 0.6
    assert record["scores"]["miou"] == pytest.approx(sum(record["iou"].values()) / 2)
    steps, _ = metrics_of(segmenter)
    assert steps[-1]["losses"]["pixels"] < 0.6 * steps[0]["losses"]["pixels"]
    assert limbeck.load(segmenter).facts.num_classes == 2
    said = report(segmenter)
    assert "mIoU" in said and "  box: " in said and "6 held-out scenes can't tell much." in said


def test_stopped_and_continued_ends_the_same(scenes, tmp_path, monkeypatch):
    from limbeck.recipes.train import segmentation

    config = segment_config(scenes, tmp_path / "run")
    config = replace(config, train=replace(config.train, save_every=5))
    real = segmentation.scene_stream

    def ends(*given):
        for number, batch in enumerate(real(*given)):
            if number == 7:
                raise KeyboardInterrupt
            yield batch

    monkeypatch.setattr(segmentation, "scene_stream", ends)
    with pytest.raises((KeyboardInterrupt, Interrupted)):
        segment(config)
    monkeypatch.setattr(segmentation, "scene_stream", real)
    # Made here, since bits hang on the number of threads, and fixtures have had others.
    whole = segment(segment_config(scenes, tmp_path / "whole"))
    assert weights_of(segment(config)) == weights_of(whole)


@pytest.mark.parametrize("method", ["channel-wise", "pixel-kl"])
def test_a_teacher_helps_beside_the_masks(scenes, segmenter, tmp_path, method):
    teacher = TeacherOptions(source=str(segmenter), precision="fp32")
    config = segment_config(scenes, tmp_path / "run", teacher=teacher, method=method)
    run = segment(replace(config, train=replace(config.train, epochs=1)))
    steps, _ = metrics_of(run)
    assert set(steps[0]["losses"]) == {"total", "pixels", method.replace("-", "_")}
    record = json.loads((run / "student.json").read_text())
    assert record["teacher"]["weight_hash"]


def test_heads_and_a_frozen_encoder(scenes, student, tmp_path):
    upernet = SegmenterOptions(head="upernet", width=16, norm="group", freeze=True)
    config = segment_config(scenes, tmp_path / "run", student=str(student), segmenter=upernet)
    run = segment(replace(config, train=replace(config.train, epochs=1)))
    own, start = limbeck.load(run), limbeck.load(student)
    before = start.model.state_dict()
    kept = {k: v for k, v in own.backbone.model.state_dict().items() if k in before}
    assert len(kept) > 10 and all(v.equal(before[k]) for k, v in kept.items() if "pos" not in k)
    assert set(metrics_of(run)[0][0]["losses"]) == {"total", "pixels", "aux"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"student": ""}, "No student is named"),
        ({"student": "vit_tyni"}, "Did you mean 'vit_tiny'"),
        ({"method": "pixel-kl"}, "method has no effect without --teacher"),
        ({"channel_wise": ChannelWiseOptions(weight=1.0)}, "channel_wise has no effect without"),
        ({"method": "chanel-wise"}, "Did you mean 'channel-wise'"),
    ],
)
def test_what_is_wrong_is_told_before_torch(scenes, tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        check(segment_config(scenes, tmp_path, **changes))


def test_scenes_that_are_none_and_weights_that_do_not_fit(images, scenes, tmp_path):
    with pytest.raises(UserError, match="There are no masks in"):
        segment(segment_config(images, tmp_path / "run"))
    with pytest.raises(UserError, match="3 class weights for 2 classes"):
        segment(segment_config(scenes, tmp_path / "run", class_weights=(1.0, 1.0, 2.0)))
    assert not (tmp_path / "run").exists()
