"""The copy that follows."""

import torch
from torch import nn

from limbeck.methods.follower import Follower


def test_follows_by_the_formula_and_takes_buffers_as_they_are():
    network = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    follower = Follower(network)
    start = follower.network[0].weight.clone()
    with torch.no_grad():
        network[0].weight.add_(1.0)
    network[1].running_mean.fill_(3.0)
    follower.follow(network, 0.75)
    torch.testing.assert_close(follower.network[0].weight, start + 0.25)
    assert follower.network[1].running_mean.tolist() == [3.0, 3.0]
    follower.follow(network, 1.0)
    torch.testing.assert_close(follower.network[0].weight, start + 0.25)


def test_is_never_trained_and_is_saved():
    network = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5))
    owner = nn.Module()
    owner.follower = Follower(network)
    owner.train()
    assert not owner.follower.network[1].training
    assert not any(parameter.requires_grad for parameter in owner.parameters())
    assert not owner.follower(torch.ones(1, 2)).requires_grad
    assert "follower.network.0.weight" in owner.state_dict()
    assert network[0].weight.requires_grad and network[1].training
