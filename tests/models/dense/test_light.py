"""The light head: where it works, how fine it answers, what of it learns."""

import pytest
import torch

from limbeck.models.dense.light import LightHead


@pytest.mark.parametrize(
    ("strides", "sizes"),
    [
        ((16,) * 4, ((6, 8),) * 4),
        ((4, 8, 16, 32), ((24, 32), (12, 16), (6, 8), (3, 4))),
        ((4, 8, 16, 16), ((24, 32), (12, 16), (6, 8), (6, 8))),
    ],
)
@pytest.mark.parametrize("norm", ["batch", "group"])
def test_a_quarter_of_the_image_and_everything_learns(strides, sizes, norm):
    dims = (4, 6, 8, 10)
    head = LightHead(dims, strides, 32, 5, norm).train()
    maps = [torch.rand(2, d, *s) for d, s in zip(dims, sizes, strict=True)]
    logits = head(maps)
    assert logits.shape == (2, 5, 24, 32)
    logits.square().sum().backward()
    assert all(value.grad.abs().sum() > 0 for value in head.parameters() if value.ndim > 1)


def test_it_costs_little_beside_upernet():
    """Multiplications at 512 pixels, by the shapes that go through the convolutions."""
    products = []

    def count(module, args, out):
        # of a deconvolution each input place meets the whole kernel
        places = args[0] if isinstance(module, torch.nn.ConvTranspose2d) else out
        products.append(module.weight.numel() * places.shape[-2] * places.shape[-1])

    head = LightHead((192,) * 4, (16,) * 4, 128, 150, "batch").eval()
    for module in head.modules():
        if isinstance(module, torch.nn.Conv2d | torch.nn.ConvTranspose2d):
            module.register_forward_hook(count)
    head([torch.rand(1, 192, 32, 32)] * 4)
    assert sum(products) < 30.6e9 / 50
