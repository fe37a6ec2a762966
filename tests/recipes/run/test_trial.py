"""A few images are tried without a trace, and a step is cut to fit the memory."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

import limbeck
from limbeck.engine.distributed import Ranks
from limbeck.recipes.run import trial
from limbeck.recipes.run.train import train
from limbeck.recipes.run.trial import fewest_parts, try_images
from limbeck.recipes.targets.reading import open_networks
from limbeck.recipes.train.pretraining import plan_pretraining
from tests.recipes.runs import distill_config

RANKS = Ranks(device=torch.device("cpu"))


def test_a_trial_leaves_no_trace(plan):
    plan.module.register_buffer("steps", torch.zeros(()))
    plan.module.register_forward_pre_hook(lambda module, _: module.steps.add_(1) and None)
    before = {name: value.clone() for name, value in plan.module.state_dict().items()}
    plan.module.eval()
    random = torch.get_rng_state()
    found = try_images(plan, RANKS, 2)
    assert plan.module.state_dict().keys() == before.keys()
    assert all(value.equal(before[name]) for name, value in plan.module.state_dict().items())
    assert all(value.grad is None for value in plan.module.parameters())
    assert not plan.module.training and torch.get_rng_state().equal(random)
    assert found.step_seconds > 0 and found.data_seconds > 0 and found.memory_idle > 2**20
    assert found.losses and found.num_trained > 1000


def told(plan, monkeypatch, per_image, total):
    """The micro-batches of a machine of ``total`` bytes on which an image takes ``per_image``."""
    found = trial.Trial(100, per_image, 10, 1.0, 1.0, {}, None)
    monkeypatch.setattr(trial, "try_images", lambda *_: found)
    monkeypatch.setattr(trial, "memory_total", lambda _: total)
    return fewest_parts(plan, RANKS)


@pytest.mark.parametrize(
    ("per_image", "total", "parts"), [(1, 1e6, 1), (0, 1e6, 1), (1000, 6000, 4), (1000, 3000, 8)]
)
def test_as_few_micro_batches_as_fit(plan, monkeypatch, per_image, total, parts):
    own = replace(plan.config, train=replace(plan.config.train, global_batch_size=16))
    assert told(replace(plan, config=own), monkeypatch, per_image, total) == parts


def test_what_never_fits_is_told(plan, monkeypatch):
    with pytest.raises(limbeck.UserError, match="2 images take about .* lower --img-size"):
        told(plan, monkeypatch, 2000, 1000)


def test_a_run_is_cut_and_learns_the_same(plan, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr("limbeck.recipes.run.train.fewest_parts", lambda *_: 2)
    seen, found = [], {}

    def stream(config, *of_run):
        seen.append(config.train.accumulate_steps)
        return plan.stream(config, *of_run)

    for fits in (True, False):
        options = replace(plan.config.train, fit_memory=fits, epochs=1.0)
        config = replace(plan.config, out=tmp_path / str(fits), train=options)
        start = open_networks(config, RANKS.device)
        own = plan_pretraining(config, start, plan.images, RANKS)
        found[fits] = load_file(train(replace(own, stream=stream), RANKS) / "student.safetensors")
    assert set(seen) == {1, 2} and "A step in 2 micro-batches" in capsys.readouterr().err
    for name, value in found[True].items():
        torch.testing.assert_close(value, found[False][name], rtol=1e-3, atol=1e-5)


def test_both_ways_to_say_it_are_refused(images, teacher, tmp_path):
    config = distill_config(images, tmp_path / "run", teacher)
    both = replace(config.train, fit_memory=True, accumulate_steps=2)
    with pytest.raises(limbeck.UserError, match="leave one out"):
        limbeck.distill(replace(config, train=both))
