"""Two stages to a segmenter: its runs from the options; a whole one, stopped ones, refused ones."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

import limbeck
from limbeck.data.scenes.options import SceneOptions
from limbeck.engine.loop import Interrupted
from limbeck.engine.options import OptimOptions, TrainOptions
from limbeck.errors import UserError
from limbeck.methods.options import ChannelWiseOptions, RelationOptions
from limbeck.models.options import StudentOptions, TeacherOptions
from limbeck.recipes.study.options import (
    SpecificMapOptions,
    TuneMapTeacherOptions,
    TwoStageSegmentConfig,
)
from limbeck.recipes.study.stage_two.segment import SEGMENT
from limbeck.recipes.study.stages import ARMS, stage_one_config
from limbeck.recipes.study.two_stage import check, report, two_stage
from limbeck.recipes.train.segment import segment
from tests.recipes.runs import STUDENT_SHAPE, metrics_of, weights_of
from tests.recipes.study.test_two_stage import stop_in

TRAIN = TrainOptions(
    epochs=1, global_batch_size=8, precision="fp32", device="cpu", probe_every=100, log_every=1
)
OPTIM = OptimOptions(base_lr=1e-2, layer_decay=0.75)


STAGE_TWO_ALONE = {
    name: getattr(TwoStageSegmentConfig(), name)
    for name in ("method", "relation", "optim", "train")
}


def config_of(scenes, teacher, out, /, *arms, **changes) -> TwoStageSegmentConfig:
    """Two steps of each run."""
    values = {
        "arms": arms or ("both",),
        "out": out,
        "measure_speed": False,
        "student": STUDENT_SHAPE,
        "teacher": TeacherOptions(source=str(teacher)),
        "data": SceneOptions(root=str(scenes), holdout_ratio=0.25, num_workers=0),
        "specific": SpecificMapOptions(optim=OPTIM, train=TRAIN),
        "method": "relation",
        "relation": RelationOptions(drop_path_rate=0.0),
        "optim": OptimOptions(base_lr=1e-2),
        "train": TRAIN,
    }
    if "task_teacher" not in changes:
        values["tune_teacher"] = TuneMapTeacherOptions(optim=OPTIM, train=TRAIN)
    return TwoStageSegmentConfig(**values | changes)


@pytest.fixture(scope="module")
def whole(scenes, teacher, tmp_path_factory):
    """All arms, with the teacher's segmentation; nothing may write into it."""
    out = tmp_path_factory.mktemp("whole") / "out"
    config = config_of(scenes, teacher, out, *ARMS)
    return config, two_stage(config)


def test_all_arms_and_the_teacher_end_in_one_report(whole):
    config, found = whole
    text = report(found)
    assert "| teacher " in text and "mIoU %" in text and "Verdict: two stages" in text
    assert "of the teacher's %" in text and "| mean " in text and "| box " in text
    assert f"The student is in {config.out}/seed_0/both, of the arm 'both'." in text
    assert "--data SCENES" in text and "segmenter = limbeck.load(" in text
    assert "6 held-out images can't tell much." in text
    assert (config.out / "table.md").read_text() in text + "\n"
    data = json.loads((config.out / "two_stage.json").read_text())
    assert data["verdicts"].keys() == {"generic", "specific", "fine-tune"}
    for name, arm in data["arms"].items():
        own = config.out / "seed_0" / name
        record, miou = json.loads((own / "student.json").read_text()), arm["0"]["scores"]["miou"]
        assert miou["mean"] == pytest.approx(record["scores"]["miou"])
        assert miou["low"] <= miou["mean"] <= miou["high"]
        assert miou["iou"] == pytest.approx(
            {name: record["scores"][f"iou/{name}"] for name in miou["iou"]}
        )
        facts = limbeck.load(own).facts
        assert facts.has_maps and facts.num_heads == (3, 3)
    assert "channel_wise" in metrics_of(config.out / "seed_0/both")[0][0]["losses"]


def test_stage_one_sees_the_training_scenes_without_their_masks(whole):
    record = json.loads((whole[0].out / "seed_0/stage_one/student.json").read_text())
    assert (record["data"]["num_train"], record["data"]["num_holdout"]) == (18, 6)


def test_by_hand_the_verb_makes_the_same_segmenter(whole, tmp_path):
    config, _ = whole
    teacher = segment(replace(SEGMENT.teacher(config), out=tmp_path / "segmenter"))
    both = SEGMENT.arm(config, ARMS["both"], 0, str(teacher), 3)
    assert weights_of(teacher) == weights_of(config.out / "teacher")
    both = segment(replace(both, out=tmp_path / "both"))
    assert weights_of(both) == weights_of(config.out / "seed_0/both")


def test_again_nothing_is_done_again_and_a_seed_may_be_added(scenes, segmenter, tmp_path):
    config = config_of(scenes, segmenter, tmp_path / "out", "generic")
    config = replace(config, tune_teacher=TuneMapTeacherOptions())
    told = report(two_stage(config))
    before = weights_of(config.out / "seed_0/generic")
    assert report(two_stage(config)) == told
    more = replace(config, arms=("both", "generic"), seeds=2)
    found = two_stage(more)
    assert weights_of(config.out / "seed_0/generic") == before
    assert found.teacher.cost.keys() == {"parameters", "macs"}  # it segmented them already
    assert not (config.out / "teacher").exists()
    assert "over 2 and 2 training runs, 6 test images" in report(found)


