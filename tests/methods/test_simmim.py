"""SimMIM on small networks: what it takes from images, and what learns."""

import pytest
import torch

from limbeck.errors import UserError
from limbeck.methods.distiller import Distiller
from limbeck.methods.masked_pixel import MaskedPixel
from limbeck.methods.options import MaskedPixelOptions, SimMimOptions
from limbeck.methods.simmim import SimMim
from limbeck.ops.masking import is_masked
from limbeck.records import Batch
from tests.fakes import FakeEncoder
from tests.models.families import CANT_DROP_PATCHES, small_encoder, small_images


def batch():
    images = small_images()
    return Batch(images, images, None, ("a", "b"), torch.arange(2))


@pytest.mark.parametrize(
    "family", ["augreg", "dinov2-registers-swiglu", *sorted(CANT_DROP_PATCHES)]
)
def test_learns_whether_or_not_patches_can_be_dropped(family):
    student = small_encoder(family)
    method = SimMim(SimMimOptions(mask_patch_size=16), student.facts, None)
    one = method.prepare(batch())
    loss = Distiller(student, method, None)(one)
    loss.total.backward()
    assert method.masking.mask_token.grad.any()
    attending = [block for block in student.blocks if hasattr(block, "attn")]
    assert attending and all(block.attn.qkv.weight.grad.any() for block in attending)
    # What is masked is a target alone.
    (rows, columns), unit = student.facts.mask_grid, student.facts.mask_unit
    hidden = is_masked(one.ids_keep, rows * columns).unflatten(1, (rows, columns))
    pixels = hidden.repeat_interleave(unit, 1).repeat_interleave(unit, 2)
    changed = torch.where(pixels[:, None], 0.5, one.images)
    features = student(changed, one.ids_keep, method.student_taps,
                       method.masking.mask_token)  # fmt: skip
    torch.testing.assert_close(method(features, None, one).total, loss.total)


@pytest.mark.parametrize("family", sorted(CANT_DROP_PATCHES))
def test_where_patches_can_t_be_dropped_masked_pixel_names_it(family):
    with pytest.raises(UserError, match="--method simmim"):
        MaskedPixel(MaskedPixelOptions(), small_encoder(family).facts, None)


def test_the_mask_token_is_kept_and_gone_on_with():
    method, again = (SimMim(SimMimOptions(mask_patch_size=4), FakeEncoder().facts, None)
                     for _ in range(2))  # fmt: skip
    kept = method.keepsakes()
    start = again.masking.mask_token.clone()
    again.recall({})
    assert torch.equal(again.masking.mask_token, start) and start.any()
    again.recall(kept)
    assert torch.equal(again.masking.mask_token, method.masking.mask_token)
    assert not torch.equal(again.masking.mask_token, start)
