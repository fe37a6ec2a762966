"""What a segmentation's plan is made of."""

import torch

from limbeck.engine.distributed import Ranks
from limbeck.recipes.run.scenes import open_scene_images
from limbeck.recipes.train.segmentation import plan_segmentation
from limbeck.tasks.segmentation import Segmentation
from tests.recipes.scenes import segment_config

RANKS = Ranks(device=torch.device("cpu"))


def test_task_and_crops_are_in_the_plan(scenes, tmp_path):
    config = segment_config(scenes, tmp_path, img_size=48, mean="all", class_weights=(1.0, 3.0))
    plan = plan_segmentation(config, open_scene_images(config.data), RANKS)
    assert isinstance(plan.module, Segmentation) and plan.module.encoder is plan.student
    assert plan.module.mean == "all" and plan.module.class_weights.tolist() == [1.0, 3.0]
    assert plan.student.facts.img_size == (48, 48) and plan.untrained is None
    ids = {
        name.split(".")[0]: plan.student.layer_id(name)
        for name, _ in plan.student.named_parameters()
    }
    assert ids["head"] == plan.student.facts.depth + 1
