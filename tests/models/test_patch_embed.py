"""Patches embedded alone: the rows of the full embedding, and its gradients."""

import pytest
import torch
from timm.layers import PatchEmbed
from torch import nn

from limbeck.models.patch_embed import embed_patches

IDS = torch.tensor([[5, 0], [2, 3]])


def full_and_kept(patch_embed):
    images = torch.rand(2, 3, 8, 12)
    return patch_embed(images), embed_patches(patch_embed, images, IDS), images


@pytest.mark.parametrize("norm_layer", [None, nn.LayerNorm])
def test_kept_rows_are_those_of_the_full_embedding(norm_layer):
    patch_embed = PatchEmbed((8, 12), 4, 3, 8, norm_layer=norm_layer)
    full, kept, images = full_and_kept(patch_embed)
    places = IDS.unsqueeze(-1).expand(-1, -1, 8)
    torch.testing.assert_close(kept.gather(1, places), full.gather(1, places))
    assert kept.shape == full.shape
    assert not kept.scatter(1, places, 0.0).any()
    torch.testing.assert_close(embed_patches(patch_embed, images, None), full)
    weight = patch_embed.proj.weight
    expected, found = (
        torch.autograd.grad(x.gather(1, places).square().sum(), weight)[0] for x in (full, kept)
    )
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("options", [{"flatten": False}, {"dynamic_img_pad": True}])
def test_another_embedding_sees_all(options):
    full, kept, _ = full_and_kept(PatchEmbed((8, 12), 4, 3, 8, **options))
    torch.testing.assert_close(kept, full, rtol=0, atol=0)
