"""The runs of two stages: what is measured once, and teachers of any kind."""

import json
import logging
from dataclasses import replace

import pytest
import torch

from limbeck.data.options import CorruptionOptions
from limbeck.engine.distributed import Ranks
from limbeck.recipes.run.images import open_images
from limbeck.recipes.run.precision import filled
from limbeck.recipes.study import stage_runs
from limbeck.recipes.study.stage_runs import StageRuns
from limbeck.recipes.study.stages import ARMS
from tests.recipes.study.test_two_stage import config_of

RANKS = Ranks(device=torch.device("cpu"))

OWN = """
from limbeck.models.origins.load import load_encoder


def build(**overrides):
    return load_encoder("timm:resnet10t", pretrained=False, num_classes=3, img_size=32)
"""


@pytest.fixture
def runs(images, teacher, classifier, tmp_path):
    config = config_of(images, teacher, tmp_path / "out", task_teacher=str(classifier))
    (tmp_path / "out").mkdir()
    return StageRuns(config, [ARMS["both"]], open_images(config.data), RANKS)


def test_a_classifier_is_measured_once(runs, classifier, tmp_path, monkeypatch):
    file = tmp_path / "found.json"
    found = runs._measure(str(classifier), file)
    record = json.loads((classifier / "student.json").read_text())
    assert found.scores["top1"].mean == pytest.approx(record["scores"]["top1"])
    assert found.scores["top1"].num_test == 12 and "images_per_second" not in found.cost
    monkeypatch.setattr(stage_runs, "top_scores", None)
    again = runs._measure(str(classifier), file)
    assert again.cost == found.cost and again.scores["top1"] == replace(
        found.scores["top1"], how=again.scores["top1"].how
    )
    assert again.scores["top1"].per_image.equal(found.scores["top1"].per_image)
    runs.config = replace(runs.config, measure_speed=True)
    with pytest.raises(TypeError):
        runs._measure(str(classifier), file)


def test_corrupted_images_are_shown_where_asked_for(runs, classifier, tmp_path):
    few = CorruptionOptions(names=("contrast",), severities=(5,))
    runs.config = replace(runs.config, corruptions=few)
    found = runs._measure(str(classifier), tmp_path / "found.json")
    score = found.corrupted["corrupted_top1"].score
    assert found.scores["corrupted_top1"] == score and score.num_test == 12
    assert any("Corruptions were made here" in text for text in runs.sentences())


def test_a_convolutional_network_can_be_the_task_teacher(
    images, teacher, tmp_path, monkeypatch, caplog
):
    (tmp_path / "own_stage_teacher.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    source = "own_stage_teacher:build"
    config = config_of(images, teacher, tmp_path / "out", "specific", task_teacher=source)
    config = filled(config, "fp32")
    runs = StageRuns(config, [ARMS["specific"]], open_images(config.data), RANKS)
    with caplog.at_level(logging.INFO, "limbeck"):
        (run,) = runs.rehearse()
    assert run[0] == tmp_path / "out" / "seed_0" / "specific" and not run[0].exists()
    assert "Stage two of the arm specific is built once" in caplog.text
    (tmp_path / "out").mkdir()
    found = runs.teach()
    assert found.cost["macs"] > 0 and 0 <= found.scores["top1"].mean <= 1
