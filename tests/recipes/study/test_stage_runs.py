"""The runs of two stages: what is measured once, and teachers of any kind."""

import logging

import torch

from limbeck.engine.distributed import Ranks
from limbeck.recipes.run.images import open_images
from limbeck.recipes.run.precision import filled
from limbeck.recipes.study.stage_runs import StageRuns
from limbeck.recipes.study.stage_two.classify import CLASSIFY
from limbeck.recipes.study.stages import ARMS
from tests.recipes.study.test_two_stage import config_of

RANKS = Ranks(device=torch.device("cpu"))

OWN = """
from limbeck.models.origins.load import load_encoder


def build(**overrides):
    return load_encoder("timm:resnet10t", pretrained=False, num_classes=3, img_size=32)
"""


def test_a_convolutional_network_can_be_the_task_teacher(
    images, teacher, tmp_path, monkeypatch, caplog
):
    (tmp_path / "own_stage_teacher.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    source = "own_stage_teacher:build"
    config = config_of(images, teacher, tmp_path / "out", "specific", task_teacher=source)
    config = filled(config, "fp32")
    runs = StageRuns(CLASSIFY, config, [ARMS["specific"]], open_images(config.data), RANKS)
    with caplog.at_level(logging.INFO, "limbeck"):
        (run,) = runs.rehearse()
    assert run[0] == tmp_path / "out" / "seed_0" / "specific" and not run[0].exists()
    assert "Stage two of the arm specific is built once" in caplog.text
    (tmp_path / "out").mkdir()
    found = runs.teach()
    assert found.cost["macs"] > 0 and 0 <= found.scores["top1"].mean <= 1
