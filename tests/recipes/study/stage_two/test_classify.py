"""Stage two for classification: its runs from the options, and what a classifier is worth."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from limbeck.data.options import CorruptionOptions
from limbeck.data.skipped import SkippedLog
from limbeck.engine.options import OptimOptions
from limbeck.evaluation import predictions
from limbeck.methods.options import LogitOptions
from limbeck.models.options import StudentOptions, TeacherOptions
from limbeck.models.origins.load import load_encoder
from limbeck.recipes.run.images import open_images
from limbeck.recipes.study.options import SpecificOptions, TwoStageConfig
from limbeck.recipes.study.stage_two.classify import CLASSIFY
from limbeck.recipes.study.stage_two.contract import Bench
from limbeck.recipes.study.stages import ARMS
from tests.recipes.study.test_stages import CONFIG
from tests.recipes.study.test_two_stage import config_of


def test_the_teacher_is_fine_tuned_at_its_size_with_one_head():
    run = CLASSIFY.teacher(CONFIG)
    assert (run.student, run.out, run.img_size) == ("mae.pth", Path("out/teacher"), 64)
    assert (run.head, run.seed, run.data) == ("single", 0, CONFIG.data)
    assert run.optim.layer_decay == 0.65 and run.teacher == TeacherOptions()


def test_both_has_all_that_the_section_says():
    run = CLASSIFY.arm(CONFIG, ARMS["both"], 1, "classifier", 3)
    assert (run.student, run.out) == ("out/seed_1/stage_one", Path("out/seed_1/both"))
    assert (run.head, run.logit.weight, run.num_heads, run.seed) == ("distilled", 0.3, 3, 1)
    assert run.optim == CONFIG.specific.optim and run.train.epochs == 7
    assert (run.head_init_std, run.dist_head_init_std) == (0.5, 0.02)
    assert run.teacher == TeacherOptions(source="classifier", precision="fp32")


def test_from_scratch_there_is_no_layer_decay_unless_weights_are_named():
    scratch = CLASSIFY.arm(CONFIG, ARMS["specific"], 0, "classifier", None)
    assert scratch.optim == OptimOptions(base_lr=0.125)
    assert scratch.student == "out/seed_0/start"
    warm = TwoStageConfig(student=StudentOptions(weights="here.pth"), specific=CONFIG.specific)
    assert CLASSIFY.arm(warm, ARMS["specific"], 0, "x", None).optim == CONFIG.specific.optim


@pytest.mark.parametrize(
    ("head", "pool"), [("distilled", "token"), ("single", "avg"), ("cls-distilled", "avg")]
)
def test_by_labels_alone_there_is_one_head_that_reads_what_the_first_one_does(head, pool):
    config = TwoStageConfig(specific=SpecificOptions(head=head, head_init_std=0.5))
    run = CLASSIFY.arm(config, ARMS["generic"], 0, "classifier", None)
    assert (run.head, run.global_pool, run.head_init_std) == ("single", pool, 0.5)
    assert run.teacher == TeacherOptions() and run.logit == LogitOptions()


@pytest.fixture
def bench(images, teacher, classifier, tmp_path):
    config = config_of(images, teacher, tmp_path / "out", task_teacher=str(classifier))
    opened = open_images(config.data)
    return Bench(config, opened, torch.device("cpu"), SkippedLog(None, 48, 0.0))


def measure(bench, source, file):
    return CLASSIFY.measure(bench, load_encoder(source), str(source), file)


def test_a_classifier_is_measured_once(bench, classifier, tmp_path, monkeypatch):
    file = tmp_path / "found.json"
    found = measure(bench, classifier, file)
    record = json.loads((classifier / "student.json").read_text())
    assert found.scores["top1"].mean == pytest.approx(record["scores"]["top1"])
    assert found.scores["top1"].num_test == 12 and "images_per_second" not in found.cost
    monkeypatch.setattr(predictions, "top_scores", None)
    again = measure(bench, classifier, file)
    assert again.cost == found.cost and again.scores["top1"] == replace(
        found.scores["top1"], how=again.scores["top1"].how
    )
    assert again.scores["top1"].per_image.equal(found.scores["top1"].per_image)
    other = replace(bench, config=replace(bench.config, measure_speed=True))
    with pytest.raises(TypeError):
        measure(other, classifier, file)


def test_corrupted_images_are_shown_where_asked_for(bench, classifier, tmp_path):
    few = CorruptionOptions(names=("contrast",), severities=(5,))
    bench = replace(bench, config=replace(bench.config, corruptions=few))
    found = measure(bench, classifier, tmp_path / "found.json")
    score = found.corrupted["corrupted_top1"].score
    assert found.scores["corrupted_top1"] == score and score.num_test == 12
    notes = CLASSIFY.notes(bench, load_encoder(classifier))
    assert any("Corruptions were made here" in text for text in notes)
