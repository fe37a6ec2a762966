"""The best weights of a run: kept, gone back to, and as good after a stop."""

import torch
from torch import nn

from limbeck.engine.best import Best


def test_the_best_are_kept_and_the_rest_is_counted():
    module, best = nn.Linear(2, 1), Best("ap", 2)
    for step, score in enumerate((0.1, 0.5, 0.4), 1):
        with torch.no_grad():
            module.weight.fill_(step)
        best.add(module, step, {"ap": score, "other": -score})
    assert (best.step, best.num_worse, best.is_over) == (2, 1, False)
    again = Best("ap", 2)
    again.load_state_dict(best.state_dict())
    again.add(module, 4, {"ap": 0.5})  # as good is no better
    assert again.is_over and not best.is_over
    again.copy_to(module)
    assert (module.weight == 2).all() and again.scores == {"ap": 0.5, "other": -0.5}
    assert again.sentence().startswith("No better ap in 2 probes: stopped. The weights of step 2")


def test_a_score_that_is_not_given_is_worse():
    module, best = nn.Linear(2, 1), Best("ap", 1)
    best.add(module, 1, {"other": 1.0})
    assert best.is_over and not best.weights


def test_without_patience_nothing_is_kept():
    module, best = nn.Linear(2, 1), Best("ap", None)
    for step in range(5):
        best.add(module, step, {"ap": 0.0})
    assert not best.is_over and not best.weights
