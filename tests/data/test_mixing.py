import dataclasses
import random

import numpy as np
import pytest
import torch

from limbeck.data.mixing import mix, mix_pairs
from limbeck.data.options import MixOptions, PairMixOptions
from limbeck.data.released_views import released_generator
from limbeck.errors import UserError
from limbeck.records import Batch

MIXUP = MixOptions(mixup_alpha=0.8, label_smoothing=0.1)
CUTMIX = MixOptions(cutmix_alpha=1.0)
BOTH = MixOptions(mixup_alpha=0.8, cutmix_alpha=1.0, label_smoothing=0.1)
NUM_CLASSES = 5


def make_batch(size, teacher=False):
    images = torch.rand(size, 3, 16, 16)
    return Batch(
        images=images,
        teacher_images=images / 2 if teacher else images,
        labels=torch.arange(size) % NUM_CLASSES,
        keys=tuple(map(str, range(size))),
        view_seeds=torch.arange(size),
    )


def smooth(labels, smoothing):
    targets = torch.full((len(labels), NUM_CLASSES), smoothing / NUM_CLASSES)
    targets[torch.arange(len(labels)), labels] += 1 - smoothing
    return targets


@pytest.mark.parametrize("size", [1, 4, 5])
@pytest.mark.parametrize("options", [MIXUP, CUTMIX, BOTH])
def test_partner_is_the_reversed_batch(size, options):
    for seed in range(6):
        batch = make_batch(size)
        before = batch.images.clone()
        mixed = mix(batch, options, NUM_CLASSES, seed)
        assert torch.equal(batch.images, before)
        assert mixed.images.shape == before.shape and mixed.teacher_images is mixed.images
        own = smooth(batch.labels, options.label_smoothing)
        # One lambda for the batch, read off the first pair and checked against all the others.
        first = (own[0] - own.flip(0)[0]).abs().argmax()
        gap = own[0, first] - own.flip(0)[0, first]
        lam = (mixed.labels[0, first] - own.flip(0)[0, first]) / gap if gap else torch.tensor(1.0)
        torch.testing.assert_close(mixed.labels, lam * own + (1 - lam) * own.flip(0))
        partner = before.flip(0)
        if options is MIXUP and gap:
            torch.testing.assert_close(mixed.images, lam * before + (1 - lam) * partner)
        if options is CUTMIX and gap:
            is_own = mixed.images == before
            assert (is_own | (mixed.images == partner)).all()
            # lambda is corrected to the box that was really cut.
            assert is_own[0, 0].float().mean() == pytest.approx(lam.item(), abs=1e-5)


def test_targets_are_distributions():
    targets = mix(make_batch(6), BOTH, NUM_CLASSES, 0).labels
    assert targets.shape == (6, NUM_CLASSES) and targets.dtype == torch.float32
    torch.testing.assert_close(targets.sum(1), torch.ones(6))
    assert targets.min() >= 0


def test_pure_function_of_the_seed_that_leaves_the_global_generators():
    batch = make_batch(4)
    state = np.random.get_state()[1].copy(), random.getstate()
    first = mix(batch, BOTH, NUM_CLASSES, 2**62 + 1)
    np.random.random()
    again = mix(batch, BOTH, NUM_CLASSES, 2**62 + 1)
    other = mix(batch, BOTH, NUM_CLASSES, 2**62 + 2)
    assert torch.equal(first.images, again.images) and torch.equal(first.labels, again.labels)
    assert not torch.equal(first.images, other.images)
    np.random.set_state(("MT19937", state[0], 624))
    assert random.getstate() == state[1]


def test_the_teacher_sees_the_same_mix():
    batch = make_batch(5, teacher=True)
    mixed = mix(batch, BOTH, NUM_CLASSES, 3)
    torch.testing.assert_close(mixed.teacher_images, mixed.images / 2)


def test_without_mixing_targets_are_only_smoothed():
    batch = make_batch(3)
    mixed = mix(batch, MixOptions(label_smoothing=0.1), NUM_CLASSES, 0)
    assert mixed.images is batch.images
    torch.testing.assert_close(mixed.labels, smooth(batch.labels, 0.1))
    torch.testing.assert_close(
        mix(batch, MixOptions(), NUM_CLASSES, 0).labels, smooth(batch.labels, 0.0)
    )


def test_mix_prob_leaves_some_batches():
    batch = make_batch(4)
    options = MixOptions(mixup_alpha=0.8, mix_prob=0.5)
    same = [
        torch.equal(mix(batch, options, NUM_CLASSES, s).images, batch.images) for s in range(60)
    ]
    assert 15 < sum(same) < 45  # four standard deviations


def test_unlabelled_data_is_refused():
    batch = Batch(torch.rand(2, 3, 4, 4), torch.rand(2, 3, 4, 4), None, ("a", "b"), torch.arange(2))
    with pytest.raises(UserError, match="need labels"):
        mix(batch, MIXUP, NUM_CLASSES, 0)


PAIR_MIXUP, PAIR_CUTMIX = PairMixOptions(mixup_alpha=0.8), PairMixOptions(cutmix_alpha=1.0)
PAIR_BOTH = PairMixOptions(mixup_alpha=0.8, cutmix_alpha=1.0)
PARTNERS = [1, 0, 3, 2, 4]


