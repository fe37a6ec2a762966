"""Rounding in PyTorch: values, which layers hurt, and a repair that is seen to help."""

import pytest
import torch
from torch import nn

from limbeck.exports.graph import Graph
from limbeck.exports.rounding import (
    Rounding,
    folded,
    repaired,
    rounded,
    roundings,
    sensitivities,
)
from tests.exports.kinds import small
from tests.models.families import small_encoder, small_images


def test_values_have_256_steps_and_a_gradient_inside():
    values = torch.tensor([-2.0, 0.0, 0.3, 1.1, 255.4, 300.0], requires_grad=True)
    found = rounded(values, torch.tensor(0.0), torch.tensor(255.0))
    assert found.tolist() == [0, 0, 0, 1, 255, 255]
    found.sum().backward()
    assert values.grad.tolist()[2:4] == [1, 1] and values.grad[0] == values.grad[-1] == 0


def test_a_layer_s_weights_are_rounded_by_channel():
    layer = nn.Linear(2, 2, bias=False)
    layer.weight.data = torch.tensor([[127.0, 0.4], [1.27, 0.304]])
    rounding = Rounding(layer)
    rounding(torch.tensor([[0.0, 255.0]]))
    rounding.is_on = True
    one, other = rounding(torch.tensor([[0.0, 100.2]]))[0].tolist()
    assert one == pytest.approx(0, abs=1e-3) and other == pytest.approx(30, rel=1e-3)


@pytest.mark.parametrize("kind", ["tiny-vit", "augreg+light", "augreg+upernet"])
def test_folded_batch_norms_change_nothing(kind):
    graph = Graph(small(kind))
    plain = folded(graph)
    assert graph.answer(small_images())["logits"] == pytest.approx(
        plain.answer(small_images())["logits"], abs=1e-4, rel=1e-4
    )
    norms = [
        sum(isinstance(each, nn.BatchNorm2d) for each in net.modules()) for net in (graph, plain)
    ]
    assert norms[1] < norms[0] or norms[0] == 0


@pytest.mark.parametrize("kind", ["augreg", "tiny-vit", "tinymim-star+light"])
def test_every_layer_has_its_sensitivity(kind):
    graph = folded(Graph(small(kind)))
    before = graph.answer(small_images())
    found = sensitivities(graph, [small_images()])
    assert len(found) >= 9 and all(0 <= each < 1 for each in found.values())
    assert list(found.values()) == sorted(found.values(), reverse=True)
    after = graph.answer(small_images())
    assert all((before[name] == after[name]).all() for name in before)  # all is undone


def planted(graph, name="encoder.model.blocks.1.mlp.fc2"):
    """A channel whose activations are so large that the others' are rounded to nothing."""
    layer = graph.get_submodule(name)
    with torch.no_grad():
        before = graph.get_submodule(name.replace("fc2", "fc1"))
        before.weight[0], before.bias[0], layer.weight[:, 0] = 0, 400, 0
    return graph


def test_a_planted_layer_comes_first():
    found = sensitivities(planted(Graph(small_encoder("augreg"))), [small_images(8)])
    assert list(found)[0] == "encoder.model.blocks.1.mlp.fc2"


def error(graph, of, images):
    with roundings(graph, [images]) as layers, torch.no_grad():
        for each in layers.values():
            each.is_on = True
        found = graph(images)["logits"]
    wanted = torch.from_numpy(of.answer(images)["logits"])
    return float((found - wanted).norm() / wanted.norm())


def test_a_repair_helps_where_rounding_is_bad():
    graph = planted(Graph(small_encoder("augreg")))
    images = torch.rand(64, 3, 32, 32, generator=torch.Generator().manual_seed(3))
    better = repaired(graph, list(images[:48].split(8)), 40, 3e-4)
    assert error(better, graph, images[48:]) < 0.8 * error(graph, graph, images[48:])
    assert not any(each.requires_grad for each in better.parameters())
