"""Two stages, alone and beside single ones: a whole one, stopped ones, refused ones."""

import json
import shutil
from dataclasses import replace

import pytest

import limbeck
from limbeck.data.options import DataOptions, MixOptions
from limbeck.engine.loop import Interrupted
from limbeck.engine.options import OptimOptions, TrainOptions
from limbeck.errors import UserError
from limbeck.methods.options import (
    DecoderFeatureOptions,
    LogitOptions,
    MaskedPixelOptions,
    RelationOptions,
)
from limbeck.models.options import TeacherOptions
from limbeck.recipes.run.images import open_images
from limbeck.recipes.run.options import CropEvalOptions
from limbeck.recipes.study import stage_runs
from limbeck.recipes.study import two_stage as verb
from limbeck.recipes.study.options import SpecificOptions, TuneTeacherOptions, TwoStageConfig
from limbeck.recipes.study.stage_two.classify import CLASSIFY
from limbeck.recipes.study.stages import ARMS, stage_one_config
from limbeck.recipes.study.two_stage import check, report, two_stage
from limbeck.recipes.train.distill import distill
from limbeck.recipes.train.finetune import finetune
from tests.recipes.runs import STUDENT_SHAPE, finetune_config, snapshot, weights_of
from tests.recipes.runs import teacher_config as teacher_run

TRAIN = TrainOptions(
    epochs=1, global_batch_size=16, precision="fp32", device="cpu", probe_every=100, log_every=1
)
OPTIM = OptimOptions(base_lr=1e-2, layer_decay=0.75)


def config_of(images, teacher, out, /, *arms, **changes) -> TwoStageConfig:
    """Two steps of each run; of the options those that have an effect with the arms."""
    chosen = [ARMS[name] for name in arms or ("both",) if name in ARMS]
    has_stage_one, is_taught = (
        any(getattr(arm, name) for arm in chosen) for name in ("is_generic", "is_taught")
    )
    tunes_teacher = is_taught and "task_teacher" not in changes
    values = {
        "arms": arms or ("both",),
        "out": out,
        "measure_speed": False,
        "student": STUDENT_SHAPE,
        "data": DataOptions(root=str(images), holdout_ratio=0.25, num_workers=0),
        "specific": SpecificOptions(head="distilled", optim=OPTIM, train=TRAIN),
        "evaluation": CropEvalOptions(crop_ratio=1.0),
    }
    if has_stage_one:
        values |= {"method": "relation", "relation": RelationOptions(drop_path_rate=0.0)}
        values |= {"optim": OptimOptions(base_lr=1e-2), "train": TRAIN}
    if has_stage_one or tunes_teacher:
        values["teacher"] = TeacherOptions(source=str(teacher))
    if tunes_teacher:
        values["tune_teacher"] = TuneTeacherOptions(optim=OPTIM, train=TRAIN)
    return TwoStageConfig(**values | changes)


@pytest.fixture(scope="module")
def whole(images, teacher, tmp_path_factory):
    """All arms, with the teacher's fine-tuning; nothing may write into it."""
    out = tmp_path_factory.mktemp("whole") / "out"
    config = config_of(images, teacher, out, "both", "generic", "specific", "fine-tune")
    return config, two_stage(config)


def test_all_arms_and_the_teacher_end_in_one_report(whole):
    config, found = whole
    assert {name: list(seeds) for name, seeds in found.results.items()} == {
        name: [0] for name in ("both", "generic", "specific", "fine-tune")
    }
    assert found.values("both", "stage_one_seconds") == found.values("generic", "stage_one_seconds")
    assert not found.values("specific", "stage_one_seconds")
    assert found.teacher.cost["tuning_seconds"] > 0
    text = report(found)
    assert "| teacher " in text and "of the teacher's %" in text and "Verdict: two stages" in text
    assert f"The student is in {config.out}/seed_0/both, of the arm 'both'." in text
    assert (config.out / "table.md").read_text() in text + "\n"
    data = json.loads((config.out / "two_stage.json").read_text())
    assert data["verdicts"].keys() == {"generic", "specific", "fine-tune"}
    for name, arm in data["arms"].items():
        record = json.loads((config.out / "seed_0" / name / "student.json").read_text())
        assert arm["0"]["scores"]["top1"]["mean"] == pytest.approx(record["scores"]["top1"])
    taught = {name: limbeck.load(config.out / "seed_0" / name).facts for name in ARMS}
    assert [name for name, facts in taught.items() if facts.has_dist_head] == ["specific", "both"]
    assert {facts.num_heads for facts in taught.values()} == {(3, 3)}


