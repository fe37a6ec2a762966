"""A plan whose parts tests replace."""

import pytest
import torch

from limbeck.engine.distributed import Ranks
from limbeck.recipes.run.images import open_images
from limbeck.recipes.targets.reading import open_networks
from limbeck.recipes.train.pretraining import plan_pretraining
from tests.recipes.runs import distill_config


@pytest.fixture
def plan(images, teacher, tmp_path):
    """Of eight steps; the student's last block but for queries, keys and values is untrained."""
    ranks = Ranks(device=torch.device("cpu"))
    config = distill_config(images, tmp_path / "run", teacher)
    return plan_pretraining(
        config, open_networks(config, ranks.device), open_images(config.data), ranks
    )