def make_pairs(size):
    """A batch whose view seeds are as unlike as real ones."""
    seeds = torch.randint(0, 2**63 - 1, (size,))
    return dataclasses.replace(make_batch(size), view_seeds=seeds)


def test_pairs_are_mixed_up_by_their_shares_and_an_odd_last_image_is_not():
    batch = make_pairs(5)
    mixed = mix_pairs(batch, PAIR_MIXUP)
    share = mixed.mix_shares[:, None, None, None]
    expected = share * batch.images + (1 - share) * batch.images[PARTNERS]
    torch.testing.assert_close(mixed.images, expected)
    assert mixed.mix_shares[4] == 1 and torch.equal(mixed.images[4], batch.images[4])
    assert mixed.mix_shares[0] == mixed.mix_shares[1] != mixed.mix_shares[2]
    assert mixed.teacher_images is batch.images and mixed.labels is batch.labels
    assert mixed.mix_shares[:4].min() > 0


def test_pairs_are_cut_by_one_box_and_their_shares_are_what_is_left():
    for _ in range(20):
        batch = make_pairs(4)
        mixed = mix_pairs(batch, PAIR_CUTMIX)
        is_own = (mixed.images == batch.images).all(dim=1)
        partners = batch.images[[1, 0, 3, 2]]
        assert torch.equal(mixed.images, torch.where(is_own[:, None], batch.images, partners))
        assert torch.equal(is_own[::2], is_own[1::2])
        torch.testing.assert_close(is_own.float().mean(dim=(1, 2)), mixed.mix_shares)
        rows, columns = (~is_own[0]).nonzero().unbind(1)
        if len(rows):
            assert (~is_own[0]).sum() == (rows.max() - rows.min() + 1) * (
                columns.max() - columns.min() + 1
            )


def test_a_pair_hangs_on_its_two_seeds_alone():
    batch = make_pairs(4)
    whole = mix_pairs(batch, PAIR_BOTH)
    swapped = dataclasses.replace(
        batch, images=batch.images[[3, 2]], view_seeds=batch.view_seeds[[3, 2]]
    )
    part = mix_pairs(swapped, PAIR_BOTH)
    assert torch.equal(part.mix_shares, whole.mix_shares[2:])
    torch.testing.assert_close(part.images, whole.images[[3, 2]])


def test_draws_of_a_pair_are_in_the_documented_order():
    batch = make_pairs(2)
    seed = int(batch.view_seeds[0]) ^ int(batch.view_seeds[1])
    rng = released_generator(seed)
    is_mixed, is_cutmix = rng.random() < 1.0, rng.random() < 0.0
    share = rng.beta(0.8, 0.8)
    assert is_mixed and not is_cutmix
    options = dataclasses.replace(PAIR_BOTH, mix_prob=1.0, switch_prob=0.0)
    assert mix_pairs(batch, options).mix_shares[0] == pytest.approx(share)
    (only,) = {float(s) for s in mix_pairs(batch, PAIR_MIXUP).mix_shares}
    rng = released_generator(seed)
    rng.random()  # with one of the two there is nothing to choose
    assert only == pytest.approx(rng.beta(0.8, 0.8))


def test_pairs_that_are_not_drawn_stay_as_they_are():
    batch = make_pairs(400)
    half = mix_pairs(batch, dataclasses.replace(PAIR_MIXUP, mix_prob=0.5)).mix_shares
    assert 72 <= (half == 1).sum() / 2 <= 128  # of 200 pairs: four standard deviations
    none = mix_pairs(batch, dataclasses.replace(PAIR_MIXUP, mix_prob=0.0))
    assert torch.equal(none.images, batch.images) and (none.mix_shares == 1).all()


def test_pairs_are_mixed_as_in_the_released_code():
    """Known numbers: XOR 12344 gives cutmix, lambda 0.40396, and 12348 mixup, lambda 0.47305."""
    seeds = torch.tensor([12345, 12345 ^ 12344, 12348 ^ 7, 7])
    images = torch.rand(4, 3, 224, 224)
    batch = Batch(images, images, None, tuple("abcd"), seeds)
    mixed = mix_pairs(batch, PAIR_BOTH)
    inside = (slice(None), slice(69, 224), slice(0, 94))
    expected = images[0].clone()
    expected[inside] = images[1][inside]
    assert torch.equal(mixed.images[0], expected)
    assert torch.equal(mixed.images[0] + mixed.images[1], images[0] + images[1])
    cut = (224 - 69) * 94 / 224**2
    assert mixed.mix_shares.tolist() == pytest.approx([1 - cut, 1 - cut, *[0.4730513231] * 2])
    # The box of lambda: sides of the square root of what is not one's own, before it is clipped.
    rng = released_generator(12344)
    assert rng.random(2).tolist() == pytest.approx([0.0919, 0.4542], abs=5e-5)
    assert rng.beta(1.0, 1.0) == pytest.approx(0.4039587205, abs=5e-11)
    rng = released_generator(12348)
    assert rng.random(2).tolist() == pytest.approx([0.1860, 0.8586], abs=5e-5)
    assert rng.beta(0.8, 0.8) == pytest.approx(0.4730513231, abs=5e-11)
