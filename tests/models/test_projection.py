"""The projection of features: its layers and their start."""

import torch

from limbeck.models.projection import build_projection


def test_two_layers_of_the_target_s_width():
    projection = build_projection(256, 512)
    shapes = {name: tuple(value.shape) for name, value in projection.state_dict().items()}
    assert shapes == {
        "fc1.weight": (512, 256),
        "fc1.bias": (512,),
        "fc2.weight": (512, 512),
        "fc2.bias": (512,),
    }
    for layer in (projection.fc1, projection.fc2):
        bound = (6 / sum(layer.weight.shape)) ** 0.5
        assert 0.99 * bound < layer.weight.abs().max() <= bound
        assert not layer.bias.any()
    tokens = torch.randn(2, 5, 256)
    hidden = torch.nn.functional.gelu(projection.fc1(tokens))
    torch.testing.assert_close(projection(tokens), projection.fc2(hidden))
