"""``limbeck segment`` end to end: trained, stopped and continued, taught, and refused."""

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import limbeck
from limbeck.data.scenes.options import SceneOptions
from limbeck.engine import loop
from limbeck.engine.loop import Interrupted
from limbeck.errors import UserError
from limbeck.methods.options import ChannelWiseOptions
from limbeck.models.options import SegmenterOptions, TeacherOptions
from limbeck.recipes.train.options import SegmentConfig
from limbeck.recipes.train.segment import check, report, segment
from tests.data.scenes.test_open import PROBLEMS, bad_set
from tests.processes import start_ranks
from tests.recipes.runs import assert_same_student, metrics_of, weights_of
from tests.recipes.scenes import NAMES, draw_scenes, segment_config

BY_CLASS = {f"iou/{name}" for name in NAMES}


def test_it_learns_what_is_drawn_and_says_so(segmenter):
    record = json.loads((segmenter / "student.json").read_text())
    assert record["classes"] == list(NAMES) and set(record["scores"]) >= BY_CLASS
    scores = record["scores"]
    assert scores["miou"] > 0.6
    assert scores["miou"] == pytest.approx(sum(scores[name] for name in BY_CLASS) / 2)
    steps, _ = metrics_of(segmenter)
    assert steps[-1]["losses"]["pixels"] < 0.6 * steps[0]["losses"]["pixels"]
    assert limbeck.load(segmenter).facts.num_classes == 2
    said = report(segmenter)
    assert "mIoU" in said and "  box: " in said and "6 held-out images can't tell much." in said


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


def test_stopped_when_all_but_the_file_is_done_it_has_all_scores(scenes, tmp_path, monkeypatch):
    from limbeck.recipes.run import train

    config = segment_config(scenes, tmp_path / "run")
    config = replace(config, train=replace(config.train, epochs=1))
    real = train.save_student

    def ends(*given, **named):
        raise KeyboardInterrupt

    monkeypatch.setattr(train, "save_student", ends)
    with pytest.raises(KeyboardInterrupt):
        segment(config)
    monkeypatch.setattr(train, "save_student", real)
    record = json.loads((segment(config) / "student.json").read_text())
    assert set(record["scores"]) == {"miou", "macc", "aacc"} | BY_CLASS


def test_a_mask_that_was_edited_is_another_run(tmp_path):
    root = draw_scenes(tmp_path / "scenes", 12)
    config = segment_config(root, tmp_path / "run")
    segment(replace(config, train=replace(config.train, epochs=1)))
    Image.fromarray(np.ones((40, 48), np.uint8)).save(root / "masks" / "000.png")
    with pytest.raises(UserError, match="holds another run: fingerprint of data"):
        segment(replace(config, train=replace(config.train, epochs=1)))


def test_bad_masks_are_left_out_named_and_counted(tmp_path, caplog):
    names = ("sky", "road", "car")
    root = bad_set(tmp_path / "set")
    data = SceneOptions(
        root=str(root), class_names=names, holdout_ratio=0.5, num_workers=0, max_bad_ratio=0.5
    )
    config = segment_config(root, tmp_path / "run", data=data)
    segment(replace(config, train=replace(config.train, epochs=1, global_batch_size=4)))
    lines = (tmp_path / "run" / "skipped.jsonl").read_text().splitlines()
    found = {line["key"]: line["reason"] for line in map(json.loads, lines)}
    assert found and found.items() <= PROBLEMS.items()
    assert "1 image (images/e5.jpg) left out: it has no mask." in caplog.text
    refusing = replace(config, data=replace(data, broken="refuse"), out=tmp_path / "refused")
    with pytest.raises(UserError, match=r"images/e5.jpg it has no mask; .*--data.broken skip"):
        segment(refusing)