def test_by_hand_the_verbs_make_the_same_student(whole, tmp_path):
    config, _ = whole
    here = replace(config, out=tmp_path)
    generic = distill(replace(stage_one_config(here, 0), out=tmp_path / "generic"))
    teacher = finetune(replace(CLASSIFY.teacher(here), out=tmp_path / "classifier"))
    both = CLASSIFY.arm(here, ARMS["both"], 0, str(teacher), 3)
    both = finetune(replace(both, student=str(generic), out=tmp_path / "specific"))
    for made, expected in ((generic, "stage_one"), (both, "both")):
        assert weights_of(made) == weights_of(config.out / "seed_0" / expected)
    assert weights_of(teacher) == weights_of(config.out / "teacher")


def test_again_nothing_is_done_again(whole):
    config, found = whole
    before = {name: kept for name, kept in snapshot(config.out).items() if "student." in name}
    again = two_stage(config)
    after = {name: kept for name, kept in snapshot(config.out).items() if "student." in name}
    assert after == before
    assert report(again) == report(found)


def stop_in(folder, monkeypatch):
    """Both kinds of run are stopped before they begin in a folder of that name."""

    def until(run):
        def stopped(own):
            if own.out.name == folder:
                raise Interrupted("Stopped by Ctrl-C.", 0)
            return run(own)

        return stopped

    monkeypatch.setattr(stage_runs, "distill", until(distill))
    tasks = {name: replace(task, train=until(task.train)) for name, task in verb.TASKS.items()}
    monkeypatch.setattr(verb, "TASKS", tasks)


@pytest.mark.parametrize("stopped", ["teacher", "stage_one", "both"])
def test_stopped_in_any_run_it_goes_on(images, teacher, whole, tmp_path, monkeypatch, stopped):
    config = config_of(images, teacher, tmp_path / "out")
    stop_in(stopped, monkeypatch)
    with pytest.raises(Interrupted):
        two_stage(config)
    monkeypatch.undo()
    before = {
        folder.parent: weights_of(folder.parent)
        for folder in config.out.rglob("student.safetensors")
    }
    two_stage(config)
    assert before == {folder: weights_of(folder) for folder in before}
    assert weights_of(config.out / "seed_0/both") == weights_of(whole[0].out / "seed_0/both")


def test_arms_and_seeds_may_be_added(images, classifier, tmp_path):
    config = config_of(images, classifier, tmp_path / "out", "generic")
    two_stage(config)
    generic = weights_of(config.out / "seed_0" / "generic")
    more = replace(config, arms=("both", "generic"), seeds=2)
    found = two_stage(more)
    assert weights_of(config.out / "seed_0" / "generic") == generic
    assert [list(found.results[name]) for name in more.arms] == [[0, 1], [0, 1]]
    assert found.teacher.cost.keys() == {"parameters", "macs"}  # it classified them already
    assert weights_of(config.out / "seed_1" / "generic") != generic
    text = report(found)
    assert "(seed 0 of 2; the others are beside it)" in text and "±" in text


def test_nothing_may_be_changed(whole):
    config, _ = whole
    before = {name: content for name, (_, content) in snapshot(config.out).items()}
    other = replace(config.specific, optim=replace(OPTIM, base_lr=0.5))
    for changes, message in (
        ({"specific": other}, "seed_0/both holds another run: optim.base_lr"),
        ({"optim": OptimOptions(base_lr=0.5)}, "stage_one holds another run: optim.base_lr"),
        ({"data": replace(config.data, holdout_ratio=0.3)}, "out holds another run: data.holdout"),
    ):
        with pytest.raises(UserError, match=message):
            two_stage(replace(config, seeds=2, **changes))
    assert {name: content for name, (_, content) in snapshot(config.out).items()} == before


