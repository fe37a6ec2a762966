"""What a plan says of its run, and what it must hold."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from limbeck.engine.distributed import Ranks
from limbeck.recipes.run.resolved import Resolved

RANKS = Ranks(device=torch.device("cpu"))


def test_identity_follows_the_config(plan):
    config, fingerprint = plan.identity(RANKS)
    assert Resolved(**config["resolved"]).total_steps == 8
    assert config["verb"] == "distill" and fingerprint["teacher"]["weights"]
    other, same = replace(plan, config=replace(plan.config, seed=3)).identity(RANKS)
    assert other == config | {"seed": 3} and same == fingerprint


def test_a_module_that_does_not_hold_the_student_is_refused(plan):
    with pytest.raises(TypeError, match="holds its student as"):
        replace(plan, module=nn.Linear(2, 2))
