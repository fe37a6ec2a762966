import pytest
import torch

from limbeck.data.released_mixing import draw_pair_mix, mix_pairs
from limbeck.data.released_views import released_generator
from limbeck.errors import UserError


def test_pairs_are_mixed_as_released():
    for seed, first, second in [(12344, 0.0919, 0.4542), (12348, 0.1860, 0.8586)]:
        drawn = released_generator(seed).random(2).tolist()
        assert drawn == pytest.approx([first, second], abs=5e-5)
    cutmix = draw_pair_mix(12345, 12345 ^ 12344, 224)
    assert cutmix.lam == pytest.approx(0.4039587205, abs=5e-11)
    assert cutmix.box == (69, 0, 224 - 69, 94)
    mixup = draw_pair_mix(12348 ^ 7, 7, 224)
    assert mixup.lam == pytest.approx(0.4730513231, abs=5e-11) and mixup.box is None


def test_each_image_keeps_its_share_of_its_partner_s_pixels():
    images = torch.rand(4, 3, 224, 224)
    seeds = torch.tensor([12345, 12345 ^ 12344, 12348, 0])
    before = images.clone()
    mixed = mix_pairs(images, seeds)
    assert torch.equal(images, before)
    inside = (slice(None), slice(69, 224), slice(0, 94))
    expected = images[0].clone()
    expected[inside] = images[1][inside]
    assert torch.equal(mixed[0], expected)
    assert torch.equal(mixed[0] + mixed[1], images[0] + images[1])
    lam = draw_pair_mix(12348, 0, 224).lam
    torch.testing.assert_close(mixed[3], lam * images[3] + (1 - lam) * images[2])


def test_which_is_first_does_not_matter_and_boxes_stay_inside():
    for seed in range(100):
        drawn = draw_pair_mix(seed, 5000, 32)
        assert drawn == draw_pair_mix(5000, seed, 32)
        top, left, height, width = drawn.box or (0, 0, 0, 0)
        assert 0 <= top <= 32 - height and 0 <= left <= 32 - width
        assert 0 <= drawn.lam <= 1


def test_an_odd_batch_is_refused():
    with pytest.raises(UserError, match="batch of 3 can't be mixed in pairs"):
        mix_pairs(torch.zeros(3, 3, 4, 4), torch.arange(3))