def test_with_leave_to_overwrite_only_what_is_asked_for_is_replaced(
    images, teacher, whole, tmp_path
):
    out = shutil.copytree(whole[0].out, tmp_path / "out")
    other = SpecificOptions(head="distilled", optim=replace(OPTIM, base_lr=0.5), train=TRAIN)
    config = config_of(images, teacher, out, "fine-tune", specific=other)
    two_stage(replace(config, overwrite=True))
    for name in ("both", "generic", "specific", "fine-tune"):
        is_same = weights_of(out / "seed_0" / name) == weights_of(whole[0].out / "seed_0" / name)
        assert is_same == (name != "fine-tune")


def test_the_teacher_of_other_images_is_not_in_the_way(images, whole, tmp_path):
    """Its folder is told as another run's, or replaced; its classes do not matter."""
    two = tmp_path / "two"
    for name in ("blue", "red"):
        shutil.copytree(images / name, two / name)
    out = shutil.copytree(whole[0].out, tmp_path / "out")
    other = config_of(two, whole[0].teacher.source, out, "specific")
    with pytest.raises(UserError, match="out holds another run: data.root"):
        two_stage(other)
    two_stage(replace(other, overwrite=True))
    assert limbeck.load(out / "seed_0" / "specific").facts.num_classes == 2
    assert weights_of(out / "seed_0" / "both") == weights_of(whole[0].out / "seed_0" / "both")


def test_stage_one_may_learn_from_other_images(images, unlabelled, teacher, classifier, tmp_path):
    config = config_of(
        images,
        teacher,
        tmp_path / "out",
        unlabelled=str(unlabelled),
        task_teacher=str(classifier),
    )
    found = two_stage(config)
    record = json.loads((config.out / "seed_0" / "stage_one" / "student.json").read_text())
    assert record["data"]["num_train"] == 48 and record["data"]["root"] == str(unlabelled)
    assert not (config.out / "teacher").exists()
    assert "of 48 images, without labels" in report(found)


def test_part_of_the_labels_is_for_stage_two_alone(images, teacher, tmp_path):
    config = config_of(images, teacher, tmp_path)
    half = replace(config, data=replace(config.data, label_fraction=0.5, label_seed=3))
    assert stage_one_config(half, 0).data.label_fraction == 1
    assert CLASSIFY.arm(half, ARMS["both"], 1, "teacher", None).data == half.data
    check(half)
    few, all_images = open_images(half.data), open_images(stage_one_config(half, 0).data)
    kept, seen = (
        {source.key(index) for index in range(len(source))}
        for source in (few.holdout, all_images.train)
    )
    assert kept and not kept & seen
    assert len(few.train) < len(seen) == len(all_images.whole) - len(kept)


def test_the_precision_is_also_that_of_a_task_teacher(images, teacher, classifier, tmp_path):
    config = config_of(
        images, teacher, tmp_path, "specific",
        task_teacher=str(classifier), teacher=TeacherOptions(precision="fp32"),
    )  # fmt: skip
    check(config)
    run = CLASSIFY.arm(config, ARMS["specific"], 0, config.task_teacher, None)
    assert run.teacher == TeacherOptions(source=str(classifier), precision="fp32")


@pytest.mark.parametrize(
    ("arms", "changes", "message"),
    [
        (("bth",), {}, "no arm 'bth'. Did you mean 'both'"),
        (("both", "both"), {}, "names each arm once"),
        (("both",), {"teacher": TeacherOptions()}, "method relation needs a teacher"),
        (("specific",), {"teacher": TeacherOptions()}, "name a masked autoencoder with --teacher"),
        (
            ("fine-tune",),
            {"tune_teacher": TuneTeacherOptions(train=TRAIN)},
            "--tune-teacher has no effect with --arms fine-tune",
        ),
        (("specific",), {"relation": RelationOptions(teacher_block=1)}, "--relation has no effect"),
        (
            ("generic",),
            {"specific": SpecificOptions(logit=LogitOptions(weight=0.3))},
            "--specific.logit has no effect with --arms generic, which have no teacher",
        ),
        (
            ("both",),
            {
                "task_teacher": "timm:vit_tiny_patch16_224",
                "tune_teacher": TuneTeacherOptions(train=TRAIN),
            },
            "--tune-teacher has no effect with --task-teacher",
        ),
        (
            ("both",),
            {"specific": SpecificOptions(optim=OptimOptions(warmup_epochs=2), train=TRAIN)},
            "specific.optim.warmup_epochs 2 leaves nothing of specific.train.epochs 1",
        ),
        (
            ("both",),
            {"tune_teacher": TuneTeacherOptions(mix=MixOptions(mix_prob=0.5))},
            "tune_teacher.mix.mix_prob and tune_teacher.mix.switch_prob have no effect",
        ),
        (("both",), {"unlabelled": "no/such/folder"}, "does not exist"),
        (
            ("specific",),
            {"teacher": TeacherOptions(source="TEACHER", drop_path_rate=0.1)},
            "--teacher.drop-path-rate has no effect with --arms specific here",
        ),
        (
            ("specific",),
            {
                "teacher": TeacherOptions(source="TEACHER"),
                "task_teacher": "timm:vit_tiny_patch16_224",
            },
            "--teacher.source has no effect with --arms specific here",
        ),
        (("both",), {"teacher": TeacherOptions(source="TEACHER", patch_size=8)}, "--task-teacher"),
    ],
)
def test_what_can_not_be_meant_is_refused_at_once(
    images, teacher, tmp_path, arms, changes, message
):
    given = changes.get("teacher")
    if given and given.source:
        changes = changes | {"teacher": replace(given, source=str(teacher))}
    with pytest.raises(UserError, match=message):
        check(config_of(images, teacher, tmp_path, *arms, **changes))