@pytest.mark.parametrize("method", ["channel-wise", "pixel-kl"])
def test_a_teacher_helps_beside_the_masks(scenes, segmenter, tmp_path, method):
    teacher = TeacherOptions(source=str(segmenter), precision="fp32")
    config = segment_config(scenes, tmp_path / "run", teacher=teacher, method=method)
    run = segment(replace(config, train=replace(config.train, epochs=1)))
    steps, _ = metrics_of(run)
    assert set(steps[0]["losses"]) == {"total", "pixels", method.replace("-", "_")}
    record = json.loads((run / "student.json").read_text())
    assert record["teacher"]["weight_hash"]


def _train_and_record(config: SegmentConfig, file: Path) -> None:
    """What the optimiser is given of each parameter goes to the file."""
    build = loop.build_optimizer

    def recording(module, *given):
        optimizer = build(module, *given)
        groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}
        found = {
            name: (groups[id(p)]["lr_scale"], groups[id(p)]["weight_decay"])
            for name, p in module.named_parameters()
        }
        file.with_suffix(f".{os.environ.get('RANK', 0)}").write_text(json.dumps(found))
        return optimizer

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "build_optimizer", recording)
        segment(config)


GOLDEN = {  # row 7
    "backbone.model.pos_embed": 0.0549755814,
    "backbone.model.patch_embed.proj.bias": 0.0549755814,
    "backbone.model.blocks.0.gamma_1": 0.0687194767,
    "backbone.model.blocks.0.attn.relative_position_bias_table": 0.0687194767,
    "backbone.model.blocks.0.attn.qkv.weight": 0.0687194767,
    "backbone.model.blocks.11.attn.qkv.weight": 0.8,
    "neck.up2.0.weight": 1.0,
    "head.classify.conv.weight": 1.0,
    "aux_head.classify.conv.weight": 1.0,
}


@pytest.mark.slow
@pytest.mark.parametrize("is_taught", [False, True], ids=["alone", "taught"])
def test_two_processes_train_as_one(scenes, segmenter, tmp_path, is_taught):
    """Where no batch norm is: their crops have unequal numbers of pixels with a class, too."""
    teacher = TeacherOptions(source=str(segmenter), precision="fp32")
    config = segment_config(
        scenes,
        tmp_path / "one",
        student="vit_tiny:img_size=32:patch_size=8:embed_dim=24:depth=12:num_heads=3",
        segmenter=SegmenterOptions(
            head="semantic-fpn", width=48, norm="group", dropout=0.0, aux=True
        ),
        teacher=teacher if is_taught else TeacherOptions(),
        optim=replace(SegmentConfig().optim, base_lr=0.03),
        class_weights=(1.0, 2.0),
    )
    config = replace(config, train=replace(config.train, epochs=3))
    _train_and_record(config, tmp_path / "scales_of_one")
    both = replace(config, out=tmp_path / "two")
    pair = start_ranks(_train_and_record, both, tmp_path / "scales", folder=tmp_path, count=2)
    done = [started.end() for started in pair]
    assert [each.returncode for each in done] == [0, 0], done
    assert_same_student(tmp_path / "two", tmp_path / "one")
    pairs = zip(metrics_of(tmp_path / "two")[0], metrics_of(tmp_path / "one")[0], strict=True)
    for two, one in pairs:
        parts = {"total", "pixels", "aux"} | ({"channel_wise"} if is_taught else set())
        assert two["losses"].keys() == parts
        assert two["losses"] == pytest.approx(one["losses"], abs=1e-5)
    scales = [json.loads(file.read_text()) for file in sorted(tmp_path.glob("scales*.?"))]
    assert len(scales) == 3 and scales[0] == scales[1] == scales[2]
    owner = "student" if is_taught else "encoder"
    for name, scale in GOLDEN.items():
        assert scales[0][f"{owner}.{name}"][0] == pytest.approx(scale, abs=1e-10), name
    assert {scale for name, (scale, _) in scales[0].items() if "backbone" not in name} == {1.0}
    assert scales[0][f"{owner}.backbone.model.pos_embed"][1] == 0


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
        (
            {"segmenter": SegmenterOptions(freeze=True), "drop_path_rate": 0.1},
            "drop_path_rate has no effect with --segmenter.freeze",
        ),
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
