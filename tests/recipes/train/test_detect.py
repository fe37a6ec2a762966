"""limbeck detect, end to end at small size: it learns, is taught, goes on, and refuses."""

from dataclasses import replace

import pytest
import torch

import limbeck
from limbeck.errors import UserError
from limbeck.models.finished import read_record
from limbeck.models.options import DetectorOptions, TeacherOptions
from limbeck.recipes.train.detect import check, detect, report
from limbeck.records import Tap
from tests.recipes.objects import NAMES, detect_config, draw_objects
from tests.recipes.runs import metrics_of


def test_it_learns_to_find_boxes(detector):
    run = detector
    record = read_record(run)[1]
    scores = record["scores"]
    assert record["classes"] == list(NAMES)
    assert scores["ap50"] > 0.5
    assert set(scores) > {"ap", "ap50", "ap75", "threshold", "f1", "ap/bright", "ap/red"}
    text = report(run)
    assert "AP50" in text and "bright: AP" in text and "Best threshold of scores" in text
    found = limbeck.load(run).detect(torch.rand(1, 3, 48, 48), [(48, 48)])
    assert len(found) == 1


@pytest.mark.parametrize("method", ["dense-answers", "feature-richness"])
def test_a_detector_teaches_one(method, detector, objects, tmp_path):
    config = detect_config(
        objects, tmp_path / "run", method=method, teacher=TeacherOptions(source=str(detector))
    )
    student = detect(replace(config, train=replace(config.train, epochs=2)))
    record = read_record(student)[1]
    assert record["teacher"]["source"] == str(detector)
    # FRS rises from nothing with the steps.
    parts = {"dense-answers": "taught_class", "feature-richness": "richness"}
    found = [each["losses"][parts[method]] for each in metrics_of(student)[0]]
    assert len(found) > 2 and all(value > 0 for value in found[1:])


def test_masks_are_learnt_where_there_are_outlines(objects, tmp_path):
    config = detect_config(
        objects, tmp_path / "run", detector=DetectorOptions(width=24, masks=True)
    )
    run = detect(replace(config, train=replace(config.train, epochs=2)))
    assert "mask_ap" in read_record(run)[1]["scores"]
    boxes = draw_objects(tmp_path / "boxes", 8, outlines=False)
    with pytest.raises(
        UserError, match="has boxes alone, and masks are learnt of outlines; set --no-masks"
    ):
        detect(replace(config, data=replace(config.data, root=str(boxes)), out=tmp_path / "b"))


HEADS = {
    "light": DetectorOptions(width=24),
    "rcnn": DetectorOptions(head="rcnn", width=8, masks=True, cascade=True),
}


@pytest.mark.parametrize("head", HEADS)
def test_a_stopped_run_goes_on_bit_for_bit(head, objects, tmp_path, monkeypatch):
    from limbeck.engine import loop

    config = detect_config(objects, tmp_path / "whole", detector=HEADS[head])
    config = replace(config, train=replace(config.train, epochs=4, save_every=3))
    whole = limbeck.load(detect(config)).state_dict()
    stopped = replace(config, out=tmp_path / "stopped")
    steps = iter(range(100))

    def stop(*args, **options):
        if next(steps) == 4:
            raise KeyboardInterrupt
        return backward(*args, **options)

    backward = loop._backward
    monkeypatch.setattr(loop, "_backward", stop)
    with pytest.raises(KeyboardInterrupt):
        detect(stopped)
    monkeypatch.setattr(loop, "_backward", backward)
    again = limbeck.load(detect(stopped)).state_dict()
    assert all(torch.equal(value, again[name]) for name, value in whole.items())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"student": ""}, "--student"),
        ({"method": "feature-richness"}, "without --teacher SOURCE"),
        ({"method": "channel-wise", "teacher": TeacherOptions(source=".")}, "channel-wise"),
        (
            {"detector": DetectorOptions(freeze=True), "drop_path_rate": 0.1},
            "with --detector.freeze",
        ),
        (
            {"detector": DetectorOptions(head="rcnn"), "teacher": TeacherOptions(source=".")},
            "of rcnn choose --method feature-richness",
        ),
    ],
)
def test_options_without_effect_are_refused(changes, words, objects, tmp_path):
    with pytest.raises(UserError, match=words):
        check(detect_config(objects, tmp_path, **changes))


def test_a_whole_detector_is_no_student(detector, objects, tmp_path):
    with pytest.raises(UserError, match="a detector, its heads trained; name the encoder"):
        detect(detect_config(objects, tmp_path / "run", student=str(detector)))


def test_the_plan_asks_for_every_tap_once(objects, tmp_path):
    from limbeck.engine.distributed import Ranks
    from limbeck.recipes.run.objects import open_object_images
    from limbeck.recipes.train.detection import plan_detection

    config = detect_config(objects, tmp_path)
    plan = plan_detection(config, open_object_images(config.data), Ranks())
    assert plan.module.taps[0] == Tap("pyramid", 0) and plan.student.facts.num_classes == 2


def test_a_training_that_gets_no_better_stops_with_its_best(objects, tmp_path, monkeypatch):
    from limbeck.recipes.train import detection

    scores = iter([0.2, 0.6, 0.3, 0.1, 0.9])

    class Found:
        def score(self):
            return self

        def plain(self):
            return {"ap": next(scores), "ap50": 0.0, "threshold": 0.5, "f1": 0.0}

    monkeypatch.setattr(detection, "scores_over", lambda *args, **options: Found())
    config = detect_config(objects, tmp_path / "run")
    patient = replace(config.train, epochs=10, probe_every=2, patience=2)
    run = detect(replace(config, train=patient))
    record = read_record(run)[1]
    assert record["scores"]["ap"] == 0.6 and record["steps"] == 8
    # It is the student of step 4, as a run has it that is cut there.
    assert next(scores) == 0.9