def test_what_does_not_fit_is_told_before_anything_trains(
    images, unlabelled, teacher, classifier, tmp_path
):
    out = tmp_path / "out"
    config = config_of(images, teacher, out)
    with pytest.raises(UserError, match="has no labels, and stage two needs them"):
        two_stage(replace(config, data=replace(config.data, root=str(unlabelled))))
    large = replace(config.specific, train=replace(TRAIN, epochs=1e-9))
    with pytest.raises(UserError, match="specific.train.epochs"):
        two_stage(replace(config, specific=large))
    with pytest.raises(UserError, match="is a classifier of these classes already; leave them out"):
        two_stage(replace(config, teacher=TeacherOptions(source=str(classifier))))
    with pytest.raises(UserError, match="No image of .* is held out"):
        two_stage(replace(config, data=replace(config.data, holdout_ratio=0)))
    assert not out.exists()


def test_a_task_teacher_of_other_classes(images, teacher, tmp_path):
    two = tmp_path / "two"
    shutil.copytree(images / "blue", two / "blue")
    shutil.copytree(images / "red", two / "red")
    other = finetune(finetune_config(two, tmp_path / "other", teacher))
    config = config_of(images, teacher, tmp_path / "out", "specific", task_teacher=str(other))
    with pytest.raises(UserError, match="knows 2 classes and the student learns 3"):
        two_stage(config)


def test_a_task_teacher_of_other_names_is_not_scored(images, classifier, tmp_path):
    other = shutil.copytree(images, tmp_path / "other")
    for name, new in (("blue", "zebra"), ("green", "apple"), ("red", "mango")):
        (other / name).rename(other / new)
    config = config_of(other, None, tmp_path / "out", "specific", task_teacher=str(classifier))
    found = two_stage(config)
    assert found.teacher.scores == {} and found.scores("specific", "top1")
    assert "(blue, green, red): it is not asked." in report(found)


def test_the_defaults_are_those_of_g2sd(images, tmp_path):
    assert not TwoStageConfig().arms[1:]
    deep = replace(
        teacher_run(images, tmp_path / "deep"),
        masked_pixel=MaskedPixelOptions(decoder_embed_dim=32, decoder_depth=4, mask_ratio=0.75),
        train=TRAIN,
    )
    options = DecoderFeatureOptions(decoder_embed_dim=32, decoder_depth=1, decoder_num_heads=2)
    config = config_of(
        images, distill(deep), tmp_path / "out", method="decoder-feature",
        relation=RelationOptions(), decoder_feature=options,
        specific=SpecificOptions(optim=OPTIM, train=TRAIN),
    )  # fmt: skip
    assert (config.method, config.specific.head) == (TwoStageConfig().method, "distilled-last")
    two_stage(config)
    assert limbeck.load(config.out / "seed_0" / "both").facts.has_dist_head


def test_a_teacher_without_its_decoder_is_told_at_once(images, classifier, tmp_path):
    config = config_of(
        images, classifier, tmp_path / "out", "generic",
        method="decoder-feature", relation=RelationOptions(),
    )  # fmt: skip
    with pytest.raises(UserError, match="no decoder"):
        two_stage(config)
    assert not config.out.exists()
