"""Masked-pixel pre-training: mask, target and loss."""

import pytest
import torch

from limbeck.errors import UserError
from limbeck.methods.masked_pixel import MaskedPixel
from limbeck.methods.options import MaskedPixelOptions
from limbeck.models.build import build_student
from limbeck.models.options import StudentOptions
from limbeck.ops.losses import normalise_patches, patchify
from limbeck.ops.masking import ids_masked
from limbeck.records import Batch, Features, Tap
from tests.fakes import FakeEncoder


def batch():
    images = torch.rand(3, 3, 8, 8)
    return Batch(images, images, None, ("a", "b", "c"), torch.arange(3))


def build(**options):
    return MaskedPixel(MaskedPixelOptions(**options), FakeEncoder().facts, None)


def test_prepare_keeps_the_share_that_the_ratio_says():
    method = build(mask_ratio=0.5)
    prepared = method.prepare(batch())
    assert prepared.ids_keep.shape == (3, 2)
    assert all(len(set(ids)) == 2 for ids in prepared.ids_keep.tolist())


@pytest.mark.parametrize("norm_pix_loss", [True, False])
def test_a_perfect_reconstruction_has_no_loss_and_visible_patches_never_count(norm_pix_loss):
    method = build(mask_ratio=0.5, norm_pix_loss=norm_pix_loss)
    one = method.prepare(batch())
    target = patchify((one.images - 0.5) / 0.5, 4)  # the fake's mean and std
    hidden = ids_masked(one.ids_keep, 4)
    target = target.gather(1, hidden.unsqueeze(-1).expand(-1, -1, 48))
    guess = normalise_patches(target) if norm_pix_loss else target
    method.reconstruction.decoder = torch.nn.Module()
    method.reconstruction.decoder.forward = lambda tokens, ids_keep, ids_draw: guess
    losses = method(Features(None, 1, (2, 2), {Tap("output"): torch.zeros(3, 3, 8)}), None, one)
    assert losses.total.item() == pytest.approx(0, abs=1e-10)


@pytest.mark.parametrize("ratio", [0.9, 0.1])
def test_a_ratio_that_keeps_none_or_all_is_refused(ratio):
    if ratio == 0.1:
        assert build(mask_ratio=0.1).prepare(batch()).ids_keep.shape == (3, 3)
    else:
        with pytest.raises(UserError, match="keeps 0 of 4 patches"):
            build(mask_ratio=ratio)


@pytest.mark.parametrize(
    ("name", "values", "count"),
    [
        ("vit_tiny", {}, 224_064),
        ("vit_small", {}, 705_408),
        ("vit_base", {"decoder_embed_dim": 512, "decoder_depth": 8, "decoder_num_heads": 16}, None),
    ],
)
def test_the_decoders_of_the_studies(name, values, count):
    with torch.device("meta"):
        student = build_student(StudentOptions(name=name, num_heads=12), seed=0)
        method = MaskedPixel(MaskedPixelOptions(**values), student.facts, None)
    own = sum(p.numel() for p in method.parameters())
    whole = own + sum(p.numel() for p in student.parameters())
    if count is not None:
        assert own == count
    if name == "vit_tiny":
        assert whole == 5_748_480
        assert method.reconstruction.decoder.decoder_blocks[0].attn.num_heads == 3
    if name == "vit_base":  # MAE's own
        blocks = method.reconstruction.decoder.decoder_blocks
        assert len(blocks) == 8 and blocks[0].attn.num_heads == 16
        assert own == 8 * (12 * 512**2 + 13 * 512) + 768 * 513 + 512 * 769 + 198 * 512 + 2 * 512