@pytest.mark.parametrize("stopped", ["teacher", "stage_one", "both"])
def test_stopped_in_any_run_it_goes_on(scenes, teacher, whole, tmp_path, monkeypatch, stopped):
    config = config_of(scenes, teacher, tmp_path / "out")
    stop_in(stopped, monkeypatch)
    with pytest.raises(Interrupted):
        two_stage(config)
    monkeypatch.undo()
    two_stage(config)
    assert weights_of(config.out / "seed_0/both") == weights_of(whole[0].out / "seed_0/both")


def test_stage_one_may_learn_from_other_images(scenes, unlabelled, teacher, segmenter, tmp_path):
    config = config_of(
        scenes, teacher, tmp_path / "out", unlabelled=str(unlabelled), task_teacher=str(segmenter)
    )
    found = two_stage(config)
    record = json.loads((config.out / "seed_0/stage_one/student.json").read_text())
    assert record["data"]["num_train"] == 48 and record["data"]["root"] == str(unlabelled)
    assert "of 48 images, without labels" in report(found)


def test_the_runs_have_what_the_sections_say():
    config = TwoStageSegmentConfig(
        out=Path("out"),
        student=StudentOptions(img_size=64),
        teacher=TeacherOptions(source="mae.pth", num_heads=6, precision="fp32"),
        specific=SpecificMapOptions(
            class_weights=(1.0, 2.0), method="pixel-kl", channel_wise=ChannelWiseOptions(weight=2)
        ),
    )
    run = SEGMENT.teacher(config)
    assert (run.student, run.out, run.num_heads) == ("mae.pth", Path("out/teacher"), 6)
    assert (run.img_size, run.optim.layer_decay) == (64, 0.8)
    both = SEGMENT.arm(config, ARMS["both"], 1, "there", 3)
    assert (both.method, both.num_heads, both.class_weights) == ("pixel-kl", 3, (1.0, 2.0))
    assert both.teacher == TeacherOptions(source="there", precision="fp32")
    assert both.optim.layer_decay == 0.65 and both.channel_wise.weight == 2
    alone = SEGMENT.arm(config, ARMS["fine-tune"], 1, "there", 3)
    assert (alone.teacher, alone.method) == (TeacherOptions(), "channel-wise")
    assert alone.optim.layer_decay == 1 and alone.class_weights == (1.0, 2.0)
    assert stage_one_config(config, 0).data == config.data


@pytest.mark.parametrize(
    ("arms", "changes", "message"),
    [
        (("both",), {"teacher": TeacherOptions()}, "method relation needs a teacher"),
        (
            ("generic",),
            {"specific": SpecificMapOptions(method="pixel-kl"), "task_teacher": ""},
            "--specific.method has no effect with --arms generic, which have no teacher",
        ),
        (
            ("both",),
            {"specific": SpecificMapOptions(optim=OptimOptions(warmup_epochs=2), train=TRAIN)},
            "specific.optim.warmup_epochs 2 leaves nothing of specific.train.epochs 1",
        ),
        (
            ("both",),
            {"teacher": TeacherOptions(source="TEACHER", patch_size=8)},
            "a segmenter wi",
        ),
        (
            ("specific",),
            {"teacher": TeacherOptions(source="TEACHER", img_size=64)} | STAGE_TWO_ALONE,
            "--teacher.img-size has no effect with --arms specific here",
        ),
    ],
)
def test_what_can_not_be_meant_is_refused_at_once(
    scenes, teacher, tmp_path, arms, changes, message
):
    given = changes.get("teacher")
    if given and given.source:
        changes = changes | {"teacher": replace(given, source=str(teacher))}
    with pytest.raises(UserError, match=message):
        check(config_of(scenes, teacher, tmp_path, *arms, **changes))


def test_what_does_not_fit_is_told_before_anything_trains(
    images, scenes, teacher, classifier, tmp_path
):
    config = config_of(scenes, teacher, tmp_path / "out")
    with pytest.raises(UserError, match="There are no masks in"):
        two_stage(replace(config, data=replace(config.data, root=str(images))))
    with pytest.raises(UserError, match="teacher has no maps of classes"):
        two_stage(config_of(scenes, teacher, tmp_path / "out", task_teacher=str(classifier)))
    weights = replace(config.specific, class_weights=(1.0, 1.0, 2.0))
    with pytest.raises(UserError, match="3 class weights for 2 classes"):
        two_stage(replace(config, specific=weights))
    assert not (tmp_path / "out").exists()


def test_counts_that_are_none_are_told(scenes, segmenter, tmp_path):
    config = config_of(scenes, segmenter, tmp_path / "out", "specific", task_teacher=str(segmenter))
    config = replace(config, teacher=TeacherOptions(), **STAGE_TWO_ALONE)
    two_stage(config)
    file = tmp_path / "out/seed_0/specific/evaluation.json"
    known = json.loads(file.read_text())
    file.write_text(json.dumps(known | {"scores": known["scores"][:-1] + [[[1, 2], [3]]]}))
    with pytest.raises(UserError, match="evaluation.json is damaged; delete it"):
        two_stage(config)
